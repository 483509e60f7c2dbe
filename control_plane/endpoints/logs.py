"""Fetches the logs of replicas from the agents that hold them, as one stream of text. Knows nothing of rows."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import httpx
import structlog

CONNECT_S = 3.0

log = structlog.get_logger("control_plane.logs")


@dataclass(frozen=True)
class LogSource:
    """Where one replica's log is. `label` heads its part where there are several."""

    replica_id: str
    label: str
    agent_url: str
    agent_token: str


async def stream(sources: Sequence[LogSource], tail: int, follow: bool) -> AsyncGenerator[bytes]:
    """The ends of all logs, in order; with `follow` the last of them goes on until its replica ends."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(CONNECT_S, read=None if follow else 15.0)) as client:
        if not sources:
            yield b"There is no replica, so there is no log. It starts with the next request.\n"
        for source in sources:
            if len(sources) > 1:
                yield f"==> {source.label} <==\n".encode()
            is_last = source is sources[-1]
            async for piece in _one(client, source, tail, follow and is_last):
                yield piece


async def _one(client: httpx.AsyncClient, source: LogSource, tail: int, follow: bool) -> AsyncGenerator[bytes]:
    url = f"{source.agent_url}/replicas/{source.replica_id}/logs"
    query: dict[str, str | int] = {"tail": tail, "follow": "true" if follow else "false"}
    try:
        async with client.stream(
            "GET", url, params=query, headers={"Authorization": f"Bearer {source.agent_token}"}
        ) as answer:
            if answer.status_code != 200:
                yield f"The node has no log of {source.label} (it answered {answer.status_code}).\n".encode()
                return
            async for piece in answer.aiter_bytes():
                yield piece
    except (TimeoutError, httpx.HTTPError) as error:
        # the answer has begun, so the reader is told in the text
        log.warning("logs_unreachable", replica=source.replica_id, error=type(error).__name__)
        yield f"The node of {source.label} cannot be reached ({type(error).__name__}). See 'ebb nodes'.\n".encode()
