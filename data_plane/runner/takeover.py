"""POST /internal/resume: goes on with an answer that a gateway lost with another replica. Only for launch tokens."""

import msgspec
from aiohttp import web

from data_plane.runner.chat import answer_chat
from data_plane.runner.completions import answer_completion
from data_plane.runner.served import ServedModel
from data_plane.wire.errors import invalid
from data_plane.wire.resume import parse_resume


async def take_over(http: web.Request, served: ServedModel) -> web.StreamResponse:
    """The rest of the answer, as if it had begun here."""
    try:
        wanted = parse_resume(await http.read())
    except msgspec.DecodeError as error:
        raise invalid(f"This is not a request to go on with an answer: {error}.", code="invalid_resume") from error
    answer = answer_chat if wanted.kind == "chat" else answer_completion
    return await answer(http, served, bytes(wanted.request), wanted.said)
