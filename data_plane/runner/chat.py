"""POST /v1/chat/completions: messages to a prompt, outputs to messages."""

import time
from collections.abc import Sequence

from aiohttp import web
from msgspec import UNSET, UnsetType

from data_plane.engine.outputs import TokenLogprobs
from data_plane.runner.engine_loop import Origin
from data_plane.runner.generation import Branch, Generation
from data_plane.runner.note import NOTE, created
from data_plane.runner.requests import room_for, sampling
from data_plane.runner.respond import respond
from data_plane.runner.resume import take_up
from data_plane.runner.served import ServedModel
from data_plane.runner.tokenizer import Tokenizer
from data_plane.runner.transcript import Delta, Entry, Transcript
from data_plane.wire.openai import ChatRequest, parse_chat
from data_plane.wire.openai_answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from data_plane.wire.resume import Said


async def chat_completions(http: web.Request, served: ServedModel) -> web.StreamResponse:
    """Answers one chat."""
    return await answer_chat(http, served, await http.read())


async def answer_chat(
    http: web.Request, served: ServedModel, raw: bytes, said: Sequence[Said] = ()
) -> web.StreamResponse:
    """The answer to the chat in `raw`, from where `said` has it."""
    started_at = time.monotonic()
    request = parse_chat(raw)
    encoded = await served.encode_chat(request, http[NOTE].tenant)
    prompt = encoded.tokens
    limit_name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    limit = room_for(served, prompt, request.limit, param="messages", limit_param=limit_name)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    branches = [
        Branch(prompt, params, _transcript(served, request), encoded.labels)
        for params in sampling(request, served, max_tokens=limit, logprobs=logprobs)
    ]
    take_up(branches, said, with_logprobs=logprobs is not None)
    origin = Origin(http[NOTE].tenant, request.priority or 0, request.cache_salt or "")
    generation = Generation(served.engine, served.metrics, http[NOTE].request_id, branches, started_at, origin)
    http[NOTE].generation = generation
    shape = _ChatShape(f"chatcmpl-{http[NOTE].request_id}", created(http), served, request)
    return await respond(http, generation, shape, request, started_at)


def _transcript(served: ServedModel, request: ChatRequest) -> Transcript:
    skip = request.skip_special_tokens is not False
    return Transcript(served.tokenizer, request.stop_texts, skip_special_tokens=skip)


class _ChatShape:
    def __init__(self, answer_id: str, created: int, served: ServedModel, request: ChatRequest) -> None:
        self._id = answer_id
        self._created = created
        self._model = served.name
        self._tokenizer = served.tokenizer
        self._with_logprobs = bool(request.logprobs)
        self._with_ids = bool(request.return_token_ids)

    def opening(self, index: int, branch: Branch) -> list[ChatChunkChoice]:
        return [ChatChunkChoice(index, ChatDelta(role="assistant", content=""))]

    def pieces(self, index: int, delta: Delta) -> list[ChatChunkChoice]:
        pieces: list[ChatChunkChoice] = []
        logprobs = self._logprobs(delta.entries)
        ids = self._token_ids(delta)
        if delta.text or ids or (logprobs and logprobs.content):
            pieces.append(ChatChunkChoice(index, ChatDelta(content=delta.text), logprobs, token_ids=ids))
        if delta.finish_reason is not None:
            pieces.append(ChatChunkChoice(index, ChatDelta(), finish_reason=delta.finish_reason))
        return pieces

    def chunk(self, choices: list[ChatChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        return ChatChunk(self._id, self._created, self._model, choices, usage)

    def whole(self, branches: list[Branch], deltas: list[Delta], usage: Usage) -> ChatCompletion:
        choices = [
            ChatChoice(
                index,
                ChatMessage(delta.text),
                delta.finish_reason or "stop",
                self._logprobs(delta.entries),
                self._token_ids(delta),
            )
            for index, delta in enumerate(deltas)
        ]
        return ChatCompletion(self._id, self._created, self._model, choices, usage)

    def _token_ids(self, delta: Delta) -> list[int] | UnsetType:
        return [entry.token_id for entry in delta.entries] if self._with_ids else UNSET

    def _logprobs(self, entries: list[Entry]) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        # the token that ended the answer is not in its text, so it is not here either
        kept = [entry.logprobs for entry in entries if entry.logprobs is not None and not entry.is_stop]
        return ChatLogprobs([_token_logprob(self._tokenizer, logprobs) for logprobs in kept])


def _token_logprob(tokenizer: Tokenizer, logprobs: TokenLogprobs) -> TokenLogprob:
    top: list[TopLogprob] = []
    for token_id, logprob in logprobs.top:
        raw = tokenizer.token_bytes(token_id)
        top.append(TopLogprob(raw.decode(errors="replace"), logprob, list(raw)))
    raw = tokenizer.token_bytes(logprobs.token_id)
    return TokenLogprob(raw.decode(errors="replace"), logprobs.logprob, list(raw), top)
