"""What the REST API gives for events."""

from typing import Any

import msgspec

from control_plane.db.base import iso
from control_plane.events.tables import EventTable


class Event(msgspec.Struct, frozen=True):
    """Something changed, and why."""

    id: int
    at: str | None
    kind: str
    subject: str
    type: str
    reason: str
    data: dict[str, Any]


class Events(msgspec.Struct, frozen=True):
    """A list of events in their order."""

    items: list[Event]


def to_event(row: EventTable) -> Event:
    """The row as it is told."""
    return Event(row.id, iso(row.at), row.kind, row.subject, row.type, row.reason, row.data)


def to_sse(row: EventTable) -> bytes:
    """The row as one server-sent event; JSON holds no line break, so no field can be forged."""
    data = msgspec.json.encode(to_event(row))
    name = "".join(c for c in f"{row.kind}.{row.type}" if c.isalnum() or c in "._-")
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (row.id, name.encode("ascii", "ignore"), data)
