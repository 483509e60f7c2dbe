"""What the REST API gives for decisions."""

from typing import Any

import msgspec

from control_plane.db.base import iso
from control_plane.decisions.tables import DecisionTable


class Decision(msgspec.Struct, frozen=True):
    """What was decided on an endpoint, by which policy, from what, and why."""

    id: int
    at: str | None
    kind: str
    subject: str
    policy: str
    reason: str
    outcome: dict[str, Any]
    inputs: dict[str, Any] | None = None
    """In a list they are left out: GET /api/v1/decisions/{id} has them."""


class Decisions(msgspec.Struct, frozen=True):
    """A list of decisions in their order."""

    items: list[Decision]


def to_decision(row: DecisionTable, *, whole: bool = False) -> Decision:
    """The row as it is told."""
    inputs = row.inputs if whole else None
    return Decision(row.id, iso(row.at), row.kind, row.subject, row.policy, row.reason, row.outcome, inputs)
