"""Brings the replicas of each endpoint to the desired number: new ones get a node and a device, surplus ones are let
go, idle ones make room. Knows nothing of load, nor of what agents do with its rows."""

import time
from collections.abc import Mapping
from uuid import UUID

from control_plane.db.loop import Leadership
from control_plane.endpoints import life, metrics
from control_plane.placement import apply, observe
from control_plane.placement.fleet import Fleet
from control_plane.placement.rounds import Evict, Place, Refuse, Round, Step, Unpark, Wait

TICK_S = 5.0
WAITING_S = 0.25
"""While somebody waits for room: a replica that is idle may give way by nothing but the time."""
UNHEARD_S = 0.2


class PlacementLoop:
    """Observe (observe.py), decide (rollout.py, rounds.py), apply (apply.py). Nothing is kept between ticks."""

    name = "placement"
    topics: tuple[str, ...] = ("placement",)
    interval_s = TICK_S

    async def tick(self, leadership: Leadership) -> float | None:
        """Does what there is to do; the bell brings the next round at once."""
        started = time.perf_counter()
        async with leadership.database.transaction() as session:
            if leadership.recovered is not None and await observe.is_unheard(session, leadership.recovered.now):
                return UNHEARD_S  # a node may run what the database has forgotten: a second start would be in vain
            askew = await observe.askew(session)
            picture = await observe.picture(session, askew) if askew else observe.Picture()
        for each in picture.askew:
            if each.steps.release:
                async with leadership.transaction() as session:
                    if (held := await life.hold(session, each.id)) is not None:
                        await apply.release(session, held, picture.left)
        steps = Round(Fleet(picture.devices), picture.residents, picture.now).decide(picture.wants)
        for step in steps:
            await _do(leadership, step, picture.left)
        if not steps:
            # after whoever waits: nothing of it is urgent
            await _expire(leadership)
        metrics.LOOP_SECONDS.labels(self.name).observe(time.perf_counter() - started)
        return WAITING_S if any(isinstance(step, Wait | Evict) for step in steps) else None


async def _expire(leadership: Leadership) -> None:
    """Lets go of what has been parked for long."""
    async with leadership.database.transaction() as session:
        overdue = await observe.overdue(session)
    for replica_id, endpoint_id in overdue:
        async with leadership.transaction() as session:
            await apply.expire(session, endpoint_id, replica_id)


async def _do(leadership: Leadership, step: Step, left: Mapping[UUID, str]) -> None:
    """One step; each endpoint that it concerns in a transaction of its own, so that none is held for another."""
    if isinstance(step, Evict):
        for victim in step.victims:
            async with leadership.transaction() as session:
                await apply.evict(session, step, victim)
    async with leadership.transaction() as session:
        held = await life.hold(session, apply.endpoint_of(step))
        if held is None or not apply.still_lacks(held, left):
            return
        match step:
            case Place():
                await apply.place(session, held, step)
            case Unpark():
                await apply.unpark(session, held, step)
            case Refuse():
                await apply.refuse(session, held, step)
            case Evict() | Wait():
                await apply.wait(session, held, step)
