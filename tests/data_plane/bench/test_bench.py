"""`python -m data_plane.bench`: figures of a real model in the shape that is promised, sentences for what cannot be."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_plane.bench.bounds import Machine, Work, bound_s
from data_plane.bench.cases import Timeline, percentile

FIELDS = {
    *("concurrency", "prompt_tokens", "new_tokens", "prefill_tps", "decode_tps", "ttft_ms", "itl_p50_ms"),
    *("itl_p99_ms", "resident_mb", "bound_ratio"),
}


def bench(artifact: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_plane.bench", "engine", "--artifact", str(artifact), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=170)


def test_cases_have_the_promised_fields_and_plausible_figures(smollm2_artifact: Path) -> None:
    size = ("--concurrency", "1,3", "--prompt-tokens", "24", "--new-tokens", "6")
    done = bench(smollm2_artifact, *size, "-o", "json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert [case["concurrency"] for case in told["cases"]] == [1, 3]
    for case in told["cases"]:
        assert set(case) >= FIELDS
        assert case["prefill_tps"] > 0 and case["decode_tps"] > 0 and case["resident_mb"] > 100
        assert case["itl_p50_ms"] <= case["itl_p99_ms"]
        # one stream's rate is what its steps take
        steps_s = sum(case["step_ms"].values()) / 1e3
        assert case["decode_tps"] * steps_s == pytest.approx(case["concurrency"], rel=0.7)
        if told["machine"] is not None:
            assert 0 < case["bound_ratio"] < 3


def test_a_shared_beginning_is_not_computed_twice(smollm2_artifact: Path) -> None:
    done = bench(smollm2_artifact, "--mode", "prefix", "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    # 64 tokens of 1,564; the rest is the noise of a shared machine
    assert told["ratio"] < 0.5, told


def test_a_prompt_over_the_context_is_a_sentence(smollm2_artifact: Path) -> None:
    done = bench(smollm2_artifact, "--concurrency", "1", "--prompt-tokens", "9000", "--new-tokens", "4")
    assert done.returncode == 1
    assert "9000 tokens" in done.stderr and "8192" in done.stderr


def test_a_folder_that_is_no_artifact_is_a_sentence(tmp_path: Path) -> None:
    done = bench(tmp_path, "--concurrency", "1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and str(tmp_path.name) in done.stderr


def test_the_bound_is_memory_for_few_rows_and_arithmetic_for_many() -> None:
    machine = Machine("a cpu", 2, "avx2", read_gbps=10.0, gmacs=100.0)
    work = Work(weights_bytes=100_000_000, multiply_adds=100_000_000, kv_bytes=20_000)
    assert bound_s(machine, work, 1, 0) == pytest.approx(0.01)
    assert bound_s(machine, work, 1, 5000) == pytest.approx(0.02)
    assert bound_s(machine, work, 32, 0) == pytest.approx(0.032)


def test_gaps_are_those_within_the_window() -> None:
    line = Timeline(0.0, {"a": [1.0, 2.0, 4.0], "b": [1.5, 3.5]})
    assert line.gaps() == [1.0, 2.0, 2.0]
    assert line.gaps(since=1.5, until=3.5) == [1.0, 2.0]
    assert line.gaps(only=["b"]) == [2.0]
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
