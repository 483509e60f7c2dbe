"""Whether what is asked for can run at all, told when it is deployed rather than when it is woken: the artifact on the
devices there are, and one request in their memory. Pure; what is free at the moment is placement's business."""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.catalog.quantization import PLAIN, RUNS_ON, DeviceKind, word
from control_plane.endpoints.memory import Estimate, ModelSize, estimate, human, kv_bytes_per_token, usable_bytes
from control_plane.endpoints.specs import RevisionSpec

KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda")


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


def too_large(spec: RevisionSpec, devices: Sequence[KnownDevice]) -> str | None:
    """Why not even one request at the full context fits into any of the devices in question, in numbers; None where
    one does, or where no such device is known yet."""
    asked = [device for device in devices if spec.device in ("auto", device.kind, device.name)]
    if not asked:
        return None
    size = spec.size
    needs = {kind: estimate(size, context=spec.context, concurrency=1, dtype=spec.dtype, kind=kind) for kind in KINDS}
    spare = {each: usable_bytes(each.memory_bytes, each.kind) - needs[each.kind].total_bytes for each in asked}
    best = max(asked, key=lambda each: (spare[each], each.node, each.name))
    return None if spare[best] >= 0 else _sentence(spec, size, needs[best.kind], best)


def _sentence(spec: RevisionSpec, size: ModelSize, need: Estimate, best: KnownDevice) -> str:
    per_token = kv_bytes_per_token(size, dtype=spec.dtype, kind=best.kind)
    usable = usable_bytes(best.memory_bytes, best.kind)
    room = usable - need.weights_bytes - need.runtime_bytes
    most = max(0, room // per_token) if per_token else 0
    remedy = (
        f"Deploy with --context {most} or less"
        if most >= 1
        else "Deploy a smaller model, or --quant int4 or int8 where that is not it yet"
    )
    return (
        f"One request of {spec.context} tokens does not fit: its KV cache takes {human(need.kv_cache_bytes)} "
        f"({human(per_token)} a token), beside {human(need.weights_bytes)} of {word(spec.quantization)} weights and "
        f"{human(need.runtime_bytes)} of runtime, and {best.name} of node {best.node}, the roomiest there is, has "
        f"{human(usable)} for replicas. {remedy}, or add a node with more memory."
    )
