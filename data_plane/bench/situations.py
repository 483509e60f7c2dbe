"""Two situations that users notice: a shared beginning that comes again, and a long prompt among streams."""

import time

from data_plane.bench.cases import Timeline, make_engine, percentile, random_prompt
from data_plane.engine.engine import Engine
from data_plane.engine.sampling import SamplingParams
from data_plane.execution.loaded import Loaded

SHARED_TOKENS = 1500
OWN_TOKENS = 64
STREAMS = 8
LONG_PROMPT = 4096
CALM_STEPS = 60


def run_prefix(loaded: Loaded) -> dict[str, float]:
    """TTFT in ms of two requests with one system prompt of 1,500 tokens, one after the other, and their ratio."""
    engine = make_engine(loaded, paced=True, caching=True)
    vocabulary = loaded.model_config.vocab_size
    shared = random_prompt(int(time.time()), SHARED_TOKENS, vocabulary)
    times: list[float] = []
    for turn in range(2):
        began = time.perf_counter()
        prompt = shared + random_prompt(turn + 1, OWN_TOKENS, vocabulary)
        engine.add(str(turn), prompt, SamplingParams(max_tokens=1, temperature=0.0))
        _drain(engine)
        times.append((time.perf_counter() - began) * 1e3)
    return {"shared_tokens": SHARED_TOKENS, "first_ms": times[0], "second_ms": times[1], "ratio": times[1] / times[0]}


def run_mixed(loaded: Loaded) -> dict[str, float]:
    """ITL p99 in ms of 8 streams before and while a prompt of 4,096 tokens is computed, and their ratio."""
    engine = make_engine(loaded, paced=True)
    vocabulary = loaded.model_config.vocab_size
    long = min(LONG_PROMPT, loaded.config.max_model_len - 2)
    streams = [str(stream) for stream in range(STREAMS)]
    endless = SamplingParams(max_tokens=loaded.config.max_model_len, temperature=0.0, ignore_eos=True)
    for stream in streams:
        engine.add(stream, random_prompt(int(stream) + 7, 128, vocabulary), endless)
    line = Timeline(time.perf_counter())
    while len(line.times) < STREAMS:
        line.step(engine)
    calm_from = time.perf_counter()
    for _ in range(CALM_STEPS):
        line.step(engine)
    arrived = time.perf_counter()
    engine.add("long", random_prompt(99, long, vocabulary), SamplingParams(max_tokens=1, temperature=0.0))
    while "long" not in line.times:
        line.step(engine)
    done = time.perf_counter()
    for stream in streams:
        engine.abort(stream)
    _drain(engine)
    calm = line.gaps(calm_from, arrived, streams)
    busy = line.gaps(arrived, done, streams)
    return {
        "streams": STREAMS,
        "prompt_tokens": long,
        "calm_p50_ms": percentile(calm, 0.5) * 1e3,
        "calm_p99_ms": percentile(calm, 0.99) * 1e3,
        "busy_p50_ms": percentile(busy, 0.5) * 1e3,
        "busy_p99_ms": percentile(busy, 0.99) * 1e3,
        "ratio": percentile(busy, 0.99) / percentile(calm, 0.99),
        "ttft_ms": (done - arrived) * 1e3,
    }


def _drain(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
