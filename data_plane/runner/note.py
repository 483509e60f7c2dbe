"""What one request carries through middlewares and handlers, for its headers and its line in the log."""

from dataclasses import dataclass

from aiohttp import web

from data_plane.runner.generation import Generation


@dataclass
class Note:
    """`outcome` is `ok` or the code of the error that ended the request. `key` is an id, never a secret.

    `tenant` is the key's, or whom the gateway names.
    """

    request_id: str
    key: str | None = None
    tenant: str = ""
    generation: Generation | None = None
    outcome: str = "client_gone"


NOTE = web.RequestKey("note", Note)
