"""The routes this process knows: endpoints by tenant and name, their ready replicas, and those to keep away from.

Knows nothing of HTTP, and of time only what it is told (seconds of one monotonic clock).
"""

from data_plane.wire.routes import EndpointRoute, GatewayState, ReplicaRoute


class RouteTable:
    """The last GatewayState, indexed. Replicas found dead are avoided until their routes change."""

    def __init__(self) -> None:
        self.version = ""
        self._by_id: dict[str, EndpointRoute] = {}
        self._by_name: dict[tuple[str, str], EndpointRoute] = {}
        self._changed_at: dict[str, float] = {}
        self._avoided_until: dict[str, float] = {}

    @property
    def received(self) -> bool:
        """Whether any state has arrived yet."""
        return self.version != ""

    def update(self, state: GatewayState, now: float) -> list[str]:
        """Take a new state; returns the ids of the endpoints that came, changed or went."""
        before = self._by_id
        self._by_id = {route.id: route for route in state.endpoints}
        self._by_name = {(route.tenant, route.name): route for route in state.endpoints}
        self.version = state.version
        changed = [id for id in before.keys() | self._by_id.keys() if before.get(id) != self._by_id.get(id)]
        for endpoint_id in changed:
            self._note_change(before.get(endpoint_id), self._by_id.get(endpoint_id), endpoint_id, now)
        return changed

    def _note_change(self, old: EndpointRoute | None, new: EndpointRoute | None, endpoint_id: str, now: float) -> None:
        if new is None:
            self._changed_at.pop(endpoint_id, None)
        else:
            self._changed_at[endpoint_id] = now
        for replica in old.replicas if old else ():
            if new is None or replica not in new.replicas:
                self._avoided_until.pop(replica.id, None)

    def get(self, endpoint_id: str) -> EndpointRoute | None:
        """The endpoint of that id, or None where it was deleted."""
        return self._by_id.get(endpoint_id)

    def find(self, tenant: str, name: str) -> EndpointRoute | None:
        """The tenant's endpoint of that name. Another tenant's endpoint is as unknown as none."""
        return self._by_name.get((tenant, name))

    def of_tenant(self, tenant: str) -> list[EndpointRoute]:
        """All endpoints of a tenant by name, asleep ones too."""
        return sorted((route for route in self._by_id.values() if route.tenant == tenant), key=lambda route: route.name)

    def all(self) -> list[EndpointRoute]:
        """All endpoints of all tenants."""
        return list(self._by_id.values())

    def eta_s(self, endpoint_id: str, now: float) -> float | None:
        """Seconds until the endpoint is likely to serve, counted down since its route was received."""
        route = self._by_id.get(endpoint_id)
        if route is None or route.eta_s is None:
            return None
        return max(0.0, route.eta_s - (now - self._changed_at.get(endpoint_id, now)))

    def avoid(self, replica_id: str, until: float) -> None:
        """Keep away from a replica until `until`, or until its route changes or goes, whichever is first."""
        if until > 0:
            self._avoided_until[replica_id] = until
        else:
            self._avoided_until.pop(replica_id, None)

    def usable(self, endpoint_id: str, now: float) -> tuple[ReplicaRoute, ...]:
        """The endpoint's ready replicas without those to keep away from."""
        route = self._by_id.get(endpoint_id)
        if route is None:
            return ()
        if not self._avoided_until:
            return route.replicas
        return tuple(replica for replica in route.replicas if self._avoided_until.get(replica.id, now) <= now)
