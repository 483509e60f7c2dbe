"""A node's lease, its guard, and what nodes read of each other."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from data_plane.node import tenure as tenure_module
from data_plane.node.fleet import Fleet
from data_plane.node.launch import RunnerSettings
from data_plane.node.metrics import NodeMetrics
from data_plane.node.peers import Peers, Word
from data_plane.node.records import NodePaths
from data_plane.node.server import Server
from data_plane.node.tenure import Tenure
from data_plane.node.weights_cache import ArtifactMissing
from data_plane.wire.fleet import Peer
from data_plane.wire.peers import peer_token
from tests.fakes.node_agent import agent_here, desired, make_artifact
from tests.fakes.node_control import FakeControl

OTHER = Peer("2", "other", "http://127.0.0.1:9", "token")


class NoDrain:
    async def drain(self, url: str, token: str) -> None:
        raise AssertionError("nothing is drained here")

    async def park(self, url: str, token: str) -> None:
        raise AssertionError("nothing is parked here")

    async def unpark(self, url: str, token: str) -> None:
        raise AssertionError("nothing is parked here")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture
async def http() -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Neighbour:
    """Another node's agent, without the agent: its port alone."""

    def __init__(self, home: Path, http: aiohttp.ClientSession) -> None:
        self.paths = NodePaths(home)
        self.paths.make()
        self.heard_s: float | None = 0.0
        fleet = Fleet(self.paths, RunnerSettings(), NoDrain(), NodeMetrics())
        self.peers = Peers(http)
        self.peers.all = (Peer("me", "me", "http://127.0.0.1:9", ""),)
        self.back_s: float | None = None
        said = lambda: Word(self.heard_s, self.back_s)  # noqa: E731
        self.server = Server(fleet, self.paths, NodeMetrics(), http, "its-token", lambda: True, self.peers, said)

    async def start(self) -> Peer:
        self.site = web.AppRunner(self.server.app(), access_log=None)
        await self.site.setup()
        await web.TCPSite(self.site, "127.0.0.1", 0).start()
        return Peer("2", "other", f"http://127.0.0.1:{self.site.addresses[0][1]}", peer_token("its-token", "me"))


@pytest_asyncio.fixture
async def neighbour(tmp_path: Path, http: aiohttp.ClientSession) -> AsyncGenerator[Neighbour]:
    made = Neighbour(tmp_path / "other", http)
    yield made
    await made.site.cleanup()


def test_a_lease_runs_from_when_the_answered_report_was_sent(tmp_path: Path) -> None:
    clock = Clock()
    lease = Tenure(tmp_path / "lease.json", clock)
    lease.heard(99.0)
    assert lease.left_s is None, "nobody else is there to be given its replicas"
    lease.told(10.0, (OTHER,))
    assert lease.left_s == 9.0
    clock.now = 120.0
    assert lease.left_s == -11.0 and lease.heard_s == 21.0 and lease.back_s is None
    lease.heard(98.0)
    assert lease.left_s == -11.0, "an answer that was overtaken takes nothing back"
    lease.heard(119.0)
    assert lease.back_s == 1.0 and lease.left_s == 9.0


def test_an_agent_started_anew_is_bound_by_the_lease_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, path = Clock(), tmp_path / "lease.json"
    first = Tenure(path, clock)
    first.told(10.0, (OTHER,))
    first.heard(95.0)
    assert path.stat().st_mode & 0o777 == 0o600
    second = Tenure(path, clock)
    second.resume()
    assert second.left_s == 5.0 and second.peers == (OTHER,)
    monkeypatch.setattr(tenure_module, "boot_id", lambda: "another boot")
    after_a_boot = Tenure(path, clock)
    after_a_boot.resume()
    assert after_a_boot.left_s is None
    first.told(10.0, ())
    assert not path.exists()


async def test_who_may_be_replaced(neighbour: Neighbour, http: aiohttp.ClientSession) -> None:
    peers = Peers(http)
    assert not await peers.may_be_replaced(10.0, 1.0), "there is nobody else"
    peers.all = (await neighbour.start(),)
    assert await peers.may_be_replaced(10.0, 1.0), "the other hears the control plane"
    neighbour.back_s = 6.0
    assert await peers.may_be_replaced(10.0, 1.0), "and has done so for a while"
    neighbour.back_s = 1.0
    assert not await peers.may_be_replaced(10.0, 1.0), "it has only just come back: there is time to find it"
    for silent in (6.5, 10.0, None):
        neighbour.heard_s = silent
        assert not await peers.may_be_replaced(10.0, 1.0), "nobody hears it, so nobody decides"
    peers.all = (*peers.all, OTHER)
    assert await peers.may_be_replaced(10.0, 1.0), "one does not say"


async def test_an_artifact_comes_from_a_peer_and_is_read_back(
    neighbour: Neighbour, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    digest = make_artifact(neighbour.paths.home)
    mine = tmp_path / "mine" / "artifacts"
    peers = Peers(http)
    peers.all = (OTHER, await neighbour.start())
    folder = await peers.fetch(digest, "tiny", mine)
    assert (folder / "manifest.json").is_file() and [path.name for path in mine.iterdir()] == [folder.name]
    source = neighbour.paths.artifacts / folder.name
    (source / "config.json").write_text("changed")
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactMissing, match="does not have that digest"):
        await peers.fetch(digest, "tiny", mine)
    with pytest.raises(ArtifactMissing, match="answered 404"):
        await peers.fetch("sha256:" + "b" * 64, "tiny", mine)
    assert not list(mine.glob(".fetching*"))


async def test_only_peers_read_artifacts_and_they_read_nothing_else(
    neighbour: Neighbour, http: aiohttp.ClientSession
) -> None:
    digest = make_artifact(neighbour.paths.home)
    peer = await neighbour.start()

    async def get(path: str, token: str) -> int:
        async with http.get(peer.url + path, headers={"authorization": f"Bearer {token}"}) as answer:
            return answer.status

    config = f"/artifacts/{digest}/config.json"
    assert await get(config, peer.token) == 200
    assert await get("/lease", peer.token) == 200
    for token in ("", peer_token("its-token", "stranger"), peer_token("another", "me"), "peer_me.", "peer_"):
        assert await get(config, token) == 401, token
    for path in ("/metrics", "/replicas/r1/logs"):
        assert await get(path, peer.token) == 401, path
    for path in (f"/artifacts/{digest}/fake.json", "/artifacts/..%2f..%2frun/keys.json", f"/artifacts/{digest}/..%2fx"):
        assert await get(path, peer.token) in (400, 404), path
    neighbour.peers.all = ()
    assert await get(config, peer.token) == 401, "a node that was removed is no peer"


async def test_a_node_fences_itself_and_takes_up_again(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    control.peers, control.lease_s = (OTHER,), 1.0
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        await control.until_phase("r1", "ready")
        port = control.port
        await control.stop()
        records = NodePaths(home)
        async with asyncio.timeout(10):
            while b'"failed"' not in records.record("r1").read_bytes():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        control.reports.clear()
        await control.start(port)
        failed = await control.until_phase("r1", "failed")
        assert failed.failure is not None and "lost the control plane for 1 s" in failed.failure.message
        assert not failed.failure.fatal and failed.pid is None
        await control.want(desired("r2", digest))
        await control.until_phase("r2", "ready")


async def test_a_node_without_others_goes_on_serving(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    control.lease_s = 1.0
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        port = control.port
        await control.stop()
        await asyncio.sleep(2.0)
        control.reports.clear()
        await control.start(port)
        assert (await control.until_phase("r1", "ready")).pid == ready.pid


async def test_missing_weights_are_fetched_before_the_start(
    home: Path, control: FakeControl, neighbour: Neighbour
) -> None:
    digest = make_artifact(neighbour.paths.home)
    control.peers = (await neighbour.start(),)
    async with agent_here(home, control):
        await control.want(desired("r1", digest), desired("r2", digest), desired("r3", "sha256:" + "c" * 64))
        for replica_id in ("r1", "r2"):
            await control.until_phase(replica_id, "ready")
        failed = await control.until_phase("r3", "failed")
        assert failed.failure is not None and "other: it answered 404" in failed.failure.message
    assert control.phases("r1")[0] == "starting"
