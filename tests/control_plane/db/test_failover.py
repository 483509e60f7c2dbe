"""F17: PostgreSQL fails over to a standby that lacks the last writes. Real servers, a real agent with stand-ins for
runners: what nodes know is taken back, nothing that runs is stopped, no epoch is handed out twice."""

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import text

from control_plane.db.loop import Leader
from control_plane.db.metrics import STORE
from control_plane.db.migrate import upgrade
from control_plane.db.session import Database
from control_plane.settings import Settings
from control_plane.tenants.service import ensure_key, ensure_tenant
from data_plane.node.agent import Tempo
from data_plane.node.launch import RunnerSettings
from data_plane.node.main import Settings as NodeSettings
from data_plane.node.main import serve
from data_plane.node.records import NodePaths
from tests.control_plane.conftest import TestKeys
from tests.control_plane.dispatch.test_cycle import Fleet, control_plane
from tests.fakes.fleet import FakeAgent, add_model
from tests.fakes.node_agent import FAKE_RUNNER, make_artifact
from tests.fakes.postgres_pair import Pair

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def pair() -> Generator[Pair]:
    pair = Pair()
    try:
        pair.start()
        yield pair
    finally:
        pair.close()


@pytest.fixture
async def node_home(tmp_path: Path) -> AsyncGenerator[Path]:
    """The agent's home; its runners are gone after the test."""
    home = tmp_path / "node"
    home.mkdir()
    yield home
    for pid in runner_pids(home):
        psutil.Process(pid).kill()


def runner_pids(home: Path) -> set[int]:
    """The runners that live."""
    found: set[int] = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if "runner_process.py" in command and str(home) in command and process.info["status"] != "zombie":
            found.add(process.pid)
    return found


def starts(home: Path) -> int:
    """How many runners were ever started."""
    return len(list((home / "logs").glob("replica-*.log")))


async def set_up(url: str, digest: str) -> TestKeys:
    """A migrated database with the model `tiny` and keys."""
    await asyncio.to_thread(upgrade, url)
    database = Database(url)
    async with database.transaction() as session:
        model = await add_model(session, await ensure_tenant(session))
        await session.execute(
            text("update model_artifacts set digest = :digest where model_id = :id"), {"digest": digest, "id": model.id}
        )
        admin = await ensure_key(session, name="admin", scopes=["admin"], key=None)
        node = await ensure_key(session, name="node", scopes=["node"], key=None)
    await database.close()
    return TestKeys(admin=admin, read=admin, infer=admin, node=node)


async def until_ready(fleet: Fleet, name: str, revision: int = 1) -> dict[str, Any]:
    """The one ready replica of the endpoint's revision."""
    async with asyncio.timeout(40):
        while True:
            answer = await fleet.client.get(f"/api/v1/replicas?endpoint={name}", headers=fleet.admin)
            for one in answer.json()["items"] if answer.status_code == 200 else []:
                if (one["status"], one["generation"]) == ("ready", revision):
                    return one
            await asyncio.sleep(0.05)


def metric(name: str, **labels: str) -> float:
    return STORE.get_sample_value(name, labels) or 0.0


async def as_it_was(fleet: Fleet) -> None:
    """Each endpoint has its one replica and its last revision, and whoever looks at the events sees what was lost."""
    for name in ("kept", "revised", "late"):
        alive = [one for one in await fleet.replicas(name) if one["ended_at"] is None]
        assert len(alive) == 1, f"I4: {name} has {len(alive)} replicas"
        assert (await fleet.get(f"/endpoints/{name}"))["state"] == "live"
    revised = await fleet.get("/endpoints/revised")
    assert (revised["revision"], revised["spec"]["concurrency"]) == (2, 8)
    told = {(one["subject"], one["type"]) for one in (await fleet.get("/events?limit=1000"))["items"]}
    alarms = {("late", "taken_back"), ("revised", "taken_back"), ("other", "diverged"), ("box", "recovering")}
    assert alarms <= told


async def test_f17_a_standby_that_lacks_the_last_writes_takes_over(
    pair: Pair, node_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leader.__init__, "__kwdefaults__", {"renew_s": 0.3, "expiry_s": 10.0})
    digest = make_artifact(node_home)
    keys = await set_up(pair.url, digest)
    settings = Settings(tmp_path, pair.url, "filesystem://", "http://127.0.0.1:7071", "test")
    failovers, before = metric("ebb_database_failovers_total"), dict[str, float]()
    for what in ("replica", "revision", "endpoint", "epoch"):
        before[what] = metric("ebb_database_diverged_total", what=what)
    async with control_plane(settings, keys) as fleet:
        stop = asyncio.Event()
        control = str(fleet.client.base_url)
        agent = asyncio.create_task(serve(node_settings(control, keys.node, node_home), stop))
        other = FakeAgent(fleet.client, keys.node, name="other", memory_bytes=1)
        await other.register()
        await fleet.deploy("kept", min=1)
        await fleet.deploy("revised", min=1)
        kept, _ = await until_ready(fleet, "kept"), await until_ready(fleet, "revised")
        pair.catch_up()
        pair.cut()
        # none of this reaches the standby: a new revision, a new endpoint, two registrations
        await fleet.deploy("revised", min=1, concurrency=8)
        revised = await until_ready(fleet, "revised", 2)
        await fleet.deploy("late", min=1)
        late = await until_ready(fleet, "late")
        await other.register()
        await other.register()
        epoch = await leader_epoch(fleet)
        async with asyncio.timeout(20):
            while len(runner_pids(node_home)) > 3:  # noqa: ASYNC110 - the old revision's, which drains
                await asyncio.sleep(0.05)
        running, started, given = runner_pids(node_home), starts(node_home), other.epoch
        assert running == {kept["pid"], revised["pid"], late["pid"]} and given == 3

        await asyncio.to_thread(pair.fail_over)
        assert (await until_ready(fleet, "revised", 2))["pid"] == revised["pid"]
        assert (await until_ready(fleet, "late"))["pid"] == late["pid"]
        assert (await until_ready(fleet, "kept"))["id"] == kept["id"]
        assert (await other.report()).status_code == 409
        await other.register()
        await asyncio.sleep(1)

        assert runner_pids(node_home) == running, "a runner was stopped, or one started in vain"
        assert starts(node_home) == started
        assert other.epoch > given and await leader_epoch(fleet) > epoch
        await as_it_was(fleet)
        found = {what: metric("ebb_database_diverged_total", what=what) - count for what, count in before.items()}
        assert metric("ebb_database_failovers_total") == failovers + 1
        assert found == {"replica": 2, "revision": 2, "endpoint": 1, "epoch": 1}
        print(
            f"F17: {json.dumps(found)} taken back; epoch {epoch} then {await leader_epoch(fleet)}; 0 of 3 runners lost"
        )
        stop.set()
        await agent


async def leader_epoch(fleet: Fleet) -> float:
    """The epoch under which the loops run."""
    async with asyncio.timeout(20):
        while True:
            answer = await fleet.client.get("/metrics", headers=fleet.admin)
            for line in answer.text.splitlines():
                if line.startswith("ebb_control_epoch ") and float(line.split()[1]):
                    return float(line.split()[1])
            await asyncio.sleep(0.05)


def node_settings(control: str, key: str, home: Path) -> NodeSettings:
    NodePaths(home).make()
    runner = RunnerSettings(command=FAKE_RUNNER)
    return NodeSettings(control, key, home, "box", runner=runner, tempo=Tempo(heartbeat_s=0.5, wait_s=5))
