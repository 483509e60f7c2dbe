"""The tokens with which nodes read from each other's agents. No I/O.

The control plane knows every agent's token, which opens all of its port, and hands none of them on. What it gives node
A for node B is a MAC under B's token over A's id: B checks it with what it has, and it opens nothing else.
"""

import hashlib
import hmac

PREFIX = "peer_"


def peer_token(agent_token: str, reader: str) -> str:
    """What the node with the id `reader` shows to the agent whose own token is `agent_token`."""
    return f"{PREFIX}{reader}.{_mac(agent_token, reader)}"


def reader_of(presented: str, agent_token: str) -> str | None:
    """The id of the node that shows a token made for this agent; None for anything else. Constant time."""
    reader, dot, mac = presented.removeprefix(PREFIX).partition(".")
    same = hmac.compare_digest(mac.encode(), _mac(agent_token, reader).encode())
    return reader if same and dot and presented.startswith(PREFIX) else None


def _mac(agent_token: str, reader: str) -> str:
    return hmac.new(agent_token.encode(), b"peer:" + reader.encode(), hashlib.sha256).hexdigest()
