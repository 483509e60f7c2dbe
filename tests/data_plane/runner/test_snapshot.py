"""Kept blocks in a file: whole or not at all, of the same values or not at all, found by the next runner."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from data_plane.engine.engine import Engine
from data_plane.engine.shelf import Kept
from data_plane.runner.keeping import Keeping, keeping_of
from data_plane.runner.parking import Parking
from data_plane.runner.snapshot import open_snapshot, write_snapshot
from data_plane.wire.fleet import SnapshotSpec
from tests.fakes.served import Fake, fake_runner, until

SECRET = b"s" * 32
BLOCKS = [
    (Kept(b"a" * 16, b"", (2**64 - 1, 7), 3.0), b"first" * 100),
    (Kept(b"b" * 16, b"a" * 16, (), 1.0), b"other" * 100),
]


def write(path: Path, form: str = "f") -> bytes:
    assert write_snapshot(path, form, SECRET, 500, BLOCKS) == 2
    return path.read_bytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "kv" / "e.1.kv"
    write(path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing half written is left"
    opened = open_snapshot(path, "f", 500)
    assert opened is not None and opened.secret == SECRET
    assert [(k.name, k.before, k.labels) for k in opened.kept] == [(k.name, k.before, k.labels) for k, _ in BLOCKS]
    write_snapshot(path, "f", SECRET, 500, BLOCKS[:1])
    assert [opened.read(kept.name) for kept, _ in BLOCKS] == [content for _, content in BLOCKS], "the old one stays"
    opened.close()
    assert path.exists() and open_snapshot(tmp_path / "none.kv", "f", 500) is None


def test_what_comes_after_a_block_that_cannot_be_had_is_left_out(tmp_path: Path) -> None:
    assert write_snapshot(tmp_path / "e.kv", "f", SECRET, 500, [(BLOCKS[0][0], None), BLOCKS[1]]) == 0
    opened = open_snapshot(tmp_path / "e.kv", "f", 500)
    assert opened is not None and not opened.kept
    opened.close()


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda raw: b"",
    lambda raw: raw[:10],
    lambda raw: raw[:-1],
    lambda raw: raw[1:],
    lambda raw: raw[:500] + raw[700:],
    lambda raw: raw[:-1] + b"2",
    lambda raw: raw[:1010] + bytes([raw[1010] ^ 1]) + raw[1011:],
    lambda raw: raw + raw[-20:],
    lambda raw: os.urandom(len(raw)),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_ignored_and_deleted(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "e.kv"
    path.write_bytes(damage(write(path)))
    assert open_snapshot(path, "f", 500) is None
    assert not path.exists()


@pytest.mark.parametrize(("form", "size"), [("of another artifact", 500), ("f", 250)])
def test_values_of_another_form_are_ignored_and_deleted(tmp_path: Path, form: str, size: int) -> None:
    write(tmp_path / "e.kv")
    assert open_snapshot(tmp_path / "e.kv", form, size) is None
    assert not (tmp_path / "e.kv").exists()


def test_a_damaged_block_is_found_when_it_is_read_and_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "e.kv"
    raw = write(path)
    path.write_bytes(raw[:600] + b"?" + raw[601:])
    first, second = open_snapshot(path, "f", 500), open_snapshot(path, "f", 500)
    assert first is not None and second is not None and len(first.names) == 2
    assert first.read(b"a" * 16) == BLOCKS[0][1]
    assert first.read(b"b" * 16) is None and not first.names and not path.exists()
    write(path)
    assert second.read(b"b" * 16) is None and path.exists(), "that one is another's"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert open_snapshot(path, "f", 500) is None


class Copying:
    """Gives the fake executor blocks to copy: of numbers that say which, not of values."""

    def __init__(self, fake: Fake, form: str = "fake") -> None:
        self.written: dict[int, bytes] = {}
        self.block_bytes, self.kv_form = 64, form
        for name in ("block_bytes", "kv_form", "copy_out", "copy_in"):
            setattr(fake.executor, name, getattr(self, name))

    def copy_out(self, block: int) -> bytes:
        return b"%064d" % block

    def copy_in(self, block: int, content: bytes) -> None:
        self.written[block] = content


ASKED = {"prompt": "the quick brown fox jumps over the lazy dog " * 16, "max_tokens": 4, "temperature": 0}


async def attach(fake: Fake, spec: SnapshotSpec, form: str = "fake") -> tuple[Copying, Keeping]:
    """As a start does it, with an engine that has not begun."""
    copying = Copying(fake, form)
    keeping = keeping_of(spec, "sha256:1", fake.executor)
    assert keeping is not None

    def begin(engine: Engine) -> None:
        made = Engine(engine.config, fake.executor, secret=keeping.secret)
        engine.scheduler = made.scheduler
        vars(engine).update(vars(made))
        keeping.use(engine)

    await fake.model.engine.do(begin)
    return copying, keeping


async def ask(fake: Fake) -> int:
    """How many tokens of its prompt were there already."""
    async with httpx.AsyncClient(base_url=fake.url, headers=fake.headers) as http:
        answer = (await http.post("/v1/completions", json=ASKED)).json()
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_a_runner_goes_on_from_the_one_before_it(tmp_path: Path) -> None:
    spec = SnapshotSpec(str(tmp_path / "kv" / "e.kv"), 64 * 100)
    async with fake_runner() as fake:
        _, keeping = await attach(fake, spec)
        assert await ask(fake) == 0
        await keeping.save(fake.model.engine, only_reused=True)
        assert not Path(spec.path).exists(), "nobody had a use for it a second time"
        await keeping.save(fake.model.engine)
        labels = fake.model.engine.journal.held
        assert labels
    async with fake_runner() as fake:
        copying, keeping = await attach(fake, spec)
        cached = await ask(fake)
        assert cached > 32 and len(copying.written) == cached // 16
        assert fake.model.engine.journal.held == labels
        before = Path(spec.path).stat().st_ino
        await keeping.save(fake.model.engine)
        assert Path(spec.path).stat().st_ino == before, "what is there already is not written again"
    async with fake_runner() as fake:
        _, keeping = await attach(fake, spec, "other kernels")
        assert await ask(fake) == 0 and not Path(spec.path).exists()
    async with fake_runner() as fake:
        _, keeping = await attach(fake, SnapshotSpec(spec.path, 64 * 2))
        await ask(fake)
        await keeping.save(fake.model.engine)
        assert Path(spec.path).stat().st_size < 64 * 2 + 1024, "at most so much"


async def test_parked_and_back(tmp_path: Path) -> None:
    async with fake_runner() as fake:
        _, keeping = await attach(fake, SnapshotSpec(str(tmp_path / "e.kv"), 64 * 100))
        told: list[str] = []
        parking = Parking(
            fake.service,
            lambda: told.append("parked"),
            lambda seconds: told.append("back"),
            lambda: keeping.save(fake.model.engine),
        )
        await ask(fake)
        parking.park()
        await until(lambda: told == ["parked"])
        assert not fake.engine.scheduler.pool.kept
        await parking.unpark()
        assert await ask(fake) > 32 and told == ["parked", "back"]


async def test_now_and_then_what_is_used_again_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.kv"
    monkeypatch.setattr("data_plane.runner.keeping.EVERY_S", 0.02)
    async with fake_runner() as fake:
        _, keeping = await attach(fake, SnapshotSpec(str(path), 64 * 100))
        keeping.start(fake.model.engine)
        await ask(fake)
        await asyncio.sleep(0.1)
        assert not path.exists()
        assert await ask(fake) > 32
        await until(path.exists)
        await keeping.close()


async def test_who_ends_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.kv"
    monkeypatch.setattr("data_plane.runner.keeping.EVERY_S", 0.02)
    async with fake_runner() as fake:
        copying, keeping = await attach(fake, SnapshotSpec(str(path), 64 * 100))
        copies = threading.Event()

        def copy_slowly(block: int) -> bytes:
            copies.set()
            time.sleep(0.02)
            return copying.copy_out(block)

        fake.executor.copy_out = copy_slowly  # pyright: ignore[reportAttributeAccessIssue]
        await ask(fake)
        await ask(fake)
        keeping.start(fake.model.engine)
        await until(copies.is_set)
        await keeping.close()
        assert path.exists(), "and its blocks are held by nobody: the books are checked now"


async def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    async with fake_runner() as fake:
        _, keeping = await attach(fake, SnapshotSpec(str(tmp_path / "file" / "e.kv"), 64 * 100))
        await ask(fake)
        await asyncio.wait_for(keeping.save(fake.model.engine), 10)
        assert await ask(fake) > 32
        assert keeping_of(None, "sha256:1", fake.executor) is None
        assert keeping_of(SnapshotSpec("x", 63), "sha256:1", fake.executor) is None, "not one block has room"
