"""A load client for any server with OpenAI's completions API. Knows nothing of Ebb.

It shares its machine with what it measures, so it is made to cost little: one event loop, one connection a stream,
and only the fields that are counted are decoded.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import msgspec

from control_plane.cli.errors import CliError

OnProgress = Callable[[str, int, int], None]

_VOCABULARY = (
    "river stone window garden letter market winter engine bridge orange paper silver candle forest island mirror "
    "basket copper signal harbor meadow pencil rocket saddle temple valley wagon yellow anchor butter carpet dragon"
)
_WORDS = _VOCABULARY.split()
_CALIBRATION_WORDS = (32, 96)
_SEED = 20_260_101


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


@dataclass(frozen=True)
class Case:
    """One concurrency's figures: times in ms as the client saw them, rates in tokens a second."""

    concurrency: int
    decode_tps: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    requests: int
    errors: int
    prompt_tokens: float = 0.0
    first_error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The figures without what is only for people."""
        return {name: value for name, value in asdict(self).items() if name not in ("prompt_tokens", "first_error")}


@dataclass
class Sample:
    """One request: when it was sent, when each piece of text came, and what the server counted."""

    sent: float
    arrivals: list[float] = field(default_factory=list[float])
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None

    @property
    def ended(self) -> float:
        return self.arrivals[-1] if self.arrivals else self.sent


class _Choice(msgspec.Struct):
    text: str = ""


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

        async def stream() -> None:
            for _ in left:
                samples.append(await self._request(words, self._plan.new_tokens))
                on_progress(label, len(samples), total)

        await asyncio.gather(*(stream() for _ in range(min(concurrency, total))))
        return summarise(concurrency, samples)

    async def _request(self, words: int, new_tokens: int) -> Sample:
        body = {
            "model": self._model,
            "prompt": prompt(next(self._numbers), words),
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            # Not OpenAI's, but what servers of open models know: every answer gets the length that was asked for.
            "ignore_eos": True,
            "min_tokens": new_tokens,
        }
        sample = Sample(sent=time.monotonic())
        try:
            async with self._session.post(f"{self._plan.base}/completions", json=body) as response:
                if response.status != 200:
                    sample.error = f"HTTP {response.status}: {_message(await _body(response))}"
                    return sample
                await _read_stream(response, sample)
        except (aiohttp.ClientError, TimeoutError) as error:
            sample.error = str(error) or type(error).__name__
        return sample


async def _read_stream(response: aiohttp.ClientResponse, sample: Sample) -> None:
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
        if chunk.choices:
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


def prompt(number: int, words: int) -> str:
    """A prompt of so many words, the same for the same number and different from its first word on for others."""
    choose = random.Random(_SEED + number)  # noqa: S311 # nothing here is a secret
    return " ".join([str(number), *choose.choices(_WORDS, k=words - 1)])


def summarise(concurrency: int, samples: Sequence[Sample]) -> Case:
    """The figures of a case. Failed requests count as errors and in nothing else."""
    good = [sample for sample in samples if sample.error is None]
    errors = [sample.error for sample in samples if sample.error is not None]
    waits = sorted(1000 * (sample.arrivals[0] - sample.sent) for sample in good)
    gaps = sorted(1000 * (b - a) for sample in good for a, b in itertools.pairwise(sample.arrivals))
    tokens = sum(sample.new_tokens or len(sample.arrivals) for sample in good)
    span_s = max((s.ended for s in good), default=0.0) - min((s.sent for s in good), default=0.0)
    return Case(
        concurrency=concurrency,
        decode_tps=round(tokens / span_s, 2) if span_s > 0 else 0.0,
        ttft_p50_ms=percentile(waits, 0.50),
        ttft_p99_ms=percentile(waits, 0.99),
        itl_p50_ms=percentile(gaps, 0.50),
        itl_p99_ms=percentile(gaps, 0.99),
        requests=len(samples),
        errors=len(errors),
        prompt_tokens=sum(sample.prompt_tokens for sample in good) / len(good) if good else 0.0,
        first_error=errors[0] if errors else None,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of an ascending list lies, between neighbours by proportion; 0 for an empty one."""
    if not ordered:
        return 0.0
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return round(ordered[low] + (ordered[high] - ordered[low]) * (position - low), 3)


async def _body(response: aiohttp.ClientResponse) -> Any:
    try:
        return await response.json(content_type=None)
    except ValueError:
        # An error page of something in between.
        return await response.text()


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
