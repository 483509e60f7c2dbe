"""One case: so many streams with prompts and answers of so many tokens, timed step by step. Knows nothing of reports.

Prompts are distinct random tokens, answers are greedy and ignore the end token, nothing is guessed or cached: what is
measured is the arithmetic. Prompts are computed before anybody decodes for long, so that the decode phase is clean: it
lasts from the moment when every stream has its first token to the moment when the first one ends.
"""

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import psutil

from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from data_plane.execution.loaded import Loaded
from data_plane.execution.native_runner import NativeRunner

PARTS = ("matmul", "attention", "sampling", "rest")
UNPACED = 1e9
"""As `max_itl_growth`: a prompt takes all the room that a step has."""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """Times in ms, rates in tokens a second over all streams, memory in MB. `step_ms` splits a decode step.

    `host` is what the step waits for the engine, `packing` for the executor's Python. `hidden_ms`: what the
    host did of a decode step while the device ran.
    """

    concurrency: int
    prompt_tokens: int
    new_tokens: int
    prefill_tps: float
    decode_tps: float
    ttft_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    resident_mb: float
    step_ms: dict[str, float]
    hidden_ms: float


@dataclass(slots=True)
class _Marks:
    """What stood on the clocks at one moment."""

    at: float
    steps: int
    host_s: float
    executor_s: float
    overlapped_s: float
    parts: dict[str, float]


@dataclass(slots=True)
class Timeline:
    """When each stream got its tokens, in seconds of one clock."""

    began: float
    times: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def step(self, engine: Engine) -> list[Output]:
        """One step, its tokens noted. ValueError where a request fails."""
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            if output.error is not None:
                raise ValueError(output.error)
            if output.token_id is not None:
                self.times.setdefault(output.request_id, []).append(now)
        return outputs

    def gaps(self, since: float = 0.0, until: float = float("inf"), only: Sequence[str] = ()) -> list[float]:
        """Times between two tokens of a stream, of those that ended between `since` and `until`."""
        chosen = [self.times[name] for name in only] if only else list(self.times.values())
        return [
            after - before for times in chosen for before, after in itertools.pairwise(times) if since < after <= until
        ]


def make_engine(loaded: Loaded, *, paced: bool = False, caching: bool = False) -> Engine:
    """A fresh engine over the executor, without guesses."""
    growth = loaded.config.max_itl_growth if paced else UNPACED
    config = replace(loaded.config, max_itl_growth=growth, enable_prefix_caching=caching, num_speculative_tokens=0)
    return Engine(config, loaded.executor)


def random_prompt(seed: int, count: int, vocab_size: int) -> list[int]:
    """Distinct for each seed, and the same in each run."""
    source = random.Random(seed)  # noqa: S311  no secret
    return [source.randrange(vocab_size // 2) for _ in range(count)]


def run_case(
    loaded: Loaded, concurrency: int, prompt_tokens: int, new_tokens: int, on_tokens: Callable[[int], None]
) -> CaseResult:
    """ValueError (from the engine) where the model's context or the KV cache is too small for the case."""
    engine = make_engine(loaded)
    line = Timeline(time.perf_counter())
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    for stream in range(concurrency):
        seed = 1_000_003 * prompt_tokens + 1009 * concurrency + stream
        engine.add(str(stream), random_prompt(seed, prompt_tokens, loaded.model_config.vocab_size), params)
    start: _Marks | None = None
    end: _Marks | None = None
    decoded = 0
    while engine.has_work:
        outputs = line.step(engine)
        now = time.perf_counter()
        made = sum(output.token_id is not None for output in outputs)
        on_tokens(made)
        decoded += made if start is not None and end is None else 0
        if start is None and len(line.times) == concurrency:
            start = _marks(engine, loaded, now)
        if start is not None and end is None and any(output.finish_reason for output in outputs):
            end = _marks(engine, loaded, now)
    assert start is not None and end is not None, "every stream gives a token and ends"
    return _result(line, start, end, decoded, (concurrency, prompt_tokens, new_tokens))


def _marks(engine: Engine, loaded: Loaded, now: float) -> _Marks:
    stats = engine.stats()
    runner = loaded.executor
    seconds = runner.decoder.seconds if isinstance(runner, NativeRunner) else None
    parts = {name: float(getattr(seconds, name)) for name in PARTS} if seconds is not None else {}
    return _Marks(now, stats.steps, stats.host_s, stats.executor_s, stats.overlapped_s, parts)


def _result(line: Timeline, start: _Marks, end: _Marks, decoded: int, size: tuple[int, int, int]) -> CaseResult:
    concurrency, prompt_tokens, new_tokens = size
    steps = max(1, end.steps - start.steps)
    took = max(end.at - start.at, 1e-9)
    gaps = line.gaps(start.at, end.at) or [0.0]
    split = {"host": (end.host_s - start.host_s) / steps * 1e3}
    split |= {name: (end.parts[name] - start.parts[name]) / steps * 1e3 for name in end.parts}
    if end.parts:
        split["packing"] = (end.executor_s - start.executor_s) / steps * 1e3 - sum(split[name] for name in end.parts)
    return CaseResult(
        concurrency,
        prompt_tokens,
        new_tokens,
        prefill_tps=concurrency * prompt_tokens / (start.at - line.began),
        decode_tps=decoded / took,
        ttft_ms=median(times[0] - line.began for times in line.times.values()) * 1e3,
        itl_p50_ms=percentile(gaps, 0.5) * 1e3,
        itl_p99_ms=percentile(gaps, 0.99) * 1e3,
        resident_mb=psutil.Process().memory_info().rss / 1e6,
        step_ms=split,
        hidden_ms=(end.overlapped_s - start.overlapped_s) / steps * 1e3,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
