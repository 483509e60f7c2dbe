"""What one request carries through middlewares and handlers, for its headers and its line in the log."""

import time
from dataclasses import dataclass

from aiohttp import web

from data_plane.runner.generation import Generation


@dataclass
class Note:
    """`outcome` is `ok` or the code of the error that ended the request. `key` is an id, never a secret.

    `tenant` is the key's, or whom the gateway names. `created` is what a gateway wants the answer to say of its time
    (Unix seconds), so that another replica may go on with it: then its events are marked.
    """

    request_id: str
    key: str | None = None
    tenant: str = ""
    generation: Generation | None = None
    outcome: str = "client_gone"
    created: int | None = None

    @property
    def is_gateways(self) -> bool:
        """Whether a gateway asked, with the launch's token."""
        return self.key == "launch"


NOTE = web.RequestKey("note", Note)


def created(http: web.Request) -> int:
    """When the answer to this request began, in Unix seconds: now, or when a gateway first asked for it."""
    wanted = http[NOTE].created
    return int(time.time()) if wanted is None else wanted
