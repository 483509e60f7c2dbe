"""The gate on tiny real artifacts: whatever quantization, it is run, compared and timed through the serving engine."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from data_plane.evaluation.calibrate import input_ranges
from data_plane.evaluation.judge import LocalJudge
from data_plane.evaluation.text import calibration_tokens, prompt_tokens
from data_plane.weights.mapped import open_mapped, read_tokenizer_files
from data_plane.weights.quality import compare


def test_the_texts_are_apart(smollm2_artifact: Path) -> None:
    tokenizer = Tokenizer.from_str(read_tokenizer_files(smollm2_artifact)[0].decode())
    prompts, others = (read(tokenizer, vocab_size=49152) for read in (prompt_tokens, calibration_tokens))
    assert (len(prompts), len(others)) == (32, 12)
    assert all(32 <= len(ids) <= 96 for ids in [*prompts, *others])
    assert not {tuple(ids) for ids in prompts} & {tuple(ids) for ids in others}
    assert prompt_tokens(tokenizer, vocab_size=10) == []


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    from data_plane.weights.artifact import Origin, write_artifact
    from data_plane.weights.gguf_model import open_gguf_model
    from tests.data_plane.weights.tiny_gguf import write_gguf

    write_gguf(tmp_path / "m.gguf")
    model = open_gguf_model(tmp_path / "m.gguf", "bfloat16")
    return write_artifact(tmp_path, model.config, model.tokenizer, model.read_tensor, Origin("x", "0" * 64, 1, None))


def test_a_record_is_whole_and_repeats(tiny: Path) -> None:
    judge, told = LocalJudge(), list[tuple[int, int]]()
    record = judge.record(tiny, lambda done, total: told.append((done, total)))
    assert len(record.prompts) == len(record.answers) == 32
    assert all(len(answer) == 64 for answer in record.answers)
    assert all(len(position.top) == 20 for positions in record.prompts for position in positions)
    assert told[-1][0] == told[-1][1] and all(done <= total for done, total in told)
    figures = compare(record, judge.record(tiny, lambda done, total: None))
    assert (figures["perplexity_ratio"], figures["mean_kl"], figures["greedy_agreement"]) == (1.0, 0.0, 1.0)


def test_speed(tiny: Path) -> None:
    figures = LocalJudge().speed(tiny)
    assert set(figures) == {"prefill_tps", "decode_1_tps", "decode_8_tps", "score"}
    assert all(value > 0 for value in figures.values())
    # a mean lies between its least and its largest
    cases = [value for name, value in figures.items() if name != "score"]
    assert min(cases) * 0.99 <= figures["score"] <= max(cases) * 1.01


def test_ranges_name_what_stands_behind_a_norm(tiny: Path) -> None:
    ranges = input_ranges(tiny, "cpu")
    config = open_mapped(tiny).config
    names = {f"layers.{i}.{m}.weight" for i in range(2) for m in ("attention.qkv", "mlp.gate_up", "mlp.down")}
    assert set(ranges) == names | {"lm_head.weight"}
    assert ranges["layers.1.mlp.down.weight"].shape == (config.intermediate_size,)
    assert all(bool((values > 0).any()) for values in ranges.values())


def test_fp8_needs_a_gpu() -> None:
    judge = LocalJudge()
    if judge.device == "cpu":
        assert "no CUDA device; choose int8 or int4" in (judge.unable("fp8") or "")
    assert judge.unable("int8") is None
