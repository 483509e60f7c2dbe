"""What an artifact makes of the fixed text, and how fast it is, through the engine that will serve it.

Knows nothing of where the artifact came from, nor of what its figures decide.
"""

import gc
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from data_plane.evaluation.text import prompt_tokens
from data_plane.execution import Loaded, LoadOptions, load
from data_plane.weights.mapped import read_tokenizer_files
from data_plane.weights.quality import Position, QualityError, Record

ANSWER_TOKENS = 64
TOP_TOKENS = 20
"""Log-probabilities a position: as many as an engine gives."""
ROWS = 32
SPEED_PROMPT, SPEED_STEPS = 512, 16
"""Tokens of the prefill that is timed, and decode steps."""
_MAX_MODEL_LEN = SPEED_PROMPT + 2 * SPEED_STEPS
SPEED_WEIGHTS = {"decode_1_tps": 0.4, "decode_8_tps": 0.4, "prefill_tps": 0.2}
"""Exponents of the score: to serve is mostly to decode, alone or for a few at once, and to read some."""


def record(folder: Path, device: str, tell: Callable[[int, int], None]) -> Record:
    """Every prompt's probabilities and its greedy answer, all rows together. `tell` is given tokens done and in all.

    QualityError where the model fails on a prompt, as with weights that give no numbers.
    """
    with _loaded(folder, device) as loaded:
        prompts = _prompts(folder, loaded)
        if not prompts:
            raise QualityError("the tokenizer makes nothing of the fixed text, so quality cannot be measured")
        params = SamplingParams(
            max_tokens=ANSWER_TOKENS, temperature=0.0, prompt_logprobs=TOP_TOKENS, ignore_eos=True, seed=0
        )
        outputs = _run(loaded, prompts, params, tell)
    return Record(
        [_positions(output) for output in outputs],
        [[o.token_id for o in output if o.token_id is not None] for output in outputs],
    )


def speed(folder: Path, device: str) -> dict[str, float]:
    """Tokens a second of a prefill of 512, of decoding alone and of 8 rows; `score`: their weighted geometric mean."""
    with _loaded(folder, device) as loaded:
        length = min(SPEED_PROMPT, loaded.config.max_model_len - SPEED_STEPS - 1)
        vocabulary = loaded.model_config.vocab_size
        prompt = [3 + at * 7919 % max(1, vocabulary - 3) for at in range(max(2, length))]
        prompt = [token % vocabulary for token in prompt]
        _timed_decode(loaded, prompt[:2], 1)  # first calls are slow
        figures = {
            "prefill_tps": len(prompt) / min(_timed_prefill(loaded, prompt) for _ in range(2)),
            "decode_1_tps": _timed_decode(loaded, prompt[:16], 1),
            "decode_8_tps": _timed_decode(loaded, prompt[:16], 8),
        }
    score = math.prod(figures[name] ** weight for name, weight in SPEED_WEIGHTS.items())
    return {name: float(f"{value:.4g}") for name, value in {**figures, "score": score}.items()}


@contextmanager
def _loaded(folder: Path, device: str) -> Generator[Loaded]:
    """The artifact ready to run; its memory is given back afterwards."""
    options = LoadOptions(
        device=device, max_model_len=_MAX_MODEL_LEN, max_num_seqs=ROWS, max_num_batched_tokens=SPEED_PROMPT
    )
    loaded = load(folder, options)
    try:
        yield loaded
    finally:
        del loaded
        gc.collect()


def _prompts(folder: Path, loaded: Loaded) -> list[list[int]]:
    tokenizer = Tokenizer.from_str(read_tokenizer_files(folder)[0].decode())
    longest = max(2, loaded.config.max_model_len // 2)
    return [ids[:longest] for ids in prompt_tokens(tokenizer, vocab_size=loaded.model_config.vocab_size)]


def _run(
    loaded: Loaded, prompts: Sequence[Sequence[int]], params: SamplingParams, tell: Callable[[int, int], None]
) -> list[list[Output]]:
    """Each prompt's outputs, in order."""
    engine = Engine(loaded.config, loaded.executor)
    for at, prompt in enumerate(prompts):
        engine.add(str(at), prompt, params)
    outputs: list[list[Output]] = [[] for _ in prompts]
    room = loaded.config.max_model_len
    total = sum(min(room, len(prompt) + params.max_tokens) for prompt in prompts)
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise QualityError(f"the model fails on the fixed text: {output.error}")
            outputs[int(output.request_id)].append(output)
        tell(min(engine.stats().computed_tokens, total), total)
    tell(total, total)
    return outputs


def _positions(outputs: Sequence[Output]) -> list[Position]:
    """What the first output of a request says of its prompt, whose first token nothing precedes."""
    entries = next(output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None)
    return [Position(entry.token_id, entry.logprob, dict(entry.top)) for entry in entries if entry is not None]


def _timed_prefill(loaded: Loaded, prompt: Sequence[int]) -> float:
    """Seconds to a prompt's first token."""
    started = time.perf_counter()
    _run(loaded, [prompt], SamplingParams(max_tokens=1, temperature=0.0), _silent)
    return time.perf_counter() - started


def _timed_decode(loaded: Loaded, prompt: Sequence[int], rows: int) -> float:
    """Tokens a second of `rows` that all decode: the time after the step that prefills them."""
    engine = Engine(replace(loaded.config, enable_prefix_caching=False, num_speculative_tokens=0), loaded.executor)
    params = SamplingParams(max_tokens=SPEED_STEPS, temperature=0.0, ignore_eos=True)
    for at in range(rows):
        engine.add(str(at), prompt, params)
    made = len(engine.step())
    started = time.perf_counter()
    while engine.has_work:
        made += len(engine.step())
    return (made - rows) / (time.perf_counter() - started)


def _silent(done: int, total: int) -> None:
    """Nobody waits for a measurement this short."""
