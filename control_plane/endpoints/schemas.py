"""What the REST API takes and gives for endpoints and replicas."""

from typing import Annotated, Any, Literal

import msgspec

from control_plane.catalog.quantization import AUTO, PLAIN, word
from control_plane.catalog.schemas import Quant
from control_plane.db.base import iso
from control_plane.endpoints.idle import IDLE_AUTO, UNPLANNED
from control_plane.endpoints.life import view
from control_plane.endpoints.slo import Slo
from control_plane.endpoints.states import ENDED, serves, waking_phase
from control_plane.endpoints.tables import EndpointTable, ReplicaTable

MOST_REPLICAS = 64
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_REPLICAS)]
Idle = Annotated[
    float | str,
    msgspec.Meta(
        description="Seconds from 1 to 86400, or auto: by the endpoint's own idle times.", examples=["auto", 30]
    ),
]
DEVICE = r"^(auto|cpu|cuda|cuda:[0-9]{1,2})$"


class NewEndpoint(msgspec.Struct, forbid_unknown_fields=True):
    """An endpoint to make, or a new revision of one. `context` 0: the model's own; `target` null: `concurrency`;
    `quant` auto: of the model's artifacts the fastest for the device, else the plain one."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    min: Count = 0
    max: Count = 1
    idle_s: Idle = IDLE_AUTO
    context: Annotated[int, msgspec.Meta(ge=0, le=16_777_216)] = 0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Annotated[str, msgspec.Meta(pattern=DEVICE, max_length=7)] = "auto"
    target: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    quant: Quant = AUTO
    slo: Slo | None = None


class Scale(msgspec.Struct, forbid_unknown_fields=True):
    """What of an endpoint may change without a new revision; what is left out stays."""

    min: Count | None = None
    max: Count | None = None
    idle_s: Idle | None = None


class Endpoint(msgspec.Struct, frozen=True):
    """An endpoint now. `endpoint` is its name again; `phase` is set while it is waking, `retry_at` while it failed;
    `quant` is that of the artifact that its revision pins; `idle_plan` says what `idle_s` auto comes to."""

    id: str
    name: str
    endpoint: str
    model: str
    quant: str
    state: str
    reason: str
    phase: str | None
    desired: int
    ready: int
    min: int
    max: int
    idle_s: Idle
    idle_plan: str | None
    slo: Slo | None
    url: str
    revision: int
    spec: dict[str, Any]
    retry_at: str | None
    created_at: str | None


class Endpoints(msgspec.Struct, frozen=True):
    """A list of endpoints."""

    items: list[Endpoint]


class Replica(msgspec.Struct, frozen=True):
    """A replica. `spans` are seconds by name: decide, place, spawn, import, load, warmup, and ready, the whole."""

    id: str
    endpoint: str
    node: str
    device: str
    status: str
    phase: str
    intent: str
    url: str | None
    pid: int | None
    generation: int
    reason: str
    memory_bytes: int
    promised_bytes: int
    spans: dict[str, float]
    created_at: str | None
    ready_at: str | None
    ended_at: str | None


class Replicas(msgspec.Struct, frozen=True):
    """A list of replicas."""

    items: list[Replica]


def to_endpoint(
    row: EndpointTable, alive: list[ReplicaTable], spec: dict[str, Any], gateway_url: str, idle_plan: str | None = None
) -> Endpoint:
    """The row as it is told; `alive`: its replicas that have not ended; `idle_plan`: what keepalive.py planned last."""
    views = [view(replica) for replica in alive if replica.status not in ENDED]
    return Endpoint(
        id=str(row.id),
        name=row.name,
        endpoint=row.name,
        model=row.model,
        quant=word(str(spec.get("quantization", PLAIN))),
        state=row.state,
        reason=row.obstacle or row.reason,
        phase=waking_phase(views) if row.state == "waking" else None,
        desired=row.desired,
        ready=sum(serves(each) for each in views),
        min=row.min_replicas,
        max=row.max_replicas,
        idle_s=IDLE_AUTO if row.idle_auto else row.idle_s,
        idle_plan=(idle_plan or UNPLANNED) if row.idle_auto else None,
        slo=None if row.slo is None else msgspec.convert(row.slo, Slo),
        url=f"{gateway_url}/e/{row.name}/v1",
        revision=row.revision,
        spec=spec,
        retry_at=iso(row.retry_at),
        created_at=iso(row.created_at),
    )


def to_replica(row: ReplicaTable, endpoint: str, node: str) -> Replica:
    """The row without its launch's token."""
    return Replica(
        id=str(row.id),
        endpoint=endpoint,
        node=node,
        device=row.device,
        status=row.status,
        phase=row.status,
        intent=row.intent,
        url=row.url,
        pid=row.pid,
        generation=row.generation,
        reason=row.reason,
        memory_bytes=row.memory_bytes,
        promised_bytes=row.promised_bytes,
        spans=row.spans,
        created_at=iso(row.created_at),
        ready_at=iso(row.ready_at),
        ended_at=iso(row.ended_at),
    )
