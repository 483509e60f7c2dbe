"""The files of kept KV blocks on a node: bounded, private, and gone with their endpoint."""

import os
import time
from pathlib import Path

import pytest

from data_plane.node.main import parse
from data_plane.node.snapshots import MOST_AGE_S, SCRATCH_AGE_S, Snapshots
from data_plane.wire.fleet import DesiredReplica, ReplicaSpec, SnapshotSpec

DIGEST = "sha256:" + "0123456789abcdef" * 4


def wanted(endpoint_id: str = "e1", artifact: str = DIGEST) -> DesiredReplica:
    return DesiredReplica("r1", "chat", 1, "run", ReplicaSpec(model="m", artifact=artifact), endpoint_id)


def make(folder: Path, name: str, size: int, age_s: float) -> Path:
    path = folder / name
    path.write_bytes(b"x" * size)
    used_at = time.time() - age_s
    os.utime(path, (used_at, used_at))
    return path


def test_each_endpoint_and_artifact_has_a_file_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    snapshots = Snapshots(folder, 100, 1000)
    assert snapshots.spec(wanted()) == SnapshotSpec(str(folder / "e1.0123456789abcdef.kv"), 100)
    assert folder.stat().st_mode & 0o777 == 0o700
    others = {snapshots.spec(wanted("e2")), snapshots.spec(wanted(artifact="sha256:" + "f" * 64))}
    assert len({spec.path for spec in others if spec} - {str(folder / "e1.0123456789abcdef.kv")}) == 2
    for endpoint_id, artifact in (("", DIGEST), ("../e", DIGEST), ("e1", "sha256:../../x")):
        assert snapshots.spec(wanted(endpoint_id, artifact)) is None
    assert Snapshots(folder, 0, 1000).spec(wanted()) is None and Snapshots(folder, 100, 0).spec(wanted()) is None
    small = Snapshots(folder, 100, 50).spec(wanted())
    assert small is not None and small.most_bytes == 50


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    old, used = make(tmp_path, "a.1.kv", 60, 30), make(tmp_path, "b.1.kv", 60, 20)
    new, forgotten = make(tmp_path, "c.1.kv", 30, 10), make(tmp_path, "d.1.kv", 1, MOST_AGE_S + 60)
    writing, left = make(tmp_path, ".e.1.kv.ab", 500, 5), make(tmp_path, ".f.1.kv.cd", 5, SCRATCH_AGE_S + 60)
    Snapshots(tmp_path, 100, 100).trim()
    there = [path.exists() for path in (old, used, new, forgotten, writing, left)]
    assert there == [False, True, True, False, True, False]
    Snapshots(tmp_path, 0, 100).trim()
    assert [path.name for path in tmp_path.iterdir()] == [writing.name], "switched off: what there was goes"
    Snapshots(tmp_path / "none", 100, 100).trim()


def test_an_endpoint_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    names = ("e1.aa.kv", "e1.bb.kv", ".e1.aa.kv.cd", "e2.aa.kv", "e11.aa.kv")
    for name in names:
        make(tmp_path, name, 5, 1)
    snapshots = Snapshots(tmp_path, 100, 100)
    snapshots.forget(())
    assert len(list(tmp_path.iterdir())) == 5
    snapshots.forget(("e1", "e3"))
    assert {path.name for path in tmp_path.iterdir()} == {"e2.aa.kv", "e11.aa.kv"}


def test_the_environment_says_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--control", "http://c", "--home", str(tmp_path), "--name", "n"]
    environment = {"EBB_NODE_KEY": "k"}
    runner = parse(words, environment).runner
    assert (runner.snapshot_bytes, runner.snapshots_bytes) == (64 << 20, 1 << 30)
    runner = parse(words, environment | {"EBB_KV_SNAPSHOT_MB": "0", "EBB_KV_SNAPSHOTS_MB": "10"}).runner
    assert (runner.snapshot_bytes, runner.snapshots_bytes) == (0, 10 << 20)
    with pytest.raises(SystemExit):
        parse(words, environment | {"EBB_KV_SNAPSHOT_MB": "-1"})
    assert "EBB_KV_SNAPSHOT_MB is '-1'; it must be a whole number of MiB" in capsys.readouterr().err
