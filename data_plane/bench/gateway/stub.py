"""A replica without an engine: fixed answers at once, so that what is measured is what stands before it.

It reads of HTTP only what routers send (a length or chunks, one request at a time), and checks nothing: it is no server
for anything else. Streams are written one event a step, as an engine's steps would, each event in a chunk of its own.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from data_plane.bench.gateway.loop import run

MODEL = "chat"
EVENTS = 64
"""Events of a stream; `[DONE]` follows them."""

_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Answers:
    """The bytes of each answer; `events` are whole HTTP chunks, the last one with the end of the body."""

    whole: bytes
    stream_head: bytes
    events: tuple[bytes, ...]
    listing: bytes
    info: bytes


def make_answers(events: int = EVENTS) -> Answers:
    """Answers with `events` tokens, and `[DONE]` after those of a stream."""
    usage = {"prompt_tokens": 64, "completion_tokens": events, "total_tokens": 64 + events}
    message = {"role": "assistant", "content": "token " * events}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    common = {"id": "chatcmpl-0123456789abcdef", "created": 1_700_000_000, "model": MODEL}
    whole = {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
    delta = {"index": 0, "delta": {"content": "token "}, "logprobs": None, "finish_reason": None}
    event = json.dumps({**common, "object": "chat.completion.chunk", "choices": [delta]}, separators=(",", ":"))
    stream = [b"data: " + event.encode() + b"\n\n"] * events + [b"data: [DONE]\n\n"]
    chunks = [b"%x\r\n%b\r\n" % (len(each), each) for each in stream]
    chunks[-1] += b"0\r\n\r\n"
    model = {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "bench"}
    return Answers(
        _plain(whole),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        tuple(chunks),
        _plain({"object": "list", "data": [model]}),
        # what routers ask of a worker before they trust it: a name, and that it generates
        _plain(
            {"status": "ok", "model_path": MODEL, "served_model_name": MODEL, "is_generation": True, "model_id": MODEL}
        ),
    )


def _plain(body: object) -> bytes:
    raw = json.dumps(body, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(raw), raw)


class Streams:
    """All open streams; each step of the loop gives every one that takes it its next event."""

    def __init__(self, answers: Answers, event_every_s: float) -> None:
        self.answers = answers
        self._every_s = event_every_s
        self._open: dict[StubConnection, int] = {}
        self._stepping = False

    def begin(self, connection: "StubConnection") -> None:
        """The head and the first event at once, the others in the steps that follow."""
        connection.write(self.answers.stream_head + self.answers.events[0])
        self._open[connection] = 1
        if not self._stepping:
            self._stepping = True
            self._again()

    def forget(self, connection: "StubConnection") -> None:
        """The connection has gone."""
        self._open.pop(connection, None)

    def _again(self) -> None:
        loop = asyncio.get_running_loop()
        if self._every_s > 0:
            loop.call_later(self._every_s, self._step)
        else:
            loop.call_soon(self._step)

    def _step(self) -> None:
        events, last = self.answers.events, len(self.answers.events) - 1
        moved = False
        for connection, at in list(self._open.items()):
            if connection.paused:
                continue
            moved = True
            connection.write(events[at])
            if at == last:
                del self._open[connection]
            else:
                self._open[connection] = at + 1
        if moved:
            self._again()
        else:
            self._stepping = False

    def resumed(self) -> None:
        """A connection takes bytes again."""
        if not self._stepping and self._open:
            self._stepping = True
            self._again()


class StubConnection(asyncio.Protocol):
    """One connection of a router's."""

    def __init__(self, streams: Streams) -> None:
        self.paused = False
        self._streams = streams
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.forget(self)
        self._transport = None

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._streams.resumed()

    def write(self, data: bytes) -> None:
        """Send it, where there is still somebody to send it to."""
        if self._transport is not None:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        end = data.find(_HEAD_END)
        if end < 0:
            return
        head = data[:end].lower()
        if not _is_whole(head, data, end + 4):
            return
        self._buffer = b""
        if head.startswith(b"get"):
            self.write(self._streams.answers.listing if b"/v1/models " in head else self._streams.answers.info)
        elif data.find(b'"stream":true', end) > 0 or data.find(b'"stream": true', end) > 0:
            self._streams.begin(self)
        else:
            self.write(self._streams.answers.whole)


def _is_whole(head: bytes, data: bytes, body_at: int) -> bool:
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return len(data) - body_at >= int(head[at + 17 :].split(b"\r\n", 1)[0])
    return b"\r\ntransfer-encoding:" not in head or data.endswith(b"\r\n0\r\n\r\n")


async def _serve(ports: Sequence[int], host: str, streams: Streams) -> None:
    loop = asyncio.get_running_loop()
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    servers = [await loop.create_server(lambda: StubConnection(streams), host, port, backlog=1024) for port in ports]
    urls = [f"http://{host}:{server.sockets[0].getsockname()[1]}" for server in servers]
    print(json.dumps({"urls": urls}), flush=True)
    await leave.wait()
    for server in servers:
        server.close()


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT. The first line of stdout is JSON with the replicas' URLs."""
    parser = argparse.ArgumentParser(prog="python -m data_plane.bench stub", description="Replicas without an engine.")
    parser.add_argument("--ports", default="0,0", help="one replica each; 0 picks a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--events", type=int, default=EVENTS, help="events of a stream")
    parser.add_argument("--event-every-ms", type=float, default=0.0, help="pause between two events; 0: none")
    options = parser.parse_args(arguments)
    try:
        ports = [int(part) for part in options.ports.split(",")]
    except ValueError:
        parser.error(f"'{options.ports}' is no list of ports such as 9101,9102.")
    streams = Streams(make_answers(options.events), options.event_every_ms / 1000)
    try:
        run(_serve(ports, options.host, streams))
    except OSError as error:
        print(f"The stub replicas cannot listen on {options.ports}: {error}. Choose other --ports.", file=sys.stderr)
        return 1
    return 0
