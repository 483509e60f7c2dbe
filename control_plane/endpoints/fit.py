"""Whether what is asked for can run at all, told when it is deployed rather than when it is woken: the artifact on the
devices there are, and one request in their memory. Pure; what is free at the moment is placement's business."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from control_plane.catalog.quantization import PLAIN, RUNS_ON, DeviceKind, word
from control_plane.endpoints.memory import (
    BITS,
    Estimate,
    estimate,
    human,
    kv_bytes_per_token,
    sharded,
    usable_bytes,
)
from control_plane.endpoints.specs import RevisionSpec

KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda")
MOST_RANKS = 64


@dataclass(frozen=True)
class KnownDevice:
    """One device of a node of the tenant, whether or not the node is heard just now."""

    node: str
    name: str
    """`cpu` or `cuda:0`."""
    kind: DeviceKind
    memory_bytes: int


def kinds_of(asked: str, devices: Sequence[KnownDevice]) -> tuple[DeviceKind, ...]:
    """The kinds that `asked` (auto, cpu, cuda, cuda:N) allows, the preferred first: a GPU where there is one."""
    if asked == "auto":
        return ("cuda", "cpu") if any(device.kind == "cuda" for device in devices) else ("cpu",)
    return ("cpu",) if asked == "cpu" else ("cuda",)


def wrong_device(quantization: str, asked: str, devices: Sequence[KnownDevice]) -> str | None:
    """Why weights of that quantization cannot run on the device that is asked for; None where they can."""
    able = RUNS_ON.get(quantization, ())
    if asked != "auto" and kinds_of(asked, devices)[0] not in able:
        kinds = " or ".join(able)
        other = "--quant bf16" if quantization != PLAIN else "another --quant"
        return (
            f"quant is {word(quantization)}, which runs on {kinds} only, and device is '{asked}'. Deploy with --device "
            f"{able[0] if able else 'auto'}, or with {other}."
        )
    if "cpu" not in able and not any(device.kind in able for device in devices):
        present = ", ".join(sorted({f"{device.name} of node {device.node}" for device in devices})) or "no node yet"
        return (
            f"quant is {word(quantization)}, which needs a GPU, and no node has one: there is {present}. Deploy with "
            "--quant int8 or bf16, or add a node with a GPU."
        )
    return None


def pinned_device(quantization: str, asked: str) -> str:
    """The device that placement is to look for: where only one kind can run the artifact, that one."""
    able = RUNS_ON.get(quantization, ())
    return able[0] if asked == "auto" and len(able) == 1 else asked


@dataclass(frozen=True)
class Change:
    """One thing to deploy otherwise, and what a replica of one request would take then."""

    kind: Literal["quantization", "context", "sharding"]
    says: str
    needs_bytes: int
    does: bool
    """Whether it alone makes it fit."""


def too_large(
    spec: RevisionSpec, devices: Sequence[KnownDevice], made: Mapping[str, int] | None = None, excess_bytes: int = 0
) -> str | None:
    """Why not even one request at the full context fits into any of the devices in question, in numbers, and what would
    make it fit; None where one does, or where no such device is known yet. `made`: bytes of the model's artifacts, by
    stored name; `excess_bytes`: what replicas of this one were measured to take beyond the estimate, on a CPU."""
    asked = [device for device in devices if spec.device in ("auto", device.kind, device.name)]
    if not asked:
        return None
    needs = {kind: _one_request(spec, kind, excess_bytes) for kind in KINDS}
    spare = {each: _usable(each) - needs[each.kind].total_bytes for each in asked}
    best = max(asked, key=lambda each: (spare[each], each.node, each.name))
    if spare[best] >= 0:
        return None
    alike = sorted((_usable(each) for each in asked if each.kind == best.kind), reverse=True)
    return _sentence(spec, needs[best.kind], best, changes(spec, best.kind, alike, made or {}, excess_bytes))


def changes(
    spec: RevisionSpec, kind: DeviceKind, usable: Sequence[int], made: Mapping[str, int], excess_bytes: int = 0
) -> tuple[Change, ...]:
    """What would make one request of `spec` fit a device of `kind`: other weights, less context, more devices.
    `usable`: what the devices there are have for replicas, the largest first."""
    need = _one_request(spec, kind, excess_bytes)
    found = [_smaller_weights(spec, kind, usable[0], made, excess_bytes), _less_context(spec, kind, usable[0], need)]
    return (*(each for each in found if each is not None), _more_devices(spec, kind, usable, excess_bytes))


def _smaller_weights(
    spec: RevisionSpec, kind: DeviceKind, usable: int, made: Mapping[str, int], excess_bytes: int
) -> Change | None:
    """The first that fits of those that take less, the most exact first; else the smallest."""
    bits = BITS.get(spec.quantization, BITS[PLAIN])
    smaller = sorted((q for q, b in BITS.items() if b < bits and kind in RUNS_ON[q]), key=lambda q: -BITS[q])
    tried: list[Change] = []
    for quantization in smaller:
        size = made.get(quantization, int(spec.artifact_bytes * BITS[quantization] / bits))
        other = msgspec.structs.replace(spec, quantization=quantization, artifact_bytes=size)
        needs = _one_request(other, kind, excess_bytes).total_bytes
        tried.append(Change("quantization", f"--quant {word(quantization)}", needs, needs <= usable))
    return next((each for each in tried if each.does), tried[-1] if tried else None)


def _less_context(spec: RevisionSpec, kind: DeviceKind, usable: int, need: Estimate) -> Change | None:
    per_token = kv_bytes_per_token(spec.size, dtype=spec.dtype, kind=kind)
    most = (usable - need.fixed_bytes) // per_token if per_token else 0
    if most < 1:
        return Change("context", "--context 1", need.fixed_bytes + per_token, False)
    return Change("context", f"--context {most} or less", need.fixed_bytes + most * per_token, True)


def _more_devices(spec: RevisionSpec, kind: DeviceKind, usable: Sequence[int], excess_bytes: int) -> Change:
    """The fewest devices like the roomiest on which a share each would fit."""
    for ranks in range(2, MOST_RANKS + 1):
        needs = _share(spec, kind, ranks, excess_bytes)
        if needs <= usable[0]:
            there = sum(needs <= one for one in usable)
            says = f"sharding over {ranks} such devices ({there} there; this version runs a replica on one)"
            return Change("sharding", says, needs, True)
    needs = _share(spec, kind, MOST_RANKS, excess_bytes)
    return Change("sharding", f"sharding over {MOST_RANKS} such devices", needs, False)


def _share(spec: RevisionSpec, kind: DeviceKind, ranks: int, excess_bytes: int) -> int:
    """What one of `ranks` devices would hold."""
    each = estimate(sharded(spec.size, ranks), context=spec.context, concurrency=1, dtype=spec.dtype, kind=kind)
    return each.corrected(excess_bytes).total_bytes


def _one_request(spec: RevisionSpec, kind: DeviceKind, excess_bytes: int) -> Estimate:
    one = msgspec.structs.replace(spec, concurrency=1)
    return one.estimate(kind, excess_bytes if kind == "cpu" else 0)


def _usable(device: KnownDevice) -> int:
    return usable_bytes(device.memory_bytes, device.kind)


def _sentence(spec: RevisionSpec, need: Estimate, best: KnownDevice, ways: Sequence[Change]) -> str:
    per_token = kv_bytes_per_token(spec.size, dtype=spec.dtype, kind=best.kind)
    rest = need.fixed_bytes - need.weights_bytes
    return (
        f"One request of {spec.context} tokens does not fit: its KV cache takes {human(need.kv_cache_bytes)} "
        f"({human(per_token)} a token), beside {human(need.weights_bytes)} of {word(spec.quantization)} weights and "
        f"{human(rest)} of runtime, together {human(need.total_bytes)}, and {best.name} of node {best.node}, the "
        f"roomiest there is, has {human(_usable(best))} for replicas. {_remedy(ways)}"
    )


def _remedy(ways: Sequence[Change]) -> str:
    does = [f"{each.says} ({human(each.needs_bytes)})" for each in ways if each.does]
    tried = [f"{each.says} would still take {human(each.needs_bytes)}" for each in ways if not each.does]
    if not does:
        return f"{'; '.join(tried)}. Deploy a smaller model, or add a node with more memory."
    rest = f" ({'; '.join(tried)}.)" if tried else ""
    return f"It would fit with {', or with '.join(does)}. Or add a node with more memory.{rest}"
