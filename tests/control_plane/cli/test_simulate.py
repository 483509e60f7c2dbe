"""`ebb simulate route` as it is typed: its JSON, its table, and what it says of files and options it cannot use."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from control_plane.cli import main as command_line
from control_plane.cli import simulate
from control_plane.simulator.policies import POLICIES
from tests.control_plane.cli.conftest import Result

FIELDS = [
    *("policy", "hit_share", "ideal_same_caches", "ideal_infinite", "max_over_mean_load"),
    *("ttft_mean_s", "ttft_p50_s", "ttft_p99_s"),
]

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `ebb simulate route …` in this process on a small synthetic trace."""
    trace = tmp_path / "chat.toml"
    trace.write_text("sessions = 10\nturns = 3\n")

    def run(*arguments: str, trace: Path = trace, format: str = "synthetic") -> Result:
        words = ["ebb", "simulate", "route", "--trace", str(trace), "--format", format, *arguments]
        monkeypatch.setattr(sys, "argv", words)
        code = 0
        try:
            command_line.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        said = capfd.readouterr()
        return Result(code, said.out, said.err)

    return run


def test_the_json_has_a_row_for_each_policy_and_the_same_seed_gives_the_same(run: Run) -> None:
    first, again = run("--replicas", "2", "-o", "json"), run("--replicas", "2", "-o", "json")
    assert first.code == 0 and first.out == again.out
    document = json.loads(first.out)
    assert list(document) == ["policies"]
    assert [row["policy"] for row in document["policies"]] == list(simulate.POLICIES) == list(POLICIES)
    for row in document["policies"]:
        assert list(row) == FIELDS
        assert 0.0 <= row["hit_share"] <= row["ideal_infinite"] <= 1.0 <= row["max_over_mean_load"] <= 2.0
        assert 0.0 < row["ttft_p50_s"] <= row["ttft_p99_s"]


def test_without_reuse_nothing_is_found(run: Run) -> None:
    result = run("--unique", "--policies", "ebb,least-load", "-o", "json", "--gateways", "2", "--report-delay", "0.5")
    assert {row["hit_share"] for row in json.loads(result.out)["policies"]} == {0.0}


def test_the_table_is_for_people(run: Run) -> None:
    result = run("--policies", "ebb, session", "--load", "0.5")
    heads, *rows = result.out.splitlines()
    assert heads.split()[:2] == ["POLICY", "HITS"] and [row.split()[0] for row in rows] == ["ebb", "session"]
    assert "at 50% of saturation" in result.err


def test_the_plot_is_a_picture_or_a_sentence(run: Run, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    assert run("--policies", "ebb,session", "--plot", str(plot)).code == 0
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 10_000
    result = run("--policies", "ebb", "--plot", str(tmp_path / "none" / "plot.png"))
    assert (result.code, "cannot be written" in result.err) == (1, True)


def test_what_cannot_be_used_is_told_in_a_sentence(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(trace=tmp_path / "none.jsonl", format="mooncake")
    assert (result.code, "cannot be read" in result.err) == (1, True)
    result = run("--policies", "ebb,magic")
    assert (result.code, "'magic' is no policy" in result.err) == (2, True)

    def finds_nothing(_name: str) -> None:
        return None

    monkeypatch.setattr(simulate, "find_spec", finds_nothing)
    result = run("--plot", str(tmp_path / "plot.png"))
    assert (result.code, "pip install matplotlib" in result.err) == (1, True)
