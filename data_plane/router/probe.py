"""Asks a runner whether it lives, on a connection of its own. Knows nothing of what follows from the answer.

A fresh connection each time: what the kernel still takes in on an old one says nothing about the process behind it.
"""

import asyncio
import contextlib
from typing import Literal
from urllib.parse import urlsplit

from data_plane.wire.routes import ReplicaRoute

Vital = Literal["ready", "busy", "stuck", "silent", "unreachable", "gone"]
"""ready: it takes requests. busy: it lives and takes none (loading, draining). stuck: its engine makes no step though
it has work. silent: its port is open and nobody answers. unreachable: its machine does not answer. gone: nothing
listens there, or what does knows another launch."""

ANSWER_S = 2.0


async def probe(replica: ReplicaRoute, connect_s: float, answer_s: float = ANSWER_S) -> Vital:
    """What GET /readyz of the runner says; within `connect_s` + `answer_s`."""
    where = urlsplit(replica.url)
    try:
        async with asyncio.timeout(connect_s):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
    except (ConnectionRefusedError, ConnectionResetError):
        return "gone"
    except (OSError, TimeoutError):
        return "unreachable"
    try:
        writer.write(
            f"GET {where.path.rstrip('/')}/readyz HTTP/1.1\r\nHost: {where.netloc}\r\n"
            f"Authorization: Bearer {replica.token}\r\nConnection: close\r\n\r\n".encode()
        )
        async with asyncio.timeout(answer_s):
            answer = await reader.read(65_536)
            with contextlib.suppress(ConnectionError):
                while b"\r\n\r\n" not in answer and (more := await reader.read(65_536)):
                    answer += more
                answer += await reader.read(65_536)
    except TimeoutError:
        return "silent"
    except OSError:
        return "gone"
    finally:
        writer.close()
    return _read(answer)


def _read(answer: bytes) -> Vital:
    status = answer[9:12]
    if status == b"200":
        return "ready"
    if status == b"503":
        return "stuck" if b'"engine_stuck"' in answer or b'"engine_dead"' in answer else "busy"
    # it took the connection and ended it, or is no runner of ours
    return "gone"
