"""Which node of whose platform a home is. The agent reads the same file, and renews what it shows."""

import json
from dataclasses import dataclass
from pathlib import Path

from control_plane.embedded.errors import StartError
from control_plane.embedded.home import Home, write_private


@dataclass(frozen=True)
class JoinedNode:
    """A machine of somebody else's platform. `address`: what it listens on and is reached at."""

    home: Home
    control: str
    name: str
    address: str
    standby: int | None = None


def membership_path(home: Home) -> Path:
    """Where a home keeps which node it is, and its credential (the agent reads and renews it)."""
    return home.root / "run" / "node" / "membership.json"


def read_membership(home: Home) -> dict[str, str] | None:
    """Which node a home is; None where it never joined. Raises StartError."""
    path = membership_path(home)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read ({error}). Delete it, and join again with a new token.") from error


def write_membership(home: Home, membership: dict[str, str]) -> None:
    """Replaces it; only its owner can read it."""
    home.create()
    write_private(membership_path(home), json.dumps(membership) + "\n")
