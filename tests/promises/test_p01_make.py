"""Promise 1: `make up` shows a stranger how to talk to a model, and what it prints works as pasted."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.promises.running import free_port, servers_for

ROOT = Path(__file__).parents[2]


def _make_up(home: Path) -> tuple[str, float]:
    env = {**os.environ, "EBB_HOME": str(home), **servers_for(home)}
    started = time.monotonic()
    done = subprocess.run(
        ["make", "up", f"PORT={PORTS[0]}", f"GATEWAY_PORT={PORTS[1]}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, time.monotonic() - started


PORTS = (free_port(), free_port())


@pytest.mark.timeout(500)
def test_what_make_up_prints_works_as_pasted(fresh_home: Path) -> None:
    printed, _ = _make_up(fresh_home)
    assert f"http://127.0.0.1:{PORTS[0]}" in printed
    assert f"http://127.0.0.1:{PORTS[1]}/e/chat/v1" in printed
    curl = re.search(r"^\s*(curl .*?[^\\])$", printed, re.MULTILINE | re.DOTALL)
    assert curl, printed
    answer = subprocess.run(["bash", "-c", curl.group(1)], capture_output=True, text=True, timeout=120)
    assert '"choices"' in answer.stdout, answer.stdout + answer.stderr
    subprocess.run(["make", "down"], cwd=ROOT, env={**os.environ, "EBB_HOME": str(fresh_home)}, check=True, timeout=60)
    again, took_s = _make_up(fresh_home)
    assert "/e/chat/v1" in again
    assert took_s < 20
