"""What a revision pins: everything that decides how its replicas run, and what placement needs to know of the model.
Pure; knows nothing of rows."""

import msgspec

from data_plane.wire.fleet import ReplicaSpec


class RevisionSpec(msgspec.Struct, frozen=True):
    """Immutable. `context` is resolved: never 0."""

    model: str
    artifact: str
    artifact_bytes: int
    artifact_dtype: str
    kv_bytes_per_token: int
    context: int
    concurrency: int
    dtype: str
    device: str
    """auto, cpu, cuda or cuda:N."""
    target: int | None
    """Requests a replica should have at once; None: as many as it has slots."""

    @property
    def requests_per_replica(self) -> int:
        """What the autoscaler divides the load by."""
        return self.concurrency if self.target is None else self.target


def replica_spec(revision: RevisionSpec, device: str, kv_cache_bytes: int) -> ReplicaSpec:
    """The revision on the device that placement chose, with the KV cache it promised."""
    return msgspec.convert(
        {
            "model": revision.model,
            "artifact": revision.artifact,
            "device": device,
            "dtype": revision.dtype,
            "max_model_len": revision.context,
            "max_num_seqs": revision.concurrency,
            "kv_cache_bytes": kv_cache_bytes,
        },
        ReplicaSpec,
    )
