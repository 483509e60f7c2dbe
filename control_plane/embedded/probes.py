"""Asks the platform's processes whether they are ready. Knows nothing of how they were started."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from data_plane.wire.keys import split_key


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, or status 0 where nobody answered."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def get(url: str, key: str | None = None, timeout_s: float = 2.0) -> Answer:
    """GET `url`. The standard library's client: a supervisor should not carry a larger one for six requests."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=timeout_s)
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path or "/", headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, http.client.HTTPException):
        # Not there yet: that is an answer too.
        return Answer(0, b"")
    finally:
        connection.close()


def is_ready(base_url: str) -> bool:
    """Whether a process says it can do its work."""
    return get(f"{base_url}/readyz").status == 200


def has_ready_node(control_url: str, key: str, name: str) -> bool:
    """Whether the control plane knows a node called `name` that is ready."""
    answer = get(f"{control_url}/api/v1/nodes", key)
    if answer.status != 200:
        return False
    return any(node["name"] == name and node["status"] == "ready" for node in answer.json()["items"])


def keys_work(control_url: str, key: str, node_key: str) -> bool:
    """Whether `key` may administer and `node_key` is neither unknown nor revoked."""
    answer = get(f"{control_url}/api/v1/keys", key)
    if answer.status != 200:
        return False
    live = {item["prefix"] for item in answer.json()["items"] if item["revoked_at"] is None}
    return split_key(node_key)[0] in live
