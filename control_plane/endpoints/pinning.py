"""From what somebody wants to deploy to what a revision pins: the artifact, its device and its context, or the sentence
why that cannot be. Reads the catalog and the nodes, writes nothing."""

from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog import artifacts
from control_plane.catalog.quantization import AUTO, choose
from control_plane.catalog.tables import ArtifactTable, ModelTable
from control_plane.endpoints import measured
from control_plane.endpoints.fit import KnownDevice, kinds_of, pinned_device, too_large, wrong_device
from control_plane.endpoints.schemas import NewEndpoint
from control_plane.endpoints.specs import RevisionSpec
from control_plane.errors import Conflict, Invalid
from control_plane.nodes import service as nodes
from data_plane.wire.fleet import Device


async def pin(session: AsyncSession, tenant_id: UUID, wanted: NewEndpoint, model: ModelTable) -> RevisionSpec:
    """What a revision of `wanted` is. Raises Invalid, and Conflict where the artifact has yet to be made."""
    stored = artifacts.stored_name(wanted.quant)
    context = _context(wanted, model)
    devices = await known_devices(session, tenant_id)
    rows = (await artifacts.artifacts_of(session, [model.id]))[model.id]
    artifact = _artifact(rows, wanted, model, stored, devices)
    sizes = model.shape or {}
    spec = RevisionSpec(
        model=model.name,
        artifact=artifact.digest,
        artifact_bytes=artifact.bytes,
        artifact_dtype=artifact.dtype,
        kv_bytes_per_token=artifact.kv_bytes_per_token,
        context=context,
        concurrency=wanted.concurrency,
        dtype=wanted.dtype,
        device=pinned_device(artifact.quantization, wanted.device),
        target=wanted.target,
        quantization=artifact.quantization,
        hidden_size=int(sizes.get("hidden_size", 0)),
        intermediate_size=int(sizes.get("intermediate_size", 0)),
        vocab_size=model.vocab_size or 0,
    )
    excess = (await measured.excess(session, {artifact.digest})).get((artifact.digest, "cpu"), 0)
    if fault := too_large(spec, devices, {row.quantization: row.bytes for row in rows}, excess):
        raise Invalid(fault, "context", code="does_not_fit")
    return spec


def _context(wanted: NewEndpoint, model: ModelTable) -> int:
    longest = model.context_length or 0
    if wanted.context > longest:
        raise Invalid(
            f"context is {wanted.context}, and model '{model.name}' has {longest} tokens. Ask for at most that, or "
            "leave it at 0 for all of them.",
            "context",
        )
    return wanted.context or longest


def _artifact(
    rows: list[ArtifactTable], wanted: NewEndpoint, model: ModelTable, stored: str, devices: tuple[KnownDevice, ...]
) -> ArtifactTable:
    if stored == AUTO:
        chosen = choose([artifacts.candidate(row) for row in rows], kinds_of(wanted.device, devices))
        # with none for the device it is the first that is told why it does not go there
        stored = chosen.quantization if chosen else rows[0].quantization if rows else stored
    if fault := wrong_device(stored, wanted.device, devices):
        raise Invalid(fault, "quant", code="wrong_device")
    found = next((row for row in rows if row.quantization == stored), None)
    if found is None and stored == AUTO:
        raise Conflict(
            f"Model '{model.name}' has no artifact at all. Remove it and add it again: 'ebb models rm {model.name}'.",
            code="model_not_ready",
            param="model",
        )
    if found is None:
        raise artifacts.missing(model.name, wanted.quant, rows)
    return found


async def known_devices(session: AsyncSession, tenant_id: UUID) -> tuple[KnownDevice, ...]:
    """The devices of the tenant's nodes."""
    return tuple(
        KnownDevice(node.name, "cpu" if each.kind == "cpu" else f"cuda:{each.index}", each.kind, each.memory_bytes)
        for node in await nodes.list_nodes(session, tenant_id)
        for each in msgspec.convert(node.devices, tuple[Device, ...])
    )
