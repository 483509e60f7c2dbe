"""What a revision pins: everything that decides how its replicas run, and what placement needs to know of the model.
Pure; knows nothing of rows."""

import msgspec

from control_plane.catalog.quantization import PLAIN, DeviceKind
from control_plane.endpoints.memory import Estimate, ModelSize, estimate
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
    quantization: str = PLAIN
    """The artifact's, by its stored name. Revisions of before there were several have none."""
    hidden_size: int = 0
    intermediate_size: int = 0
    vocab_size: int = 0
    """Of the model's layers, for what a step needs; 0 where a revision is older than they are."""

    @property
    def requests_per_replica(self) -> int:
        """What the autoscaler divides the load by."""
        return self.concurrency if self.target is None else self.target

    @property
    def size(self) -> ModelSize:
        """What memory estimates are made from."""
        is_plain = self.quantization == PLAIN
        return ModelSize(
            self.artifact_bytes,
            self.kv_bytes_per_token,
            self.artifact_dtype,
            is_plain,
            self.hidden_size,
            self.intermediate_size,
            self.vocab_size,
        )

    def estimate(self, kind: DeviceKind, excess_bytes: int = 0) -> Estimate:
        """What a replica takes on a device of `kind`, corrected by what others of it were measured to take."""
        guess = estimate(self.size, context=self.context, concurrency=self.concurrency, dtype=self.dtype, kind=kind)
        return guess.corrected(excess_bytes)


def replica_spec(revision: RevisionSpec, device: str, kv_cache_bytes: int, threads: int = 0) -> ReplicaSpec:
    """The revision on the device that placement chose, with the KV cache it promised and its share of the cores."""
    return msgspec.convert(
        {
            "model": revision.model,
            "artifact": revision.artifact,
            "device": device,
            "dtype": revision.dtype,
            "max_model_len": revision.context,
            "max_num_seqs": revision.concurrency,
            "kv_cache_bytes": kv_cache_bytes,
            "threads": threads,
        },
        ReplicaSpec,
    )
