"""SmolLM2-135M-Instruct, from its artifact: neither batch size nor chunking changes greedy text, and it makes sense.

Exact equality is asserted in float32, where the largest logit leads by far more than the order of a sum can move it.
In bfloat16 a logit has 8 significant bits, so two tokens may tie, and which comes first depends on the shape of the
matrix product: there the log-probabilities must agree within `BF16_LOGPROB_TOLERANCE`, and the text must make sense.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from data_plane.execution import Loaded, LoadOptions, load

BF16_LOGPROB_TOLERANCE = 0.15
"""Natural log. Logits near 16 have steps of 1/16 to 1/8 in bfloat16."""

QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours.",
    "What is two plus two?",
    "Name an animal that can fly.",
    "Why is the sky blue?",
    "Translate 'good morning' into French.",
    "Who wrote Hamlet?",
    "What do bees make?",
    "Give a synonym of happy.",
    "How many days has a week?",
    "What is the opposite of hot?",
    "Name a planet.",
    "Finish: once upon a time",
    "What is water made of?",
    "Say hello politely.",
]


def start(artifact: Path, dtype: str, budget: int = 512) -> Loaded:
    phases: list[str] = []
    options = LoadOptions(
        dtype=dtype,
        max_model_len=1024,
        max_num_seqs=16,
        max_num_batched_tokens=budget,
        kv_cache_bytes=400 << 20,
        # with two, each operator waits for the slower core: minutes, where tests run beside each other
        threads=1,
    )
    loaded = load(artifact, options, phases.append)
    assert phases == ["loading", "mapped", "warming"]
    return loaded


@pytest.fixture(scope="module")
def float32(smollm2_artifact: Path) -> Loaded:
    return start(smollm2_artifact, "float32")


@pytest.fixture(scope="module")
def bfloat16(smollm2_artifact: Path) -> Loaded:
    return start(smollm2_artifact, "bfloat16")


@pytest.fixture(scope="module")
def tokenizer(smollm2_artifact: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2_artifact / "tokenizer.json"))


def ids(tokenizer: Tokenizer, question: str) -> list[int]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(text, add_special_tokens=False).ids


def answers(loaded: Loaded, asked: Sequence[list[int]], params: SamplingParams) -> list[list[Output]]:
    engine = Engine(loaded.config, loaded.executor)
    for at, prompt in enumerate(asked):
        engine.add(str(at), prompt, params)
    got: list[list[Output]] = [[] for _ in asked]
    while engine.has_work:
        for output in engine.step():
            got[int(output.request_id)].append(output)
    engine.check()
    return got


def tokens(outputs: Sequence[Output]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]


GREEDY = SamplingParams(max_tokens=10, temperature=0.0)


def test_greedy_text_is_the_same_at_batch_1_and_16(float32: Loaded, tokenizer: Tokenizer) -> None:
    asked = [ids(tokenizer, question) for question in QUESTIONS]
    together = [tokens(each) for each in answers(float32, asked, GREEDY)]
    alone = [tokens(answers(float32, [prompt], GREEDY)[0]) for prompt in asked]
    assert together == alone
    assert "Paris" in tokenizer.decode(together[0])


def test_greedy_text_is_the_same_with_whole_and_chunked_prefill(
    smollm2_artifact: Path, float32: Loaded, tokenizer: Tokenizer
) -> None:
    asked = [ids(tokenizer, " ".join(QUESTIONS[at:])) for at in (0, 12)]
    whole = answers(float32, asked, GREEDY)
    chunked = answers(start(smollm2_artifact, "float32", budget=23), asked, GREEDY)
    assert [tokens(each) for each in chunked] == [tokens(each) for each in whole]


def test_bfloat16_agrees_with_float32_and_with_itself(float32: Loaded, bfloat16: Loaded, tokenizer: Tokenizer) -> None:
    """The same 100 tokens, scored three ways: float32, bfloat16 alone, bfloat16 beside seven others."""
    prompt = ids(tokenizer, " ".join(QUESTIONS))[:100]
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    exact = [entry.logprob for entry in answers(float32, [prompt], params)[0][0].prompt_logprobs or () if entry]
    alone = [entry.logprob for entry in answers(bfloat16, [prompt], params)[0][0].prompt_logprobs or () if entry]
    crowd = answers(bfloat16, [prompt[:50]] * 7 + [prompt], params)[7][0]
    beside = [entry.logprob for entry in crowd.prompt_logprobs or () if entry]
    assert len(exact) == len(alone) == len(beside) == 99
    errors = [abs(a - b) for a, b in zip(exact, alone, strict=True)]
    assert sum(errors) / len(errors) < BF16_LOGPROB_TOLERANCE / 2
    differences = [abs(a - b) for a, b in zip(alone, beside, strict=True)]
    assert sum(differences) / len(differences) < BF16_LOGPROB_TOLERANCE / 2
    # ln of perplexity: the text is English, and a broken model would score it near ln 49152 = 10.8
    assert -sum(alone) / len(alone) < 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_knows_the_capital_of_france(dtype: str, request: pytest.FixtureRequest, tokenizer: Tokenizer) -> None:
    loaded: Loaded = request.getfixturevalue(dtype)
    prompt = tokenizer.encode("The capital of France is", add_special_tokens=False).ids
    text = tokenizer.decode(tokens(answers(loaded, [prompt], GREEDY)[0]))
    assert text.startswith(" Paris"), text
    ended = answers(loaded, [ids(tokenizer, QUESTIONS[0])], GREEDY)[0]
    assert tokenizer.decode(tokens(ended)).strip() == "The capital of France is Paris."
    assert ended[-1].finish_reason == "stop"
