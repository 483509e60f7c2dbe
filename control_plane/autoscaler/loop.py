"""Asks the policy about every endpoint that is awake or is to be woken, and writes what it says. Knows nothing of
placement."""

import math
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.autoscaler import bearings, pauses
from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.bearings import Known
from control_plane.autoscaler.keepalive import idle_limit_s, wake
from control_plane.autoscaler.observe import has_work, observe
from control_plane.autoscaler.pauses import Pause, Turn, turn
from control_plane.autoscaler.policy import Decision, Limits, Observation, decide
from control_plane.db.clock import db_now, unix
from control_plane.db.loop import Leadership
from control_plane.decisions.service import Basis
from control_plane.endpoints import life, metrics
from control_plane.endpoints.life import Held
from control_plane.endpoints.tables import EndpointTable

TICK_S = 5.0
SOONEST_S = 0.05
ROUNDING_S = 1e-3


class AutoscalerLoop:
    """Observe, decide (policy.py, keepalive.py), apply. Nothing is kept between ticks but what is true of the whole
    fleet, which is read again every few minutes."""

    name = "autoscaler"
    topics: tuple[str, ...] = ("endpoints",)
    interval_s = TICK_S

    def __init__(self) -> None:
        self._fleet = pauses.Fleet()

    async def tick(self, leadership: Leadership) -> float | None:
        """At every bell (gateways ring it while there is work), when some endpoint's idle time is over, and when one is
        to be woken."""
        started = time.perf_counter()
        async with leadership.database.transaction() as session:
            due, next_wake_s = await _due(session)
        again_s = min([await self._one(leadership, endpoint_id) for endpoint_id in due], default=TICK_S)
        metrics.LOOP_SECONDS.labels(self.name).observe(time.perf_counter() - started)
        return max(SOONEST_S, min(again_s, next_wake_s))

    async def _one(self, leadership: Leadership, endpoint_id: UUID) -> float:
        """Seconds after which to look again."""
        async with leadership.database.transaction() as session:
            # most ticks change nothing: looked at without a lock first, and again once the row is held
            again_s = await _rest_s(session, endpoint_id)
        if again_s is None:
            await self._change(leadership, endpoint_id)
        return TICK_S if again_s is None else again_s

    async def _change(self, leadership: Leadership, endpoint_id: UUID) -> None:
        async with leadership.transaction() as session:
            held = await life.hold(session, endpoint_id)
            if held is None or held.endpoint.deleted_at is not None:
                return
            if held.circuit.is_open and held.endpoint.desired > 0:
                await _retry(session, held)
            view = await _look(session, held)
            if view.turned is not None:
                view = replace(view, pause=await pauses.take(session, held, view.turned, self._fleet))
            if view.known is not None and view.learned is not None:
                await bearings.write(session, held, view.known, view.learned)
            decision = view.decision()
            if decision.desired != held.endpoint.desired:
                await life.set_desired(session, held, decision.desired, decision.reason, view.basis())
            if view.pause is not None and held.endpoint.desired == 0:
                await _ahead(session, held, view.pause)


@dataclass(frozen=True)
class _View:
    """One endpoint at one moment, with the idle time it is in and what is to be learned."""

    now: float
    limits: Limits
    observed: Observation
    turned: Turn | None
    pause: Pause | None
    known: Known | None
    learned: Bearing | None

    def decision(self) -> Decision:
        """The policy's; where a plan says how long the endpoint is kept, the plan's reason stands beside it."""
        observed, limits = self._asked()
        decision = decide(observed, limits, self.now)
        if self.pause is None or observed.desired <= decision.desired or observed.is_waking:
            return decision
        return replace(decision, reason=f"{decision.reason} {self.pause.plan.reason}")

    def basis(self) -> Basis:
        """What the policy was asked, so that it can be asked again."""
        observed, limits = self._asked()
        return Basis("autoscaler", {"observed": observed, "limits": limits, "now": self.now})

    def _asked(self) -> tuple[Observation, Limits]:
        """With the idle time of the plan, where there is one."""
        if self.pause is None:
            return self.observed, self.limits
        seen, plan = self.observed, self.pause.plan
        quiet_since = max(self.pause.began_at, seen.last_wake_at or 0.0, seen.last_ready_at or 0.0)
        idle_s = idle_limit_s(plan, self.pause.began_at, quiet_since, self.now)
        if seen.promised_until is not None:
            idle_s = max(idle_s, seen.promised_until - quiet_since)
        observed = replace(seen, last_work_at=self.pause.began_at)
        # a stretch that is over ends now, not a rounding later
        return observed, replace(self.limits, idle_s=max(0.0, idle_s - ROUNDING_S))


async def _look(session: AsyncSession, held: Held) -> _View:
    sight = await observe(session, held)
    now = held.now.timestamp()
    turned: Turn | None = None
    pause: Pause | None = None
    if held.endpoint.idle_auto:
        began_at, pause = await pauses.look(session, held.endpoint)
        busy = has_work(sight.observed, now)
        if busy is not None:
            turned = turn(began_at, has_work=busy, last_work_at=sight.observed.last_work_at, now=now)
    learned = None if sight.known is None else bearings.news(sight.known, sight.observed, sight.latency, now)
    return _View(now, sight.limits, sight.observed, turned, pause, sight.known, learned)


async def _ahead(session: AsyncSession, held: Held, pause: Pause) -> None:
    """Wakes a sleeping endpoint whose time has come, or notes when it comes. Never one that had to make room since its
    last work, nor one that could not start: nobody asks for it yet."""
    endpoint = held.endpoint
    endpoint.wake_at = None
    evicted_at = unix(endpoint.evicted_at)
    if endpoint.max_replicas == 0 or endpoint.retry_at is not None or (evicted_at or 0.0) > pause.began_at:
        return
    now = held.now.timestamp()
    planned = wake(pause.plan, pause.began_at, now)
    if planned.is_due:
        metrics.WAKES.labels("ahead").inc()
        endpoint.last_wake_at = held.now
        endpoint.promised_until = held.now + timedelta(seconds=planned.held_until - now)
        inputs = {"plan": pause.plan, "began_at": pause.began_at, "now": now}
        reason = f"A request is expected. {pause.plan.reason}"
        await life.set_desired(session, held, 1, reason, Basis("keepalive", inputs))
    elif math.isfinite(planned.again_s):
        endpoint.wake_at = held.now + timedelta(seconds=planned.again_s)


async def _retry(session: AsyncSession, held: Held) -> None:
    reason = f"The back-off is over, and {held.endpoint.desired} replicas are wanted."
    if await life.try_again(session, held, reason):
        await life.settle(session, held, reason)


async def _due(session: AsyncSession) -> tuple[list[UUID], float]:
    """Endpoints to look at, and seconds until the next that sleeps is to be woken: those are all that is read of the
    ones that sleep."""
    now = func.clock_timestamp()
    there = EndpointTable.deleted_at.is_(None)
    is_due = or_(EndpointTable.desired > 0, EndpointTable.min_replicas > 0, EndpointTable.wake_at <= now)
    ids = (await session.execute(select(EndpointTable.id).where(there, is_due).order_by(EndpointTable.id))).scalars()
    later = select(func.min(EndpointTable.wake_at)).where(there, EndpointTable.wake_at > now)
    wake_at = (await session.execute(later)).scalar_one()
    return list(ids), math.inf if wake_at is None else (wake_at - await db_now(session)).total_seconds()


async def _rest_s(session: AsyncSession, endpoint_id: UUID) -> float | None:
    """Seconds until time alone may change something; None where something is to change now."""
    held = await life.peek(session, endpoint_id)
    if held is None:
        return TICK_S
    endpoint = held.endpoint
    metrics.DESIRED.labels(endpoint.name).set(endpoint.desired)
    until_retry_s = math.inf
    if endpoint.retry_at is not None and endpoint.desired > 0:
        until_retry_s = (endpoint.retry_at - held.now).total_seconds()
        if until_retry_s <= 0:
            return None
    if endpoint.desired == 0 and endpoint.wake_at is not None and endpoint.wake_at <= held.now:
        return None
    view = await _look(session, held)
    decision = view.decision()
    if view.turned is not None or view.learned is not None or decision.desired != endpoint.desired:
        return None
    return min(decision.again_s, until_retry_s)
