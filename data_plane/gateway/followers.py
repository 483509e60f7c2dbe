"""Follows the reports of every ready replica, as the routes name them. Knows nothing of what is made of the reports."""

import asyncio

import msgspec
import structlog

from data_plane.gateway.control import Backoff
from data_plane.gateway.knowledge import Knowledge
from data_plane.router.runner_client import RunnerClient, RunnerUnusable
from data_plane.router.table import RouteTable
from data_plane.wire.prefixes import PrefixReport, decode_report
from data_plane.wire.routes import ReplicaRoute

WAIT_MS = 1_000
"""A runner answers after it even without news: that is its sign of life."""
SILENT_S = 2.0
"""Without a report for so long, a replica's load counts as unknown."""

_log = structlog.get_logger()


class Followers:
    """One task per replica; they start, end and change with the table. All methods are for the loop's thread."""

    def __init__(self, table: RouteTable, knowledge: Knowledge, runners: RunnerClient) -> None:
        self._table = table
        self._knowledge = knowledge
        self._runners = runners
        self._tasks: dict[tuple[str, str], tuple[ReplicaRoute, asyncio.Task[None]]] = {}

    @property
    def followed(self) -> set[str]:
        """Ids of the replicas that are followed."""
        return {replica_id for _, replica_id in self._tasks}

    def table_changed(self, endpoint_ids: list[str]) -> None:
        """The routes of these endpoints changed."""
        changed = set(endpoint_ids)
        wanted: dict[tuple[str, str], ReplicaRoute] = {}
        for endpoint_id in changed:
            route = self._table.get(endpoint_id)
            for replica in route.replicas if route else ():
                wanted[endpoint_id, replica.id] = replica
        for key in [key for key in self._tasks if key[0] in changed]:
            replica, task = self._tasks[key]
            if wanted.get(key) != replica:
                task.cancel()
                del self._tasks[key]
                if key not in wanted:
                    self._knowledge.forget(*key)
        for key, replica in wanted.items():
            if key not in self._tasks:
                task = asyncio.get_running_loop().create_task(self._follow(key[0], replica), name="follow_replica")
                self._tasks[key] = (replica, task)
        for endpoint_id in changed:
            if self._table.get(endpoint_id) is None:
                self._knowledge.forget_endpoint(endpoint_id)

    async def close(self) -> None:
        """Follow nobody any more."""
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, endpoint_id: str, replica: ReplicaRoute) -> None:
        backoff = Backoff(first_s=0.1, most_s=2.0)
        loop = asyncio.get_running_loop()
        epoch, seq = "", 0
        heard_at = loop.time()
        is_silent = False
        while True:
            try:
                report = await self._ask(replica, epoch, seq)
            except (RunnerUnusable, TimeoutError, msgspec.DecodeError) as error:
                if not is_silent and loop.time() - heard_at >= SILENT_S:
                    is_silent = True
                    self._knowledge.silent(endpoint_id, replica.id)
                    _log.warning("replica_silent", replica=replica.id, reason=str(error) or type(error).__name__)
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            heard_at, is_silent = loop.time(), False
            self._knowledge.reported(endpoint_id, replica.id, report, heard_at)
            epoch, seq = report.epoch, report.seq

    async def _ask(self, replica: ReplicaRoute, epoch: str, seq: int) -> PrefixReport:
        """The next report. Raises RunnerUnusable, TimeoutError, or DecodeError for what is no report."""
        path = f"/prefixes?epoch={epoch}&since={seq}&wait_ms={WAIT_MS}"
        async with asyncio.timeout(WAIT_MS / 1000 + 1.0):
            upstream = await self._runners.open(replica, "GET", path, None, {})
        try:
            report = decode_report(upstream.body or b"")
        finally:
            upstream.close()
        if not report.full and (report.epoch != epoch or report.seq < seq):
            raise msgspec.ValidationError("A difference to another state than the one that was named.")
        return report
