"""POST /v1/completions: texts or token ids to prompts, outputs to texts, with `echo` and its log-probabilities."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web
from msgspec import UNSET, UnsetType

from data_plane.engine.outputs import TokenLogprobs
from data_plane.engine.prefix_cache import Labels
from data_plane.runner.detokenizer import Detokenizer
from data_plane.runner.engine_loop import Origin
from data_plane.runner.generation import Branch, Generation
from data_plane.runner.note import NOTE, created
from data_plane.runner.requests import check_tokens, room_for, sampling
from data_plane.runner.respond import respond
from data_plane.runner.resume import take_up
from data_plane.runner.served import ServedModel
from data_plane.runner.tokenizer import Tokenizer
from data_plane.runner.transcript import Delta, Entry, Transcript
from data_plane.wire.openai import CompletionRequest, parse_completion
from data_plane.wire.openai_answers import Completion, CompletionChoice, CompletionLogprobs, Usage
from data_plane.wire.resume import Said


@dataclass(frozen=True)
class _Prompt:
    tokens: list[int]
    echoed: str
    """What stands before the answer where `echo` asks for the prompt, else nothing."""
    labels: Labels | None


async def completions(http: web.Request, served: ServedModel) -> web.StreamResponse:
    """Answers one completion request, which may have several prompts."""
    return await answer_completion(http, served, await http.read())


async def answer_completion(
    http: web.Request, served: ServedModel, raw: bytes, said: Sequence[Said] = ()
) -> web.StreamResponse:
    """The answer to the request in `raw`, from where `said` has it."""
    started_at = time.monotonic()
    request = parse_completion(raw)
    tenant = http[NOTE].tenant
    prompts = [await _prompt(served, request, prompt, tenant) for prompt in request.prompts]
    branches: list[Branch] = []
    echoed: list[str] = []
    for prompt in prompts:
        limit = _limit(served, request, prompt.tokens)
        with_prompt = request.logprobs if request.echo else None
        for params in sampling(
            request, served, max_tokens=limit, logprobs=request.logprobs, prompt_logprobs=with_prompt
        ):
            branches.append(Branch(prompt.tokens, params, _transcript(served, request, prompt), prompt.labels))
            echoed.append(prompt.echoed)
    take_up(branches, said, with_logprobs=request.logprobs is not None)
    origin = Origin(tenant, request.priority or 0, request.cache_salt or "")
    generation = Generation(served.engine, served.metrics, http[NOTE].request_id, branches, started_at, origin)
    http[NOTE].generation = generation
    shape = _CompletionShape(f"cmpl-{http[NOTE].request_id}", created(http), served, request, echoed)
    return await respond(http, generation, shape, request, started_at)


async def _prompt(served: ServedModel, request: CompletionRequest, prompt: str | list[int], tenant: str) -> _Prompt:
    if not isinstance(prompt, str):
        check_tokens(served, prompt, "prompt")
    encoded = await served.encode_prompt(prompt, tenant, request.cache_salt)
    if isinstance(prompt, str) or not request.echo:
        return _Prompt(encoded.tokens, prompt if isinstance(prompt, str) and request.echo else "", encoded.labels)
    skip = request.skip_special_tokens is not False
    return _Prompt(prompt, served.tokenizer.decode(prompt, skip_special_tokens=skip), encoded.labels)


def _limit(served: ServedModel, request: CompletionRequest, tokens: list[int]) -> int:
    if request.max_tokens is not None:
        return room_for(served, tokens, request.max_tokens, param="prompt", limit_param="max_tokens")
    # the default was nobody's wish, so it gives way to the context
    return min(request.limit, room_for(served, tokens, None, param="prompt", limit_param="max_tokens"))


def _transcript(served: ServedModel, request: CompletionRequest, prompt: _Prompt) -> Transcript:
    skip = request.skip_special_tokens is not False
    return Transcript(served.tokenizer, request.stop_texts, skip_special_tokens=skip, offset=len(prompt.echoed))


class _CompletionShape:
    def __init__(
        self, answer_id: str, created: int, served: ServedModel, request: CompletionRequest, echoed: list[str]
    ) -> None:
        self._id = answer_id
        self._created = created
        self._model = served.name
        self._tokenizer = served.tokenizer
        self._with_logprobs = request.logprobs is not None
        self._with_ids = bool(request.return_token_ids)
        self._echoes = bool(request.echo)
        self._echoed = echoed

    def opening(self, index: int, branch: Branch) -> list[CompletionChoice]:
        if not self._echoes:
            return []
        return [CompletionChoice(index, self._echoed[index], self._block(self._prompt_entries(branch)))]

    def pieces(self, index: int, delta: Delta) -> list[CompletionChoice]:
        block = self._block(delta.entries)
        return [CompletionChoice(index, delta.text, block, delta.finish_reason, self._token_ids(delta))]

    def chunk(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(self._id, self._created, self._model, choices, usage)

    def whole(self, branches: list[Branch], deltas: list[Delta], usage: Usage) -> Completion:
        choices: list[CompletionChoice] = []
        for index, (branch, delta) in enumerate(zip(branches, deltas, strict=True)):
            entries = [*self._prompt_entries(branch), *delta.entries] if self._echoes else delta.entries
            text = self._echoed[index] + delta.text
            choices.append(
                CompletionChoice(index, text, self._block(entries), delta.finish_reason, self._token_ids(delta))
            )
        return Completion(self._id, self._created, self._model, choices, usage)

    def _token_ids(self, delta: Delta) -> list[int] | UnsetType:
        return [entry.token_id for entry in delta.entries] if self._with_ids else UNSET

    def _prompt_entries(self, branch: Branch) -> list[Entry]:
        if not self._with_logprobs:
            return []
        known: Sequence[TokenLogprobs | None] = branch.prompt_logprobs or [None] * len(branch.prompt)
        detokenizer = Detokenizer(self._tokenizer.token_bytes)
        entries: list[Entry] = []
        offset = 0
        for token_id, logprobs in zip(branch.prompt, known, strict=True):
            entries.append(Entry(token_id, offset, logprobs))
            if token_id not in self._tokenizer.special:
                offset += len(detokenizer.feed(token_id))
        return entries

    def _block(self, entries: list[Entry]) -> CompletionLogprobs | None:
        if not self._with_logprobs:
            return None
        block = CompletionLogprobs()
        for entry in entries:
            block.tokens.append(_text(self._tokenizer, entry.token_id))
            block.text_offset.append(entry.offset)
            block.token_logprobs.append(entry.logprobs.logprob if entry.logprobs else None)
            block.top_logprobs.append(_top(self._tokenizer, entry.logprobs) if entry.logprobs else None)
        return block


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # a part of a character: written so that no two tokens look alike
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _top(tokenizer: Tokenizer, logprobs: TokenLogprobs) -> dict[str, float]:
    """By text, the chosen token among them. Where two tokens have one text, the likelier stays."""
    top: dict[str, float] = {}
    for token_id, logprob in (*logprobs.top, (logprobs.token_id, logprobs.logprob)):
        text = _text(tokenizer, token_id)
        top[text] = max(logprob, top.get(text, logprob))
    return top
