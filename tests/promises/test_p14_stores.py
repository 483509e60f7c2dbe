"""Promise 14: what serves goes on serving while PostgreSQL or the control plane do not, and what is starting starts.

F16: PostgreSQL killed under load. F18: its tables locked under load. F24: the control plane killed during a cold start.
"""

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import psutil
import psycopg
import pytest

from tests.promises.running import Platform, wait_for

HELLO = [{"role": "user", "content": "Hello"}]


@dataclass
class Load:
    """What clients saw: a status, 0 where there was no answer, and how long it took."""

    statuses: list[int] = field(default_factory=list[int])
    took_s: list[float] = field(default_factory=list[float])

    def p99_ms(self) -> float:
        return 1000 * sorted(self.took_s)[int(0.99 * (len(self.took_s) - 1))]


@contextmanager
def load(platform: Platform, clients: int = 3) -> Generator[Load]:
    """Clients that ask `chat` one thing after another while the body runs."""
    seen, stop = Load(), threading.Event()
    headers = {"Authorization": f"Bearer {platform.key}"}
    url = f"{platform.gateway}/e/chat/v1/chat/completions"

    def ask() -> None:
        with httpx.Client(headers=headers, timeout=60) as client:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    status = client.post(url, json={"messages": HELLO, "max_tokens": 1}).status_code
                except httpx.HTTPError:
                    status = 0
                seen.statuses.append(status)
                seen.took_s.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def database_url(platform: Platform) -> str:
    """As the control plane was given it."""
    return psutil.Process(platform.pid_of("control_plane")).environ()["EBB_DATABASE_URL"]


def admin_client(platform: Platform) -> httpx.Client:
    """For the management API; shared by threads, since making one takes longer than most calls."""
    return httpx.Client(base_url=platform.control, headers={"Authorization": f"Bearer {platform.key}"}, timeout=60)


@pytest.mark.skipif("EBB_TEST_DATABASE_URL" in os.environ, reason="the server is not this test's to kill")
def test_f16_postgres_killed_under_load(chat: Platform) -> None:
    """With -9, which is less than `restart -m immediate` lets it do; `ebb up` starts it again."""
    assert chat.post("chat", json={"messages": HELLO, "max_tokens": 1}).status_code == 200
    [before] = chat.replicas()
    chat.ebb("deploy", "meanwhile", "--model", "smollm2", "--min", "0", "--max", "1", "--idle", "60")
    url = database_url(chat)
    held: list[int] = []
    waking = threading.Thread(target=lambda: held.append(chat.post("meanwhile", json=_one_token()).status_code))
    with load(chat) as seen, admin_client(chat) as client:
        time.sleep(0.5)
        admin: list[int] = []
        [server] = [one for one in chat.processes() if "postgres" in one.name() and "-D" in one.info["cmdline"]]
        os.kill(server.pid, signal.SIGKILL)
        waking.start()
        for _ in range(5):
            admin.append(client.get("/api/v1/endpoints").status_code)
        wait_for("PostgreSQL to be back", lambda: client.get("/readyz").status_code == 200, 30, every_s=0.05)
        wait_for("the lease", lambda: "ebb_control_leader 1.0" in client.get("/metrics").text, 30)
        time.sleep(1)
    waking.join(60)
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from pg_stat_activity where application_name like 'ebb%'").fetchone()
    assert set(seen.statuses) == {200}
    assert held == [200], "a cold start that was asked for meanwhile waits, and goes on"
    assert set(admin) <= {200, 503} and 503 in admin
    [after] = chat.replicas()
    assert (after["id"], after["pid"]) == (before["id"], before["pid"]), "its runner was stopped for the silence"
    assert row is not None and row[0] <= 6 + 6 + 1 + 4, "the control plane's pool and listener, and a worker's"
    print(
        f"F16: {len(seen.statuses)} requests over a kill, all 200, p99 {seen.p99_ms():.0f} ms; {admin.count(503)} "
        f"of {len(admin)} admin calls 503; a cold start during it 200; {row[0]} connections after it"
    )
    chat.ebb("rm", "meanwhile")


def test_f18_tables_locked_under_load(chat: Platform) -> None:
    """For longer than a lock may be waited for."""
    assert chat.post("chat", json={"messages": HELLO, "max_tokens": 1}).status_code == 200
    [before] = chat.replicas()
    with load(chat) as calm:
        time.sleep(2)
    with load(chat) as seen:
        admin: list[int] = []
        with admin_client(chat) as client:
            with psycopg.connect(database_url(chat)) as locker:
                locker.execute("lock table endpoints, replicas, nodes, api_keys, demand in access exclusive mode")
                asking = [
                    threading.Thread(target=lambda: admin.append(client.get("/api/v1/endpoints").status_code))
                    for _ in range(12)
                ]
                for thread in asking:
                    thread.start()
                wait_for("those that waited for the lock to be told", lambda: len(admin) == 12, 60)
                locker.rollback()
            for thread in asking:
                thread.join(60)
            wait_for("the admin API", lambda: client.get("/api/v1/endpoints").status_code == 200, 30)
    assert set(seen.statuses) == {200}
    assert set(admin) == {503}
    [after] = chat.replicas()
    assert (after["id"], after["pid"]) == (before["id"], before["pid"])
    print(
        f"F18: {len(seen.statuses)} requests while tables were locked, all 200, p99 {seen.p99_ms():.0f} ms against "
        f"{calm.p99_ms():.0f} ms before; {admin.count(503)} of 12 admin calls 503"
    )


@pytest.mark.parametrize("phase", ["placing", "loading"])
def test_f24_control_plane_killed_during_a_cold_start(stocked: Platform, phase: str) -> None:
    """Before the node has begun, and while the runner loads: the request that waits is answered by the one start."""
    name = f"orphan-{phase}"
    stocked.ebb("deploy", name, "--model", "smollm2", "--min", "0", "--max", "1", "--idle", "60")
    answers: list[httpx.Response] = []
    before = set((stocked.home / "logs").glob("replica-*.log"))
    asking = [threading.Thread(target=lambda: answers.append(stocked.post(name, json=_one_token()))) for _ in range(3)]
    for thread in asking:
        thread.start()
    # a start takes a tenth of a second: too short to be caught by asking how far it is
    begun = {
        "placing": lambda: stocked.replicas(name),
        "loading": lambda: set((stocked.home / "logs").glob("replica-*.log")) - before,
    }
    wait_for("the start to come so far", begun[phase], 20, every_s=0.002)
    os.kill(stocked.pid_of("control_plane"), signal.SIGKILL)
    for thread in asking:
        thread.join(90)
    wait_for("the control plane to be back", lambda: _back(stocked), 30)
    assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]
    replicas = stocked.replicas(name, all=True)
    logs = [one for one in replicas if (stocked.home / "logs" / f"replica-{one['id']}.log").exists()]
    assert len(replicas) == len(logs) == 1, f"not started once: {replicas} {stocked.ebb('explain', name)}"
    wait_for("the new control plane to know it is ready", lambda: stocked.replicas(name)[0]["status"] == "ready", 20)
    print(f"F24: killed at '{phase}': 3 of 3 held requests 200, {len(logs)} start")
    stocked.ebb("rm", name)


def _one_token() -> dict[str, object]:
    return {"messages": HELLO, "max_tokens": 1}


def _back(platform: Platform) -> bool:
    try:
        return httpx.get(platform.control + "/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False  # not there yet
