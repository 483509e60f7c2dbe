"""What the REST API tells of nodes."""

from typing import Any

import msgspec

from control_plane.db.base import iso
from control_plane.nodes.tables import NodeTable


class Node(msgspec.Struct, frozen=True):
    """A machine that runs replicas. `replicas`: how many are placed on it and have not ended."""

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
    created_at: str | None


class Nodes(msgspec.Struct, frozen=True):
    """A list of nodes."""

    items: list[Node]


def to_node(row: NodeTable, replicas: int) -> Node:
    """The row without its agent's token."""
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
        created_at=iso(row.created_at),
    )
