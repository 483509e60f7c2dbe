"""Which node and device take the next replica. Pure; knows nothing of rows, reports or processes.

Among the devices with room: the kind the endpoint asks for, then where fewest replicas of this endpoint are (spread),
then where the node has the artifact already, then where fewest others work (on one processor they share its cores),
then where the least memory would be left (pack: large models find room as well), then by name, so that the same
question always has the same answer. `plan` is the rule; fleet.py answers the same for many in a row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from control_plane.catalog.quantization import DeviceKind
from control_plane.endpoints.memory import Estimate, human, usable_bytes

Key = tuple[bool, bool, int, bool, int, int, str, str]
Spot = tuple[str, str]
"""Node id and device: `("…", "cuda:0")`."""


@dataclass(frozen=True)
class DeviceView:
    """One device of a node that takes replicas, with what is promised to the replicas that are placed on it."""

    node_id: str
    node: str
    device: str
    """`cpu` or `cuda:0`."""
    kind: DeviceKind
    memory_bytes: int
    promised_bytes: int = 0
    of_endpoint: int = 0
    """Replicas of the endpoint in question that are placed here."""
    cached: bool = False
    """Whether the node has the endpoint's artifact."""
    busy: int = 0
    """Replicas here that have work."""
    cpus: int = 0
    """Cores of the node."""

    @property
    def spot(self) -> Spot:
        return self.node_id, self.device

    @cached_property
    def usable_bytes(self) -> int:
        return usable_bytes(self.memory_bytes, self.kind)

    @property
    def room_bytes(self) -> int:
        return self.usable_bytes - self.promised_bytes


@dataclass(frozen=True)
class Need:
    """What one replica asks for: `device` is auto, cpu, cuda or cuda:N; an estimate for each kind of device."""

    device: str
    estimates: dict[DeviceKind, Estimate]

    def on(self, device: DeviceView) -> Estimate:
        """What it takes there: less KV cache on a device that could never have all of it."""
        wanted = self.estimates[device.kind]
        return wanted if wanted.total_bytes <= device.usable_bytes else wanted.within(device.usable_bytes)

    def allows(self, device: DeviceView) -> bool:
        """Whether it is a device that was asked for."""
        return self.device in ("auto", device.kind, device.device)


@dataclass(frozen=True)
class Placed:
    """The choice, and what to promise on it."""

    node_id: str
    node: str
    device: str
    estimate: Estimate

    @property
    def spot(self) -> Spot:
        return self.node_id, self.device


@dataclass(frozen=True)
class NoRoom:
    """Why there is none. `permanent`: also empty devices would not do, so waiting does not help."""

    message: str
    permanent: bool
    needs_bytes: int = 0
    free_bytes: int = 0


def plan(devices: Sequence[DeviceView], need: Need) -> Placed | NoRoom:
    """Where the replica goes, or why nowhere."""
    chosen = plan_gang(devices, need, 1)
    return chosen if isinstance(chosen, NoRoom) else chosen[0]


def plan_gang(devices: Sequence[DeviceView], need: Need, ranks: int) -> tuple[Placed, ...] | NoRoom:
    """Where `ranks` shares of one replica go, each on a device of its own: all of them, or none. `need` is one share's.
    One machine is preferred to several, and few to many: ranks talk at every layer."""
    if not devices:
        return NoRoom("No node is ready. Start one with 'ebb up', and look at 'ebb nodes'.", permanent=False)
    asked = [device for device in devices if need.allows(device)]
    if not asked:
        present = ", ".join(sorted({device.device for device in devices}))
        return NoRoom(
            f"No node has a device '{need.device}': there is {present}. Deploy with '--device auto' or one of these.",
            permanent=True,
        )
    fitting = [device for device in asked if need.on(device).total_bytes <= device.room_bytes]
    for kind in ("cuda", "cpu"):
        alike = [device for device in fitting if device.kind == kind]
        if len(alike) >= ranks:
            return tuple(Placed(d.node_id, d.node, d.device, need.on(d)) for d in _together(alike, need, ranks))
    return _does_not_fit(asked, need, ranks)


def key(device: DeviceView, need: Need) -> Key:
    """The order of devices that have room: the least is chosen."""
    takes = need.on(device)
    is_cut = takes is not need.estimates[device.kind]
    left = device.room_bytes - takes.total_bytes
    rank = (not device.cached, device.busy, left, device.node, device.device)
    return (device.kind != "cuda", is_cut, device.of_endpoint, *rank)


def _together(alike: list[DeviceView], need: Need, ranks: int) -> list[DeviceView]:
    """The best of the machines that can hold all ranks; where none can, the machines that hold most, until all are."""
    keys = {device: key(device, need) for device in alike}
    if ranks == 1:
        return [min(alike, key=keys.__getitem__)]
    machines: dict[str, list[DeviceView]] = {}
    for device in sorted(alike, key=keys.__getitem__):
        machines.setdefault(device.node_id, []).append(device)
    whole = [machine for machine in machines.values() if len(machine) >= ranks]
    if whole:
        # the machine with the fewest devices to spare, so that larger gangs find one as well
        return min(whole, key=lambda m: (keys[m[0]][:4], len(m), keys[m[0]]))[:ranks]
    order = sorted(machines.values(), key=lambda m: (-len(m), keys[m[0]]))
    return [device for machine in order for device in machine][:ranks]


def _does_not_fit(asked: list[DeviceView], need: Need, ranks: int) -> NoRoom:
    largest = roomiest(asked, need)
    wanted = need.on(largest)
    enough = sum(need.on(device).total_bytes <= device.usable_bytes for device in asked)
    where = f"{largest.device} of node {largest.node}"
    each = "A replica needs" if ranks == 1 else f"Each of {ranks} ranks needs"
    if enough < ranks:
        lack = (
            f"and {where}, the roomiest there is, has {human(largest.usable_bytes)} for replicas"
            if enough == 0
            else f"and only {enough} of the {len(asked)} devices could hold one"
        )
        return NoRoom(
            f"{each} {human(wanted.total_bytes)} ({wanted.parts()}), {lack}. Deploy with a smaller --context, a "
            "smaller --concurrency or a smaller model, or add a node with more memory.",
            permanent=True,
            needs_bytes=wanted.total_bytes,
            free_bytes=max(0, largest.room_bytes),
        )
    return NoRoom(
        f"{each} {human(wanted.total_bytes)} ({wanted.parts()}); {where} has {human(max(0, largest.room_bytes))} free "
        f"of {human(largest.usable_bytes)}, the rest is promised to other replicas. Waiting for one of them to end; "
        "'ebb ps' shows them, 'ebb scale' or 'ebb rm' frees memory at once.",
        permanent=False,
        needs_bytes=wanted.total_bytes,
        free_bytes=max(0, largest.room_bytes),
    )


def roomiest(asked: Iterable[DeviceView], need: Need) -> DeviceView:
    """The one that is told of where none has room: that which comes nearest to holding it."""
    return max(asked, key=lambda d: (d.usable_bytes - need.on(d).total_bytes, d.room_bytes, d.node))


def threads_for(device: DeviceView, copies: int) -> int:
    """Cores for one of `copies` replicas of an endpoint on one processor, which are busy at the same time; 0: all.
    Replicas of other endpoints mostly sleep, and leave theirs."""
    return 0 if device.kind != "cpu" or copies < 2 or device.cpus < 1 else max(1, device.cpus // copies)
