"""The process tree of `ebb up`: starts it in parallel, keeps it running, stops it in order. Knows no HTTP server and
no table; what a process does is that process's business."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from control_plane.embedded import plan, probes
from control_plane.embedded.child import Child, ChildSpec
from control_plane.embedded.errors import AlreadyRunningError, DatabaseError, StartError
from control_plane.embedded.home import Credentials, Home, Secrets
from control_plane.embedded.leftovers import RUNNERS_GRACE_S, runners_cleanup_command, stop_leftovers
from control_plane.embedded.lock import HomeLock
from control_plane.embedded.plan import Platform
from control_plane.embedded.ports import require_free
from control_plane.embedded.postgres import EmbeddedPostgres, embedded_postgres
from control_plane.embedded.records import SupervisorRecord, read_record, record_of
from data_plane.wire.keys import new_key

START_TIMEOUT_S = 90.0
_POLL_S = 0.03  # while starting only
_GIVE_UP_EXITS = 4

Tell = Callable[[str], None]


def take_home(home: Home) -> HomeLock:
    """Make the home and lock it. Raises HomeError, AlreadyRunningError."""
    home.create()
    lock = HomeLock(home.lock)
    if lock.acquire():
        return lock
    record = read_record(home.supervisor)
    where = (
        f" (pid {record.supervisor.pid}): control plane {record.control}, gateway {record.gateway}" if record else ""
    )
    raise AlreadyRunningError(
        f"Ebb already runs on {home.root}{where}. Stop it with 'ebb down --home {home.root}', "
        "or start another one with a different --home, --port and --gateway-port."
    )


class Supervisor:
    """Runs one platform. `tell` receives a short line whenever something happens that a person may want to know."""

    def __init__(self, platform: Platform, tell: Tell) -> None:
        self.platform = platform
        self._tell = tell
        self._children: dict[str, Child] = {}
        self._postgres: EmbeddedPostgres | None = None
        self._fresh = True
        self._ready = False
        self._stopping = False

    async def run(self, on_ready: Callable[[Credentials], Awaitable[None]]) -> None:
        """Start everything, call `on_ready`, and stay until SIGTERM or SIGINT. Raises StartError; stops all it started.

        The caller holds the home's lock.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        starting = asyncio.create_task(self._start())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                greeting = asyncio.ensure_future(on_ready(starting.result()))
                await asyncio.wait({greeting, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if greeting.done():
                    greeting.result()
                await stopped
        finally:
            for task in (starting, stopped):
                task.cancel()
            await asyncio.gather(starting, stopped, return_exceptions=True)
            await self._stop_all()

    async def _start(self) -> Credentials:
        platform = self.platform
        home = platform.home
        await asyncio.to_thread(stop_leftovers, home, runners=False, tell=self._tell)
        require_free(platform.host, platform.port, "--port")
        require_free(platform.host, platform.gateway_port, "--gateway-port")
        rotate_logs(home)
        known, secrets = home.read_credentials(), home.read_secrets()
        node_key = secrets["node_key"] if secrets else new_key()[0]
        key = known["key"] if known else new_key()[0]
        credentials = Credentials(control=platform.control, gateway=platform.gateway, key=key)
        database_url = await self._start_database()
        # Only a database that this home has used before is trusted unseen: preparing it takes as long as all the rest.
        seen = known is not None and secrets is not None and platform.database_url is None
        if not seen or not await self._postgres_is_ready():
            keys = await self._prepare(database_url, key, node_key)
            credentials["key"], node_key = keys["key"], keys["node_key"]
        self._run(plan.control_child(platform, database_url))
        self._run(plan.worker_child(platform, database_url))
        # These two would ask in vain before, at growing distances, and there is no idle core for them to start on.
        await self._until("control", lambda: probes.is_ready(platform.control))
        if seen and not await asyncio.to_thread(probes.keys_work, platform.control, credentials["key"], node_key):
            keys = await self._prepare(database_url, key, node_key)
            credentials["key"], node_key = keys["key"], keys["node_key"]
        home.write_credentials(credentials)
        home.write_secrets(Secrets(node_key=node_key))
        self._run(plan.gateway_child(platform, node_key))
        self._run(plan.node_child(platform, node_key))
        await self._wait_ready(credentials["key"])
        self._ready = True
        self._write_record()
        return credentials

    async def _postgres_is_ready(self) -> bool:
        """Wait for a server that was started on a data directory; False where that is a new one."""
        if self._postgres is None or self._fresh:
            return False
        await self._until("postgres", self._postgres.is_ready)
        return True

    async def _start_database(self) -> str:
        if self.platform.database_url is not None:
            return self.platform.database_url
        postgres = await asyncio.to_thread(embedded_postgres, self.platform.home.pgdata)
        self._postgres = postgres
        self._fresh = not (postgres.data / "PG_VERSION").exists()
        self._tell("making a PostgreSQL data directory" if self._fresh else "starting PostgreSQL")
        self._run(plan.postgres_child(self.platform, postgres))
        return postgres.url

    async def _prepare(self, database_url: str, key: str, node_key: str) -> dict[str, str]:
        self._tell("migrating the database")
        process = await asyncio.create_subprocess_exec(
            *plan.prepare_command(),
            env=plan.prepare_environment(self.platform, database_url, key, node_key),
            cwd=self.platform.home.root,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said = asyncio.create_task(process.communicate())
        try:
            while not said.done():
                self._raise_if_broken()
                await asyncio.wait({said}, timeout=0.2)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        output, errors = (part.decode(errors="replace").strip() for part in said.result())
        if process.returncode == 0:
            return json.loads(output.splitlines()[-1])
        if process.returncode == plan.KNOWN_FAULT:
            raise DatabaseError(errors.splitlines()[-1])
        log = self.platform.home.log("prepare")
        log.write_text(errors + "\n")
        last = errors.splitlines()[-1] if errors else f"exit code {process.returncode}"
        raise DatabaseError(f"The database could not be prepared ({last}). The whole error is in {log}.")

    async def _wait_ready(self, key: str) -> None:
        """Until a request could be served: every process says so itself, and the node is known to the control plane."""
        platform = self.platform
        await self._until("node", lambda: probes.has_ready_node(platform.control, key, platform.node_name))
        await self._until("gateway", lambda: probes.is_ready(platform.gateway))
        await self._until("worker", lambda: plan.WORKER_READY in platform.home.log("worker").read_bytes())

    async def _until(self, name: str, check: Callable[[], bool]) -> None:
        """Wait for one process. Raises StartError where it keeps dying, or takes longer than any machine should."""
        self._tell(f"waiting for {name}")
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await asyncio.to_thread(check):
            self._raise_if_broken()
            if time.monotonic() > deadline:
                raise StartError(
                    f"{name} was not ready after {START_TIMEOUT_S:.0f} s. Its log is {self.platform.home.log(name)}; "
                    "'ebb doctor' may tell why."
                )
            await asyncio.sleep(_POLL_S)

    def _raise_if_broken(self) -> None:
        """A child that keeps dying while the platform starts will not get better by waiting."""
        for name, child in self._children.items():
            if isinstance(child.failed, StartError):
                raise child.failed
            if child.failed is not None or len(child.exits) >= _GIVE_UP_EXITS:
                log = self.platform.home.log(name)
                reason = str(child.failed or f"exit code {child.exits[-1]}")
                raise StartError(f"{name} does not start ({reason}). Its last words, in {log}: {last_line(log)}")

    def _run(self, spec: ChildSpec) -> None:
        child = Child(spec, self._changed)
        self._children[spec.name] = child
        child.start()

    def _changed(self, child: Child) -> None:
        if child.record is None and not self._stopping:
            self._tell(f"{child.spec.name} ended with code {child.exits[-1]}; starting it again")
        elif child.record is not None and child.exits and not self._stopping:
            self._tell(f"{child.spec.name} runs again (pid {child.record.pid})")
        self._write_record()

    def _write_record(self) -> None:
        children = tuple(child.record for child in self._children.values() if child.record is not None)
        SupervisorRecord(
            supervisor=record_of("supervisor", os.getpid()),
            control=self.platform.control,
            gateway=self.platform.gateway,
            ready=self._ready,
            children=children,
        ).write(self.platform.home.supervisor)

    async def _stop_all(self) -> None:
        self._stopping = True
        # The gateway drains while all it needs still runs; nobody may start a runner while runners are stopped.
        await self._stop_children("gateway")
        await self._stop_children("node", "worker", "control")
        if "node" in self._children:
            self._tell("stopping runners")
            await self._stop_runners()
        await self._stop_children("postgres")
        self.platform.home.supervisor.unlink(missing_ok=True)

    async def _stop_children(self, *names: str) -> None:
        children = [self._children[name] for name in names if name in self._children]
        for child in children:
            self._tell(f"stopping {child.spec.name}")
        await asyncio.gather(*(child.stop() for child in children))

    async def _stop_runners(self) -> None:
        with self.platform.home.log("node").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *runners_cleanup_command(self.platform.home),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.platform.home.root,
            )
        try:
            await asyncio.wait_for(process.wait(), RUNNERS_GRACE_S)
        except TimeoutError:
            process.kill()
            self._tell(f"the runners did not stop within {RUNNERS_GRACE_S:.0f} s; see {self.platform.home.log('node')}")


def rotate_logs(home: Home) -> None:
    """Each start writes fresh logs; the ones before are kept once."""
    for log in home.logs.glob("*.log"):
        # A replica's log is its agent's; the supervisor's is this process's own, and open.
        if not log.name.startswith(("replica-", "supervisor")):
            log.replace(log.with_name(log.name + ".1"))


def last_line(log: Path) -> str:
    """What a process wrote last, for a message."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return "(nothing)"
    return lines[-1][:500] if lines else "(nothing)"
