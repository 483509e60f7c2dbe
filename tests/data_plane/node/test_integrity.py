"""Corrupt artifacts: found beside the start, told with both digests, and looked for once only."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from data_plane.node import integrity
from data_plane.node.integrity import FILES, GivenUp, Verified, digest, fault, stamp
from tests.data_plane.weights.test_artifact import write
from tests.fakes.node_agent import agent_here, desired, make_artifact
from tests.fakes.node_control import FakeControl


def _corrupt(home: Path, name: str) -> Path:
    """Turns one byte around, as a disk does: the size stays."""
    path = home / "artifacts" / name.replace(":", "-") / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    return path


def test_the_rule_is_that_of_the_weights(tmp_path: Path) -> None:
    folder = write(tmp_path)
    expected = folder.name.replace("-", ":", 1)
    assert digest(folder) == expected and fault(folder, expected, "tiny") is None


def test_each_file_counts_and_the_sentence_has_both_digests(home: Path) -> None:
    name = make_artifact(home)
    folder = home / "artifacts" / name.replace(":", "-")
    for file in FILES:
        kept = (folder / file).read_bytes()
        (folder / file).write_bytes(kept[:-1])
        found = str(fault(folder, name, "tiny"))
        assert name in found and digest(folder) in found
        assert "ebb models quantize tiny" in found and file in found
        (folder / file).unlink()
        missing = str(fault(folder, name, "tiny"))
        assert file in missing and "cannot be read" in missing and str(home) not in missing
        (folder / file).write_bytes(kept)
    with pytest.raises(GivenUp):
        fault(folder, name, "tiny", lambda: True)


def test_what_was_found_sound_is_remembered_until_a_file_changes(home: Path, tmp_path: Path) -> None:
    name = make_artifact(home)
    folder = home / "artifacts" / name.replace(":", "-")
    path = tmp_path / "verified.json"
    first = Verified(path)
    assert not first.has(folder, name)
    first.note(name, stamp(folder))
    assert first.has(folder, name) and Verified(path).has(folder, name)
    os.utime(folder / "config.json", ns=(1, 1))
    assert not Verified(path).has(folder, name)
    (folder / "config.json").unlink()
    assert not first.has(folder, name)
    path.write_text('{"a": 1}')
    assert not Verified(path).has(folder, name)


async def test_corrupt_weights_end_a_start_with_both_digests(home: Path, control: FakeControl) -> None:
    name = make_artifact(home)
    _corrupt(home, name)
    async with agent_here(home, control):
        await control.want(desired("r1", name))
        failed = await control.until_phase("r1", "failed")
    assert failed.failure is not None and failed.failure.fatal
    assert name in failed.failure.message and "corrupt" in failed.failure.message
    assert "ready" not in control.phases("r1")


async def test_what_corrupt_weights_make_a_runner_say_is_not_what_is_told(home: Path, control: FakeControl) -> None:
    name = make_artifact(home, fail="fatal")
    _corrupt(home, name)
    async with agent_here(home, control):
        await control.want(desired("r1", name))
        failed = await control.until_phase("r1", "failed")
    assert failed.failure is not None and "corrupt" in failed.failure.message


async def test_a_slow_check_holds_a_replica_back_and_is_made_once(
    home: Path, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_artifact(home)
    gate, read = home / "gate", list[Path]()

    def slow(folder: Path, *rest: Any) -> str | None:
        read.append(folder)
        while not gate.exists():
            time.sleep(0.01)
        return None

    monkeypatch.setattr(integrity, "fault", slow)
    async with agent_here(home, control, stall_s=0.2):
        await control.want(desired("r1", name), desired("r2", name))
        for replica in ("r1", "r2"):
            await control.until_phase(replica, "warming")
        status = home / "run" / "node" / "r1.status.json"
        await control.until(lambda _: json.loads(status.read_text())["phase"] == "ready")
        assert "ready" not in control.phases("r1"), "it is not asked before its weights are known to be sound"
        gate.touch()
        for replica in ("r1", "r2"):
            await control.until_phase(replica, "ready")
    assert len(read) == 1
    async with agent_here(home, control):
        await control.want(desired("r1", name), desired("r2", name), desired("r3", name))
        await control.until_phase("r3", "ready")
    assert len(read) == 1, "an agent started anew remembers"


async def test_a_stop_does_not_wait_for_the_check(
    home: Path, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_artifact(home)

    def endless(folder: Path, expected: str, model: str, is_called_off: Any) -> str | None:
        while not is_called_off():
            time.sleep(0.01)
        raise GivenUp

    monkeypatch.setattr(integrity, "fault", endless)
    async with agent_here(home, control):
        await control.want(desired("r1", name))
        await control.until_phase("r1", "warming")
        await control.want(desired("r1", name, "stop"))
        stopped = await control.until_phase("r1", "stopped")
        assert stopped.failure is None
