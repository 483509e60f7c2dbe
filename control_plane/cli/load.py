"""A load client for any server with OpenAI's completions API. Of Ebb it knows two counters, and does without them.

It shares its machine with what it measures, so it is made to cost little: one event loop, one connection a stream,
and only the fields that are counted are decoded.
"""

import asyncio
import itertools
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import msgspec

from control_plane.cli.errors import CliError
from control_plane.cli.load_figures import Case, Sample, summarise

OnProgress = Callable[[str, int, int], None]

_VOCABULARY = (
    "river stone window garden letter market winter engine bridge orange paper silver candle forest island mirror "
    "basket copper signal harbor meadow pencil rocket saddle temple valley wagon yellow anchor butter carpet dragon"
)
_WORDS = _VOCABULARY.split()
_CALIBRATION_WORDS = (32, 96)
_SEED = 20_260_101
_HTTP_S, _HOST_S, _MODEL_S = (
    "ebb:runner_http_cpu_seconds_total",
    "vllm:engine_host_seconds_total",
    "vllm:engine_executor_seconds_total",
)
_COUNTER = re.compile(rf"^({_HTTP_S}|{_HOST_S}|{_MODEL_S})(?:\{{[^}}]*\}})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class LoadPlan:
    """What to send where. `url` is the API's base, with or without `/v1`."""

    url: str
    key: str
    model: str | None
    concurrency: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    requests_per_case: int | None

    @property
    def base(self) -> str:
        base = self.url.rstrip("/")
        return base if base.endswith("/v1") else f"{base}/v1"

    def requests(self, concurrency: int) -> int:
        """At least ten, and two for each stream, so that streams also begin while others run."""
        return self.requests_per_case or max(10, 2 * concurrency)


class _Choice(msgspec.Struct):
    text: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


async def run_plan(plan: LoadPlan, on_progress: OnProgress) -> list[Case]:
    """Run each case after the other. Raises CliError where the server cannot be measured at all."""
    limit = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600)
    headers = {"Authorization": f"Bearer {plan.key}"} if plan.key else {}
    async with aiohttp.ClientSession(connector=limit, timeout=timeout, headers=headers) as session:
        client = LoadClient(plan, session, await _model(plan, session))
        words = await client.calibrate()
        return [await client.run_case(number, words, on_progress) for number in plan.concurrency]


async def _model(plan: LoadPlan, session: aiohttp.ClientSession) -> str:
    if plan.model:
        return plan.model
    try:
        async with session.get(f"{plan.base}/models") as response:
            body = await response.json(content_type=None)
            if response.status != 200:
                raise CliError(f"{plan.base}/models answered {response.status}: {_message(body)}")
            return str(body["data"][0]["id"])
    except aiohttp.ClientError as error:
        raise CliError(f"{plan.base} does not answer ({error}). Check --url.") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CliError(f"{plan.base}/models lists no model. Name one with --model.") from error


class LoadClient:
    """Sends requests to one server. Prompts are distinct over its whole life, so that no prefix cache helps."""

    def __init__(self, plan: LoadPlan, session: aiohttp.ClientSession, model: str) -> None:
        self._plan = plan
        self._session = session
        self._model = model
        self._numbers = itertools.count(1)

    async def calibrate(self) -> int:
        """How many words make a prompt of the wanted length; also wakes the server. Raises CliError."""
        points: list[tuple[int, int]] = []
        for words in _CALIBRATION_WORDS:
            sample = await self._request(words, 1)
            if sample.error is not None:
                raise CliError(f"{self._plan.base}/completions cannot be measured: {sample.error}")
            points.append((words, sample.prompt_tokens))
        (few, few_tokens), (many, many_tokens) = points
        slope = (many_tokens - few_tokens) / (many - few)
        if slope <= 0:  # the server counts no prompt tokens: a word is about a token
            return self._plan.prompt_tokens
        return max(1, round(few + (self._plan.prompt_tokens - few_tokens) / slope))

    async def run_case(self, concurrency: int, words: int, on_progress: OnProgress) -> Case:
        """Keep `concurrency` streams busy until all requests of the case are done."""
        total = self._plan.requests(concurrency)
        left = iter(range(total))
        samples: list[Sample] = []
        label = f"concurrency {concurrency}"
        on_progress(label, 0, total)
        before = await self._counters()

        async def stream() -> None:
            for _ in left:
                samples.append(await self._request(words, self._plan.new_tokens))
                on_progress(label, len(samples), total)

        await asyncio.gather(*(stream() for _ in range(min(concurrency, total))))
        return _with_shares(summarise(concurrency, samples), before, await self._counters())

    async def _counters(self) -> dict[str, float]:
        """Seconds by counter, where the server tells them; none where it has no such metrics or does not show them."""
        try:
            async with self._session.get(f"{self._plan.base.removesuffix('/v1')}/metrics") as response:
                text = await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            return {}
        return {name: float(value) for name, value in _COUNTER.findall(text)}

    async def _request(self, words: int, new_tokens: int) -> Sample:
        body = {
            "model": self._model,
            "prompt": prompt(next(self._numbers), words),
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            # Not OpenAI's, but servers of open models know one or both and pass over what they do not know: every
            # answer gets the length that was asked for.
            "ignore_eos": True,
            "min_tokens": new_tokens,
        }
        try:
            return await self._send(body, new_tokens)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            # some servers close a connection after an answer without saying so: once more, on another one
            return await self._send(body, new_tokens, again=True)

    async def _send(self, body: dict[str, Any], new_tokens: int, *, again: bool = False) -> Sample:
        """One request. A connection that breaks before the answer began is raised, unless this is `again`."""
        sample = Sample(sent=time.monotonic())
        answered = False
        try:
            async with self._session.post(f"{self._plan.base}/completions", json=body) as response:
                answered = True
                if response.status != 200:
                    sample.error = f"HTTP {response.status}: {_message(await _body(response))}"
                    return sample
                await _read_stream(response, sample, new_tokens)
        except (aiohttp.ClientError, TimeoutError) as error:
            if (
                not answered
                and not again
                and isinstance(error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError)
            ):
                raise
            sample.error = str(error) or type(error).__name__
        return sample


async def _read_stream(response: aiohttp.ClientResponse, sample: Sample, most: int) -> None:
    async for data, arrived in _events(response):
        if data == b"[DONE]":
            if not sample.arrivals:
                sample.error = "the stream ended without text"
            return
        try:
            chunk = _decode_chunk(data)
        except msgspec.MsgspecError as error:
            sample.error = f"an event that cannot be read ({error})"
            return
        if chunk.error is not None:
            sample.error = _message({"error": chunk.error})
            return
        if chunk.usage is not None:
            sample.prompt_tokens = chunk.usage.prompt_tokens
            sample.new_tokens = chunk.usage.completion_tokens
        # A token that is only half a character comes as an empty text: it came all the same.
        # What comes beyond the last one is only the reason of the end, in an event of its own.
        if chunk.choices and len(sample.arrivals) < most:
            sample.arrivals.append(arrived)
    sample.error = "the stream broke off"


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[bytes, float]]:
    """(data, when it came) of each server-sent event. Several may come in one piece, at the same time."""
    rest = b""
    async for piece in response.content.iter_any():
        arrived = time.monotonic()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip(), arrived


def _with_shares(case: Case, before: dict[str, float], after: dict[str, float]) -> Case:
    """With what HTTP and the engine's own Python took of the steps in between, where the server told it."""
    if not all(name in counters for name in (_HTTP_S, _HOST_S, _MODEL_S) for counters in (before, after)):
        return case
    http_s, host_s, model_s = (after[name] - before[name] for name in (_HTTP_S, _HOST_S, _MODEL_S))
    steps_s = host_s + model_s
    if steps_s <= 0:
        return case
    return replace(case, http_share=round(http_s / steps_s, 4), host_share=round(host_s / steps_s, 4))


def prompt(number: int, words: int) -> str:
    """A prompt of so many words, the same for the same number and different from its first word on for others."""
    choose = random.Random(_SEED + number)  # noqa: S311 # nothing here is a secret
    return " ".join([str(number), *choose.choices(_WORDS, k=words - 1)])


async def _body(response: aiohttp.ClientResponse) -> Any:
    try:
        return await response.json(content_type=None)
    except ValueError:
        # An error page of something in between.
        return await response.text()


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
