"""`ebb bench gateway`: what it hands to the program that measures, whose words and exit code are its own."""

import json
import sys
from collections.abc import Callable

import pytest

from control_plane.cli import bench_gateway
from control_plane.cli import main as command_line
from tests.control_plane.cli.conftest import Result

PROGRAM = "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(4)"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `ebb bench gateway …` in this process, with a stand-in for the program that measures."""
    monkeypatch.setattr(bench_gateway, "MEASURE", (sys.executable, "-c", PROGRAM))
    monkeypatch.delenv("EBB_API_KEY", raising=False)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["ebb", "bench", "gateway", *arguments])
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        said = capfd.readouterr()
        return Result(int(stopped.value.code or 0), said.out, said.err)

    return run


def test_options_are_handed_on(run: Callable[..., Result]) -> None:
    plain = run()
    assert plain.code == 4
    assert json.loads(plain.out) == [
        *("gateway", "--key", "none", "--model", "chat", "--rate", "200.0", "--duration", "5.0"),
        *("--rounds", "3", "--connections", "16", "--soak", "0"),
    ]
    peers = ("--peer", "a=http://127.0.0.1:1", "--peer", "b=http://127.0.0.1:2")
    told = json.loads(run("--url", "http://127.0.0.1:3", "--stub", "http://127.0.0.1:4", *peers, "-o", "json").out)
    assert told[15:] == ["--url", "http://127.0.0.1:3", "--stub", "http://127.0.0.1:4", *peers, "-o", "json"]


def test_stubs_alone(run: Callable[..., Result]) -> None:
    assert json.loads(run("--stub-only", "--stub-ports", "9101,9102").out) == ["stub", "--ports", "9101,9102"]
    assert run("--rounds", "0").code == 2
