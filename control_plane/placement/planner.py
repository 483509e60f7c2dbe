"""Which node and device take the next replica. Pure; knows nothing of rows, reports or processes.

Among the devices with room: the kind the endpoint asks for, then where fewest replicas of this endpoint are (spread),
then where most memory is left, then by name, so that the same question always has the same answer.
"""

from dataclasses import dataclass

from control_plane.catalog.quantization import DeviceKind
from control_plane.endpoints.memory import Estimate, human, usable_bytes


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

    @property
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


@dataclass(frozen=True)
class Placed:
    """The choice, and what to promise on it."""

    node_id: str
    node: str
    device: str
    estimate: Estimate


@dataclass(frozen=True)
class NoRoom:
    """Why there is none. `permanent`: also empty devices would not do, so waiting does not help."""

    message: str
    permanent: bool


def plan(devices: tuple[DeviceView, ...], need: Need) -> Placed | NoRoom:
    """Where the replica goes, or why nowhere."""
    if not devices:
        return NoRoom("No node is ready. Start one with 'ebb up', and look at 'ebb nodes'.", permanent=False)
    asked = [device for device in devices if _is_asked_for(device, need.device)]
    if not asked:
        present = ", ".join(sorted({device.device for device in devices}))
        return NoRoom(
            f"No node has a device '{need.device}': there is {present}. Deploy with '--device auto' or one of these.",
            permanent=True,
        )
    fitting = [device for device in asked if need.estimates[device.kind].total_bytes <= device.room_bytes]
    if not fitting:
        return _does_not_fit(asked, need)
    best = min(
        fitting,
        key=lambda d: (
            d.kind != "cuda",
            d.of_endpoint,
            need.estimates[d.kind].total_bytes - d.room_bytes,
            d.node,
            d.device,
        ),
    )
    return Placed(best.node_id, best.node, best.device, need.estimates[best.kind])


def _is_asked_for(device: DeviceView, asked: str) -> bool:
    return asked in ("auto", device.kind, device.device)


def _does_not_fit(asked: list[DeviceView], need: Need) -> NoRoom:
    largest = max(asked, key=lambda d: (d.usable_bytes - need.estimates[d.kind].total_bytes, d.room_bytes, d.node))
    wanted = need.estimates[largest.kind]
    permanent = wanted.total_bytes > largest.usable_bytes
    where = f"{largest.device} of node {largest.node}"
    parts = (
        f"weights {human(wanted.weights_bytes)}, KV cache {human(wanted.kv_cache_bytes)}, "
        f"runtime {human(wanted.runtime_bytes)}"
    )
    if permanent:
        return NoRoom(
            f"A replica needs {human(wanted.total_bytes)} ({parts}), and {where}, the roomiest there is, has "
            f"{human(largest.usable_bytes)} for replicas. Deploy with a smaller --context, a smaller --concurrency "
            "or a smaller model, or add a node with more memory.",
            permanent=True,
        )
    return NoRoom(
        f"A replica needs {human(wanted.total_bytes)} ({parts}); {where} has {human(max(0, largest.room_bytes))} free "
        f"of {human(largest.usable_bytes)}, the rest is promised to other replicas. Waiting for one of them to end; "
        "'ebb ps' shows them, 'ebb scale' or 'ebb rm' frees memory at once.",
        permanent=False,
    )
