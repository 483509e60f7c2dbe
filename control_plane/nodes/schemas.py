"""What the REST API tells of nodes."""

from datetime import datetime
from typing import Annotated, Any

import msgspec

from control_plane.db.base import iso
from control_plane.nodes.tables import NodeTable

LONGEST_TTL_S = 30 * 86_400.0


class NewToken(msgspec.Struct, forbid_unknown_fields=True):
    """A token to make, good for so many seconds and one machine."""

    ttl_s: Annotated[float, msgspec.Meta(ge=1, le=LONGEST_TTL_S)] = 3600.0


class IssuedToken(msgspec.Struct, frozen=True):
    """A token just made: it is shown this once and is not stored."""

    token: str
    expires_at: str


class Node(msgspec.Struct, frozen=True):
    """A machine that runs replicas. `replicas`: how many are placed on it and have not ended.

    `state` is what people want to read: `draining` and `cordoned` before `ready`; `status` is joined, ready or lost.
    `lease_left_s`: so long it may still run them without being heard; below zero it has ended them.
    """

    id: str
    name: str
    status: str
    host: str
    agent_url: str
    devices: list[dict[str, Any]]
    cpus: int
    memory_bytes: int
    memory_free_bytes: int
    replicas: int
    last_seen_at: str | None
    version: str
    epoch: int
    state: str
    cordoned: bool
    draining: bool
    joined: bool
    lease_s: float
    lease_left_s: float
    steady_at: str | None
    created_at: str | None


class Nodes(msgspec.Struct, frozen=True):
    """A list of nodes."""

    items: list[Node]


def to_node(row: NodeTable, replicas: int, now: datetime, lease_s: float) -> Node:
    """The row without its agent's token."""
    wanted = "draining" if row.draining else "cordoned" if row.cordoned else "ready"
    return Node(
        id=str(row.id),
        name=row.name,
        status=row.status,
        host=row.host,
        agent_url=row.agent_url,
        devices=row.devices,
        cpus=row.cpus,
        memory_bytes=row.memory_bytes,
        memory_free_bytes=row.memory_free_bytes,
        replicas=replicas,
        last_seen_at=iso(row.last_seen_at),
        version=row.version,
        epoch=row.epoch,
        state=wanted if row.status == "ready" else row.status,
        cordoned=row.cordoned,
        draining=row.draining,
        joined=row.joined,
        lease_s=lease_s,
        lease_left_s=round(lease_s - (now - row.last_seen_at).total_seconds(), 3),
        steady_at=iso(row.steady_at),
        created_at=iso(row.created_at),
    )
