"""`python -m data_plane.bench gateway`: finite figures of a real gateway in a tiny run, sentences for what fails."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from data_plane.bench.gateway.figures import Round, Soak, Summary, percentile, table
from data_plane.bench.gateway.processes import free_port

TINY = ("--rate", "20", "--duration", "0.3", "--rounds", "1", "--connections", "2")
MEASURED = {
    *("p50_ms", "p99_ms", "added_p50_ms", "added_p99_ms", "requests_per_s", "streams_per_s", "chunks_per_s"),
    *("cpu_us_per_request", "cpu_us_per_stream"),
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_plane.bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_a_tiny_run_measures_everything_and_loses_nothing() -> None:
    done = bench("gateway", *TINY, "--events", "8", "--soak", "40", "-o", "json")
    assert done.returncode == 0, done.stderr
    targets: dict[str, dict[str, Any]] = {each["name"]: each for each in json.loads(done.stdout)["targets"]}
    assert list(targets) == ["direct", "ebb"]
    for name, told in targets.items():
        for figure in MEASURED - ({"added_p50_ms", "added_p99_ms"} if name == "direct" else set[str]()):
            assert math.isfinite(told[figure]), (name, figure)
        assert told["errors"] == 0
        assert told["requests_per_s"] > 0 and told["rss_before_mb"] > 1 and told["rss_after_mb"] > 1
        # eight events and [DONE]
        assert told["chunks_per_s"] == pytest.approx(9 * told["streams_per_s"])
    soak = targets["ebb"]["soak"]
    assert soak["requests"] >= 40 and soak["errors"] == 0 and len(soak["rss_mb"]) == 11


def test_a_peer_that_is_not_there_is_a_sentence() -> None:
    done = bench("gateway", *TINY, "--peer", f"other=http://127.0.0.1:{free_port()}")
    assert done.returncode == 1 and "other does not answer at" in done.stderr
    assert "Traceback" not in done.stderr
    assert bench("gateway", "--peer", "other").returncode == 2
    assert bench("nothing").returncode == 2


def test_figures_are_medians_with_their_spread() -> None:
    summary = Summary("x", [Round(requests_per_s=value, errors=1) for value in (1.0, 9.0, 2.0)])
    told = summary.as_json()
    assert (told["requests_per_s"], told["spread"]["requests_per_s"], told["errors"]) == (2.0, [1.0, 9.0], 3)
    assert told["added_p50_ms"] is None and "added_p50_ms" not in told["spread"]
    summary.soak = Soak(10, 1.0, 0, [1.0, 2.0])
    assert "10 requests, 0 errors" in table([summary])
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
