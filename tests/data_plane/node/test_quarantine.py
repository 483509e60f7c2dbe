"""Corrupt artifacts are put aside, and had anew from another node once, however often this disk spoils them."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest_asyncio
from aiohttp import web

from data_plane.node import integrity, quarantine
from data_plane.node.quarantine import Quarantine
from data_plane.wire.fleet import Peer
from tests.fakes.node_agent import agent_here, desired, make_artifact
from tests.fakes.node_control import FakeControl


class Neighbour:
    """Another node, as far as it gives artifacts away. `gate`: what is asked of it waits until that is set."""

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def give(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.match_info["file"])
        await self.gate.wait()
        path = self.artifacts / request.match_info["digest"].replace(":", "-") / request.match_info["file"]
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)


@pytest_asyncio.fixture
async def neighbour(tmp_path: Path, control: FakeControl) -> AsyncGenerator[Neighbour]:
    here = Neighbour(tmp_path / "neighbour")
    app = web.Application()
    app.router.add_get("/artifacts/{digest}/{file}", here.give)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    control.peers = (Peer("2", "neighbour", f"http://127.0.0.1:{runner.addresses[0][1]}", "token"),)
    yield here
    await runner.cleanup()


def folder_of(home: Path, digest: str) -> Path:
    return home / "artifacts" / digest.replace(":", "-")


def corrupt(home: Path, digest: str) -> None:
    """Turns one byte around, as a disk does: the size stays."""
    path = folder_of(home, digest) / integrity.FILES[1]
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


async def test_what_another_node_has_is_had_anew_and_the_same_start_goes_on(
    home: Path, control: FakeControl, neighbour: Neighbour
) -> None:
    digest = make_artifact(home)
    shutil.copytree(home / "artifacts", neighbour.artifacts)
    corrupt(home, digest)
    async with agent_here(home, control):
        await control.want(desired("r1", digest), desired("r2", digest))
        for replica in ("r1", "r2"):
            await control.until_phase(replica, "ready")
            assert "failed" not in control.phases(replica), "whoever waits for it goes on waiting"
        assert neighbour.asked.count("manifest.json") == 1, "once for all who start"
        assert integrity.fault(folder_of(home, digest), digest, "tiny") is None
        assert not quarantine.place(folder_of(home, digest)).exists()
        # this machine spoils it once more
        corrupt(home, digest)
        await control.want(desired("r1", digest), desired("r2", digest), desired("r3", digest))
        failed = await control.until_phase("r3", "failed")
        assert failed.failure is not None and failed.failure.fatal and "corrupt" in failed.failure.message
        assert neighbour.asked.count("manifest.json") == 1, "it is not fetched again and again"
        assert control.phases("r1")[-1] == "ready", "what serves goes on"


async def test_where_nobody_else_has_it_the_start_fails_with_what_to_run(
    home: Path, control: FakeControl, neighbour: Neighbour
) -> None:
    digest = make_artifact(home)
    corrupt(home, digest)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        failed = await control.until_phase("r1", "failed")
        assert failed.failure is not None and failed.failure.fatal
        for part in (digest, "corrupt", "put aside", "neighbour", "ebb models quantize tiny"):
            assert part in failed.failure.message, failed.failure.message
    assert quarantine.place(folder_of(home, digest)).is_dir() and not folder_of(home, digest).exists()


async def test_alone_it_fails_and_the_next_start_begins_no_runner(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    corrupt(home, digest)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        await control.until_phase("r1", "failed")
        await control.want(desired("r2", digest))
        failed = await control.until_phase("r2", "failed")
        assert failed.failure is not None and failed.failure.fatal
        assert "put aside" in failed.failure.message and "ebb models quantize tiny" in failed.failure.message
        assert not (home / "logs" / "replica-r2.log").exists()
        # made again, it is served, and what was put aside is gone
        assert make_artifact(home) == digest
        await control.want(desired("r3", digest))
        await control.until_phase("r3", "ready")
    assert not quarantine.place(folder_of(home, digest)).exists()


async def test_one_that_is_stopped_while_it_waits_for_other_bytes_stops(
    home: Path, control: FakeControl, neighbour: Neighbour
) -> None:
    digest = make_artifact(home)
    corrupt(home, digest)
    neighbour.gate.clear()
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        await control.until(lambda _: len(neighbour.asked) > 0)
        await control.want(desired("r1", digest, "stop"))
        stopped = await control.until_phase("r1", "stopped")
        assert stopped.failure is None
    neighbour.gate.set()


def test_a_file_that_cannot_be_read_for_now_is_not_put_aside(tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = folder_of(home, make_artifact(home))
    (folder / integrity.FILES[0]).unlink()
    missing = integrity.fault(folder, "sha256:" + "0" * 64, "tiny")
    assert missing is not None and missing.is_corrupt

    def too_many() -> bool:
        raise OSError(24, "Too many open files", "config.json")

    (folder / integrity.FILES[0]).write_text("x")
    busy = integrity.fault(folder, "sha256:" + "0" * 64, "tiny", too_many)
    assert busy is not None and not busy.is_corrupt


def test_the_books_of_the_quarantine(tmp_path: Path) -> None:
    books = Quarantine()
    assert not books.may_be_had_anew("a") and books.told("a") is None
    books.note("a", "bad")
    assert books.may_be_had_anew("a") and books.told("a") == "bad" and not books.may_be_had_anew("b")
    books.note("a", "bad again")
    assert not books.may_be_had_anew("a") and books.told("a") == "bad again"
    folder = tmp_path / "sha256-a"
    for content in ("first", "second"):
        folder.mkdir()
        (folder / "file").write_text(content)
        quarantine.put_aside(folder)
        assert (quarantine.place(folder) / "file").read_text() == content and not folder.exists()
    quarantine.put_aside(folder)
    quarantine.discard(folder)
    quarantine.discard(folder)
    assert list(tmp_path.iterdir()) == []
