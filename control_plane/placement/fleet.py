"""All devices of the fleet while one round of placing goes on: what was promised a moment ago counts at once. Answers
as `planner.plan` does, without looking at every device each time. Pure; knows nothing of rows or of why it is asked.

Devices of a kind stand in lists by how many replicas work on them, sorted by the room they have: the one that would be
left with least is found by bisection. Whatever is not of that form is asked of `plan` itself.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from control_plane.catalog.quantization import DeviceKind
from control_plane.placement.planner import DeviceView, Need, NoRoom, Placed, Spot, key, plan, roomiest

FEW = 64
"""Devices that have the artifact, up to which each is looked at."""
_Shelf = list[tuple[int, str, str, str]]


class Fleet:
    """Owner of the views: `take` and `give` move what is promised, `place` asks."""

    def __init__(self, devices: Sequence[DeviceView]) -> None:
        self._views = {device.spot: device for device in devices}
        self._shelves: dict[DeviceKind, dict[int, _Shelf]] = {"cpu": {}, "cuda": {}}
        self._of_node: dict[str, list[Spot]] = {}
        self._told: dict[tuple[object, ...], NoRoom] = {}
        self._most_usable: dict[DeviceKind, int] = {"cpu": 0, "cuda": 0}
        for device in devices:
            self._shelves[device.kind].setdefault(device.busy, []).append(_item(device))
            self._of_node.setdefault(device.node_id, []).append(device.spot)
            self._most_usable[device.kind] = max(self._most_usable[device.kind], device.usable_bytes)
        for shelves in self._shelves.values():
            for shelf in shelves.values():
                shelf.sort()

    def view(self, spot: Spot) -> DeviceView | None:
        """The device as it is now."""
        return self._views.get(spot)

    def all(self) -> Iterable[DeviceView]:
        """Every device as it is now."""
        return self._views.values()

    def take(self, spot: Spot, size_bytes: int, *, works: int = 0) -> None:
        """Promises so much on the device, and counts `works` more replicas with work there."""
        old = self._views[spot]
        new = replace(old, promised_bytes=old.promised_bytes + size_bytes, busy=old.busy + works)
        shelves = self._shelves[old.kind]
        shelf = shelves[old.busy]
        del shelf[bisect_left(shelf, _item(old))]
        insort(shelves.setdefault(new.busy, []), _item(new))
        self._views[spot] = new
        self._told.clear()

    def give(self, spot: Spot, size_bytes: int) -> None:
        """Takes a promise back."""
        self.take(spot, -size_bytes)

    def place(
        self, need: Need, own: Mapping[Spot, int] | None = None, cached: AbstractSet[str] = frozenset()
    ) -> Placed | NoRoom:
        """As `plan`, for an endpoint with `own` replicas on devices, whose artifact is on the nodes `cached`."""
        own = own or {}
        for kind in ("cuda", "cpu"):
            if need.device not in ("auto", kind):
                continue
            estimate = need.estimates[kind]
            if estimate.least_bytes > self._most_usable[kind]:
                continue
            if estimate.total_bytes > self._most_usable[kind]:
                # some device may do with a smaller KV cache
                return plan(self._for(own, cached), need)
            spot = self._best(kind, estimate.total_bytes, need, own, cached)
            if spot is not None:
                view = self._views[spot]
                return Placed(view.node_id, view.node, view.device, need.on(view))
        if need.device not in ("auto", "cuda", "cpu") or not self._has_asked(need):
            return plan(self._for(own, cached), need)
        return self._no_room(need)

    def beside(
        self, chosen: Placed, need: Need, own: Mapping[Spot, int], cached: AbstractSet[str], most: int
    ) -> tuple[DeviceView, ...]:
        """The chosen device and a few that were not: `plan` answers the same of them as of all."""
        view = self._views[chosen.spot]
        spots = [chosen.spot, *list(own)[:most]]
        for shelf in self._shelves[view.kind].values():
            at = bisect_left(shelf, (chosen.estimate.total_bytes, "", "", ""))
            spots += [(node_id, device) for _, _, device, node_id in shelf[at : at + most]]
        seen = [self._views[spot] for spot in dict.fromkeys(spots) if spot in self._views]
        return tuple(_seen(each, own, cached) for each in seen if need.allows(each))[:most]

    def _has_asked(self, need: Need) -> bool:
        return any(self._most_usable[kind] for kind in _KINDS if need.device in ("auto", kind))

    def _best(
        self, kind: DeviceKind, total: int, need: Need, own: Mapping[Spot, int], cached: AbstractSet[str]
    ) -> Spot | None:
        """The least by `key` of the devices of the kind that have room for all of it."""
        with_artifact = [spot for node in cached for spot in self._of_node.get(node, ())] if cached else []
        if 0 < len(with_artifact) <= FEW:
            fresh = [s for s in with_artifact if s not in own and self._views[s].kind == kind]
            if (spot := self._least(fresh, need, own, cached)) is not None:
                return spot
        elif with_artifact and (spot := self._first(kind, total, own, cached)) is not None:
            return spot
        spot = self._first(kind, total, own, None)
        if spot is not None:
            return spot
        return self._least([s for s in own if s in self._views and self._views[s].kind == kind], need, own, cached)

    def _first(
        self, kind: DeviceKind, total: int, own: Mapping[Spot, int], nodes: AbstractSet[str] | None
    ) -> Spot | None:
        """The one with fewest that work and least to spare, without replicas of the endpoint, on one of `nodes`."""
        shelves = self._shelves[kind]
        for busy in sorted(shelves):
            shelf = shelves[busy]
            for at in range(bisect_left(shelf, (total, "", "", "")), len(shelf)):
                _, _, device, node_id = shelf[at]
                spot = (node_id, device)
                if spot not in own and (nodes is None or node_id in nodes) and self._views[spot].usable_bytes >= total:
                    return spot
        return None

    def _least(
        self, spots: Iterable[Spot], need: Need, own: Mapping[Spot, int], cached: AbstractSet[str]
    ) -> Spot | None:
        views = [_seen(self._views[spot], own, cached) for spot in spots]
        fits = [
            view for view in views if need.estimates[view.kind].total_bytes <= min(view.room_bytes, view.usable_bytes)
        ]
        return min(fits, key=lambda view: key(view, need)).spot if fits else None

    def _no_room(self, need: Need) -> NoRoom:
        """The roomiest device speaks for all. Asked again before anything has changed, it says the same."""
        totals = (need.device, *(need.estimates[kind] for kind in _KINDS))
        answer = self._told.get(totals)
        if answer is None:
            asked = [device for device in self._views.values() if need.allows(device)]
            found = plan([roomiest(asked, need)], need)
            assert isinstance(found, NoRoom), "no device had room"
            answer = self._told[totals] = found
        return answer

    def _for(self, own: Mapping[Spot, int], cached: AbstractSet[str]) -> list[DeviceView]:
        return [_seen(view, own, cached) for view in self._views.values()]


_KINDS: tuple[DeviceKind, ...] = ("cuda", "cpu")


def _item(device: DeviceView) -> tuple[int, str, str, str]:
    return device.room_bytes, device.node, device.device, device.node_id


def _seen(view: DeviceView, own: Mapping[Spot, int], cached: AbstractSet[str]) -> DeviceView:
    count, has = own.get(view.spot, 0), view.node_id in cached
    return view if (count, has) == (view.of_endpoint, view.cached) else replace(view, of_endpoint=count, cached=has)
