"""An artifact that another node has: fetched whole, checked, and given to nobody who may not read it."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from data_plane.node.integrity import FILES, digest
from data_plane.wire.fleet import Peer, peer_token
from tests.fakes.node_agent import agent_here, desired, make_artifact
from tests.fakes.node_control import FakeControl


@pytest.fixture
def other_home(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    return folder


async def _peer(control: FakeControl, name: str = "node-b") -> Peer:
    async with asyncio.timeout(10):
        while not control.registrations:  # noqa: ASYNC110 - a registration has no event to offer
            await asyncio.sleep(0.01)
    told = control.registration
    return Peer(name, told.agent_url, peer_token(told.agent_token))


async def test_it_is_fetched_checked_and_started(home: Path, other_home: Path, control: FakeControl) -> None:
    there = FakeControl()
    await there.start()
    name = make_artifact(other_home)
    nobody = Peer("node-c", "http://127.0.0.1:9", "x")
    async with agent_here(other_home, there), agent_here(home, control):
        await control.want(desired("r1", name), peers=(nobody, await _peer(there)))
        ready = await control.until_phase("r1", "ready")
        assert ready.spans["fetch"] > 0
        assert ready.for_s is not None and ready.for_s >= ready.spans["fetch"]
        folder = home / "artifacts" / name.replace(":", "-")
        assert digest(folder) == name and (folder / "manifest.json").exists()
        await control.want(desired("r1", name), desired("r2", name))
        again = await control.until_phase("r2", "ready")
        assert "fetch" not in again.spans
    await there.stop()


async def test_what_is_not_what_it_should_be_is_thrown_away(home: Path, other_home: Path, control: FakeControl) -> None:
    there = FakeControl()
    await there.start()
    name, wanted = make_artifact(other_home), "sha256:" + "d" * 64
    bad = other_home / "artifacts" / name.replace(":", "-")
    bad.rename(bad.with_name(wanted.replace(":", "-")))
    (home / "artifacts" / ".fetch-left").mkdir(parents=True)
    async with agent_here(other_home, there), agent_here(home, control):
        peer = await _peer(there)
        await control.want(desired("r1", wanted), desired("r2", "sha256:" + "e" * 64), peers=(peer,))
        failed = await control.until_phase("r1", "failed")
        assert failed.failure is not None and not failed.failure.fatal
        assert f"has the digest {name}" in failed.failure.message
        missing = await control.until_phase("r2", "failed")
        assert missing.failure is not None and "it does not have it" in missing.failure.message
        assert list((home / "artifacts").iterdir()) == [], "no part of it is left, nor what an earlier agent left"
    await there.stop()


async def test_only_peers_read_artifacts_and_nothing_else(home: Path, control: FakeControl) -> None:
    name = make_artifact(home)
    async with agent_here(home, control), aiohttp.ClientSession() as http:
        peer = await _peer(control)
        agent = control.registration.agent_token

        async def status(path: str, token: str) -> int:
            async with http.get(peer.url + path, headers={"authorization": f"Bearer {token}"}) as answer:
                return answer.status

        for file in (*FILES, "manifest.json"):
            assert await status(f"/artifacts/{name}/{file}", peer.token) == 200
        assert await status(f"/artifacts/{name}/fake.json", peer.token) == 404
        assert await status(f"/artifacts/{name}/..%2f..%2frun%2fnode%2fkeys.json", peer.token) == 404
        assert await status("/artifacts/..%2frun/keys.json", peer.token) == 404
        assert await status(f"/artifacts/{name}/config.json", "ebb_wrong") == 401
        assert await status("/metrics", peer.token) == 401 and await status("/metrics", agent) == 200
