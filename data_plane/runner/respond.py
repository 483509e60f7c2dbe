"""Runs a generation and writes its answer, whole or as events; chat and completions differ only in their `Shape`.

Until the engine's first output nothing is sent, so that whatever fails before it still has a true status.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from data_plane.runner.generation import Branch, Generation
from data_plane.runner.note import NOTE
from data_plane.runner.transcript import Delta
from data_plane.wire.errors import ApiError
from data_plane.wire.names import USAGE_HEADER
from data_plane.wire.openai import GenerationRequest
from data_plane.wire.openai_answers import PromptTokensDetails, Usage
from data_plane.wire.resume import (
    DIED,
    DRAINING_CODE,
    ENGINE_DEAD_CODE,
    MOVED,
    RESUMABLE_HEADER,
    USAGE,
    end_mark,
    marked,
    open_mark,
    token_mark,
)

WRITE_TIMEOUT_S = 300.0
"""A client that takes nothing for so long is gone, whatever its connection says."""
SMALL_BYTES = 16_384
"""Less than a transport takes before it makes its writer wait."""

_ENCODER = msgspec.json.Encoder()
_PARTINGS = {DRAINING_CODE: b": moved\nid: " + MOVED + b"\n\n", ENGINE_DEAD_CODE: b": lost\nid: " + DIED + b"\n\n"}
"""Ends of a stream that another replica goes on with, by the code of what ended it here."""


class Shape(Protocol):
    """How one of the two APIs writes choices. `index` is the choice's; a Delta is what is new of it."""

    def opening(self, index: int, branch: Branch) -> list[Any]:
        """Chunk choices to send before the first token of a choice."""
        ...

    def pieces(self, index: int, delta: Delta) -> list[Any]:
        """Chunk choices for what is new."""
        ...

    def chunk(self, choices: list[Any], usage: Usage | UnsetType | None) -> msgspec.Struct:
        """One event."""
        ...

    def whole(self, branches: list[Branch], deltas: list[Delta], usage: Usage) -> msgspec.Struct:
        """The answer that is no stream."""
        ...


@dataclass(frozen=True)
class UsageWish:
    """What `stream_options` asks for."""

    at_end: bool
    on_each: bool

    @classmethod
    def of(cls, request: GenerationRequest) -> "UsageWish":
        options = request.stream_options
        on_each = bool(options and options.continuous_usage_stats and options.include_usage)
        return cls(at_end=bool(options and options.include_usage), on_each=on_each)


async def respond(
    http: web.Request, generation: Generation, shape: Shape, request: GenerationRequest, started_at: float
) -> web.StreamResponse:
    """The answer to one request. ApiError where it failed before anything was sent."""
    note = http[NOTE]
    async with generation:
        changed = await _first(generation)
        if not request.stream:
            answer = await _whole(generation, shape, started_at)
            note.outcome = "ok"
            return answer
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                "openai-processing-ms": _elapsed_ms(started_at),
                **({} if note.created is None else {RESUMABLE_HEADER: "1"}),
            }
        )
        await response.prepare(http)
        try:
            await _stream(http, response, generation, shape, UsageWish.of(request), changed)
            note.outcome = "ok"
        except ApiError as error:
            # the status has gone out already: the failure is an event, and no [DONE] follows it
            note.outcome = error.body.code or "error"
            parting = _PARTINGS.get(note.outcome) if note.created is not None else None
            await _send(http, response, parting or b"data: " + error.encode() + b"\n\n")
        await response.write_eof()
        return response


async def _first(generation: Generation) -> list[int]:
    """The choices that have something to show, after the wait for it; those that another replica ended among them."""
    ended = [at for at, branch in enumerate(generation.branches) if branch.transcript.finish_reason is not None]
    return ended if generation.done else [*ended, *await generation.advance()]


async def _whole(generation: Generation, shape: Shape, started_at: float) -> web.Response:
    while not generation.done:
        await generation.advance()
    branches = generation.branches
    answer = shape.whole(branches, [branch.transcript.take() for branch in branches], usage_of(generation))
    return web.Response(
        body=_ENCODER.encode(answer),
        content_type="application/json",
        headers={"openai-processing-ms": _elapsed_ms(started_at)},
    )


async def _stream(
    http: web.Request,
    response: web.StreamResponse,
    generation: Generation,
    shape: Shape,
    wish: UsageWish,
    changed: list[int],
) -> None:
    marks = http[NOTE].created is not None
    while True:
        events: list[bytes] = []
        for index in changed:
            usage = usage_of(generation) if wish.on_each else None if wish.at_end else UNSET
            events += _events(generation.branches[index], index, shape, usage, marks)
        if events:
            await _send(http, response, b"".join(events))
        if generation.done:
            break
        changed = await generation.advance()
    last = _event(shape.chunk([], usage_of(generation))) if wish.at_end else b""
    if last and marks:
        last = marked(last, USAGE)
    if USAGE_HEADER in http.headers:
        usage = usage_of(generation)
        cached = usage.prompt_tokens_details.cached_tokens
        last += f": usage {usage.prompt_tokens} {usage.completion_tokens} {cached}\n\n".encode()
    await _send(http, response, last + b"data: [DONE]\n\n")


def _events(branch: Branch, index: int, shape: Shape, usage: Usage | UnsetType | None, marks: bool) -> list[bytes]:
    """What is new of one choice, each event with the marks that another replica could go on from."""
    events: list[bytes] = []
    if not branch.is_open:
        branch.is_open = True
        for piece in shape.opening(index, branch):
            event = _event(shape.chunk([piece], usage))
            events.append(marked(event, open_mark(index)) if marks else event)
    delta = branch.transcript.take()
    pieces = shape.pieces(index, delta) if delta else []
    for at, piece in enumerate(pieces):
        event = _event(shape.chunk([piece], usage))
        told: list[bytes] = []
        if marks and at == 0:
            told.append(token_mark(index, branch.transcript.take_news(), branch.transcript.engine_reason))
        if marks and at == len(pieces) - 1 and delta.finish_reason is not None:
            told.append(end_mark(index))
        events.append(marked(event, *told))
    return events


def usage_of(generation: Generation) -> Usage:
    """Tokens so far. Choices of one prompt share it, so it counts once."""
    # the first of them is the one that had to compute what was not cached
    prompts = {id(branch.prompt): branch for branch in reversed(generation.branches)}
    prompt_tokens = sum(len(branch.prompt) for branch in prompts.values())
    made = generation.completion_tokens
    cached = sum(branch.transcript.cached_tokens for branch in prompts.values())
    return Usage(prompt_tokens, made, prompt_tokens + made, PromptTokensDetails(cached))


async def _send(http: web.Request, response: web.StreamResponse, data: bytes) -> None:
    transport = http.transport
    if len(data) < SMALL_BYTES and transport is not None and not transport.get_write_buffer_size():
        # it cannot wait, and setting a timer for every token costs as much as making its JSON
        await response.write(data)
        return
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await response.write(data)


def _event(chunk: msgspec.Struct) -> bytes:
    return b"data: " + _ENCODER.encode(chunk) + b"\n\n"


def _elapsed_ms(started_at: float) -> str:
    return str(round((time.monotonic() - started_at) * 1000))
