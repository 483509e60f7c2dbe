"""`ebb bench engine`: which artifact it measures, and that what the measuring process says and returns is passed on."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from control_plane.cli import bench
from control_plane.cli import main as command_line
from tests.control_plane.cli.conftest import Reply, Result, StubPlatform
from tests.control_plane.cli.test_commands import INT8, MODEL, PLAIN

PROGRAM = """
import json, os, signal, sys
print(json.dumps(sys.argv[1:]), flush=True)
print("measuring", file=sys.stderr, flush=True)
if "--threads" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(3)
"""
FAST = {**INT8, "quality": {"perplexity_ratio": 1.001}}

Run = Callable[..., Result]


@pytest.fixture
def run(platform: StubPlatform, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `ebb bench engine …` in this process, with a stand-in for the program that measures."""
    for each in (PLAIN, INT8):
        (platform.home / "artifacts" / str(each["digest"]).replace(":", "-")).mkdir(parents=True)
    platform.on("GET /api/v1/models/smollm2", Reply(body={**MODEL, "artifacts": [PLAIN, FAST]}))
    monkeypatch.setenv("EBB_HOME", str(platform.home))
    monkeypatch.setattr(bench, "MEASURE", (sys.executable, "-c", PROGRAM, "engine"))

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["ebb", "bench", "engine", *arguments])
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        said = capfd.readouterr()
        return Result(int(stopped.value.code or 0), said.out, said.err)

    return run


def test_a_model_is_measured_in_the_artifact_that_a_cpu_would_be_given(run: Run, platform: StubPlatform) -> None:
    result = run("--model", "smollm2")
    assert (result.code, result.err) == (3, "measuring\n"), "its exit code is this command's"
    folder = platform.home / "artifacts" / ("sha256-" + "8" * 64)
    assert json.loads(result.out) == [
        *("engine", "--artifact", str(folder), "--concurrency", "1,8,32", "--prompt-tokens", "128,512,2048"),
        *("--new-tokens", "128"),
    ]
    plain = json.loads(run("--model", "smollm2", "--quant", "bf16", "--concurrency", "4, 2", "-o", "json").out)
    assert plain[2].endswith("a" * 64) and plain[4] == "4,2" and plain[-2:] == ["-o", "json"]


def test_an_artifact_needs_no_platform(run: Run, platform: StubPlatform, tmp_path: Path) -> None:
    (platform.home / "credentials.json").unlink()
    result = run("--artifact", str(tmp_path), "--prompt-tokens", "64", "--new-tokens", "8", "--repeats", "5")
    assert json.loads(result.out)[2:] == [
        *(str(tmp_path), "--concurrency", "1,8,32", "--prompt-tokens", "64", "--new-tokens", "8", "--repeats", "5"),
    ]
    assert run("--artifact", str(tmp_path), "--threads", "2").code == 128 + 9, "as a shell tells a signal"
    assert platform.asked == []


def test_what_cannot_be_measured_is_said(run: Run, platform: StubPlatform, tmp_path: Path) -> None:
    missing = run("--model", "smollm2", "--quant", "int4")
    assert missing.code == 1 and "no int4 artifact (it has: bf16, int8)" in missing.err
    assert "ebb models quantize smollm2 --quant int4 --wait" in missing.err
    assert "There is no artifact at" in run("--artifact", str(tmp_path / "none")).err
    for wrong in ((), ("--model", "a", "--artifact", "b"), ("--model", "a", "--concurrency", "1,x")):
        assert run(*wrong).code == 2
    assert run("--model", "a", "--prompt-tokens", "0").code == 2
