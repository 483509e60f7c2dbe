"""The line of waiting requests by itself: what cannot be hit surely through sockets."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.gateway.activation import Activation, Ask
from data_plane.gateway.control import ControlUnavailable
from data_plane.gateway.fairness import Account, Claim
from data_plane.gateway.knowledge import Asked, Knowledge
from data_plane.gateway.settings import HoldLimits
from data_plane.router.lease import InFlight, Lease
from data_plane.router.table import RouteTable
from data_plane.wire.errors import ApiError
from data_plane.wire.prefix_chain import Chain
from data_plane.wire.prefixes import PrefixReport, pack_names
from data_plane.wire.routes import EndpointRoute, EndpointState, GatewayState, ReplicaRoute, WakeAnswer


class Bench:
    """An activation with one endpoint `e`, and a control plane that is a method."""

    def __init__(self) -> None:
        self.table = RouteTable()
        self.in_flight = InFlight()
        self.wakes = 0
        self.away = False
        limits = HoldLimits(wake_every_s=0.01)
        self.knowledge = Knowledge()
        self.activation = Activation(self.table, self.in_flight, self.wake, limits, self.knowledge)
        self.account = Account()
        self.versions = 0
        self.answer = WakeAnswer("waking")
        self.again_s = 0.0

    async def wake(self, endpoint_id: str, request_id: str, waiting: int, again_s: float) -> WakeAnswer:
        self.wakes += 1
        self.again_s = again_s
        assert (endpoint_id, request_id != "", waiting > 0) == ("e", True, True)
        if self.away:
            raise ControlUnavailable("away")
        return self.answer

    def set(
        self,
        state: EndpointState,
        *slots: int,
        reason: str | None = None,
        retry_at: float | None = None,
        wait_s: float | None = None,
    ) -> None:
        replicas = tuple(ReplicaRoute(f"r{index}", "http://x", "t", count) for index, count in enumerate(slots))
        route = EndpointRoute(
            "e", "t", "chat", "m", state, 0, 10, replicas, reason=reason, retry_at=retry_at, wait_s=wait_s
        )
        self.versions += 1
        changed = self.table.update(GatewayState(str(self.versions), (route,), ()), 0.0)
        self.activation.table_changed(changed)

    def ask(self, hold_s: float = 5.0, names: tuple[int, ...] = ()) -> "asyncio.Task[Lease]":
        now = asyncio.get_running_loop().time()
        asked = Asked(Chain(names, 256 * len(names)))
        ask = Ask("e", "chat", f"q{now}", 10, now, now + hold_s, asked, Claim(self.account))
        return asyncio.create_task(self.activation.acquire(ask, lambda _is_cold: None))

    async def waiting(self, count: int) -> None:
        async with asyncio.timeout(2):
            while self.activation.waiting("e") != (count, 10 * count):  # noqa: ASYNC110 - looked at from outside
                await asyncio.sleep(0)

    def check(self) -> None:
        self.in_flight.check()
        self.activation.check()


async def test_a_turn_that_meets_a_cancelled_request_is_given_on() -> None:
    bench = Bench()
    bench.set("zero")
    first, second, third, fourth = (bench.ask() for _ in range(4))
    await bench.waiting(4)
    bench.set("live", 1)  # three have their turn now, though they have not run yet
    assert bench.in_flight.total == 3
    first.cancel()
    leases = await asyncio.gather(second, third, fourth)
    assert first.cancelled()
    assert bench.in_flight.total == 3
    for lease in leases:
        lease.give_back()
    assert bench.in_flight.total == 0
    bench.check()


async def test_waiting_goes_before_newly_come() -> None:
    bench = Bench()
    bench.set("zero")
    old = bench.ask()
    await bench.waiting(1)
    bench.set("live", 1)
    lease = await old
    ahead = [await bench.ask() for _ in range(2)]
    late = bench.ask()
    await bench.waiting(1)
    assert bench.in_flight.of_replica("r0") == 3, "one runs, two are ready to; what is more waits here"
    lease.give_back()
    ahead.append(await late)
    for one in ahead:
        one.give_back()
    bench.check()


async def test_a_place_that_comes_free_is_taken_by_one_whose_prompt_begins_there() -> None:
    bench = Bench()
    bench.set("live", 1, 1)
    own = {name: tuple(range(start, start + 40)) for name, start in (("r0", 100), ("r1", 200))}
    busy = [await bench.ask(names=(n,)) for n in range(6)]  # a place, and two ahead, on each
    for name, names in own.items():
        report = PrefixReport("epoch", 1, True, pack_names(names), running=1, waiting=2, slots=1)
        bench.knowledge.reported("e", name, report, asyncio.get_running_loop().time())
    waiters = [bench.ask(names=own[name]) for name in ("r0", "r0", "r1", "r1")]
    await bench.waiting(4)
    # the last place that comes free finds nobody of its own: then one more goes where its prompt is
    for name, taken, to in (("r1", 2, "r1"), ("r1", 3, "r1"), ("r0", 0, "r0"), ("r1", 1, "r0")):
        done = next(lease for lease in busy if lease.replica.id == name)
        busy.remove(done)
        done.give_back()
        lease = await asyncio.wait_for(waiters[taken], 1)
        assert (lease.replica.id, lease.reason) == (to, "prefix")
    assert [bench.in_flight.of_replica(name) for name in ("r0", "r1")] == [4, 2]
    bench.check()


class Home:
    """Two replicas of one slot: `r0` holds a prompt of 2,560 tokens and has all it may have, `r1` has nothing."""

    NAMES = tuple(range(100, 140))

    def __init__(self, bench: Bench, tokens_per_s: float, decode_tokens_per_s: float | None = None) -> None:
        self.bench = bench
        bench.set("live", 1, 1)
        for name, names, running in (("r0", self.NAMES, 1), ("r1", (1,), 0)):
            report = PrefixReport(
                *("epoch", 1, True, pack_names(names)),
                running=running,
                slots=1,
                prefill_tokens_per_s=tokens_per_s,
                decode_tokens_per_s=decode_tokens_per_s,
            )
            bench.knowledge.reported("e", name, report, asyncio.get_running_loop().time())
        self.leases: list[Lease] = []

    async def fill(self, answer_s: float | None) -> None:
        """One answer there takes so long; then it is full."""
        if answer_s is not None:
            lease = self._send()
            lease.on_answer()
            await asyncio.sleep(answer_s)
            lease.give_back()
        self.leases = [self._send() for _ in range(4)]

    def _send(self) -> Lease:
        now = asyncio.get_running_loop().time()
        (replica,) = [one for one in self.bench.table.usable("e", now) if one.id == "r0"]
        lease = self.bench.in_flight.borrow("e", replica)
        self.bench.knowledge.sent(lease, Asked(), 0, now)
        return lease

    def close(self, *more: Lease) -> None:
        for lease in (*self.leases, *more):
            lease.give_back()
        self.bench.check()


async def test_who_is_sooner_served_where_its_prompt_is_waits_for_a_place_there_and_others_go_before_it() -> None:
    home = Home(Bench(), tokens_per_s=1000.0)
    await home.fill(answer_s=0.02)
    mine = home.bench.ask(names=home.NAMES)
    await home.bench.waiting(1)
    other = await home.bench.ask(names=(7, 8))
    assert (other.replica.id, mine.done()) == ("r1", False), "a place is not kept from those who belong nowhere"
    home.leases.pop().give_back()
    lease = await asyncio.wait_for(mine, 1)
    assert (lease.replica.id, lease.reason) == ("r0", "prefix")
    home.close(other, lease)


async def test_it_waits_no_longer_than_its_prompt_would_take_elsewhere() -> None:
    home = Home(Bench(), tokens_per_s=10_000.0)
    await home.fill(answer_s=0.001)
    began = time.monotonic()
    mine = home.bench.ask(names=home.NAMES)
    await home.bench.waiting(1)
    lease = await asyncio.wait_for(mine, 2)
    assert lease.replica.id == "r1" and 0.2 < time.monotonic() - began < 1.0
    home.close(lease)


@pytest.mark.parametrize(("answer_s", "hold_s"), [(None, 5.0), (0.02, 0.5)])
async def test_it_does_not_wait_where_answers_are_long_or_its_time_is_up_before(
    answer_s: float | None, hold_s: float
) -> None:
    home = Home(Bench(), tokens_per_s=1000.0, decode_tokens_per_s=20.0)
    await home.fill(answer_s)
    lease = await home.bench.ask(hold_s, names=home.NAMES)
    assert lease.replica.id == "r1"
    home.close(lease)


@pytest.mark.parametrize("wait_s", [None, 0.2])
async def test_where_a_latency_is_to_be_held_who_is_too_late_for_it_lets_others_go_first(wait_s: float | None) -> None:
    bench = Bench()
    bench.set("live", 1, wait_s=wait_s)
    quick = await bench.ask()
    quick.on_answer()
    quick.give_back()  # answers take no time
    bench.set("zero", wait_s=wait_s)
    old = [bench.ask() for _ in range(2)]
    await bench.waiting(2)
    await asyncio.sleep(0.25)
    new = [bench.ask() for _ in range(2)]
    await bench.waiting(4)
    bench.set("live", 1, wait_s=wait_s)  # a place, and two ahead
    (last,) = new[1:] if wait_s is None else old[1:]
    leases = [await one for one in (*old, *new) if one is not last]
    assert not last.done()
    leases[0].give_back()
    for lease in (*leases[1:], await last):
        lease.give_back()
    bench.check()


async def test_many_that_go_in_one_moment_are_passed_over() -> None:
    bench = Bench()
    bench.set("zero")
    gone = [bench.ask() for _ in range(700)]
    await bench.waiting(700)
    for task in gone:
        task.cancel()
    bench.set("live", 1)
    assert bench.in_flight.total == 0 and bench.activation.waiting("e")[0] == 0
    await asyncio.gather(*gone, return_exceptions=True)
    (await bench.ask()).give_back()
    bench.check()


async def test_one_that_waits_no_longer_is_promised_the_start() -> None:
    bench = Bench()
    bench.set("zero")
    for hold_s in (0.0, 0.02):
        with pytest.raises(ApiError) as caught:
            await bench.ask(hold_s)
        assert caught.value.body.code == "model_loading"
        async with asyncio.timeout(2):
            while bench.again_s == 0:  # noqa: ASYNC110 - looked at from outside
                await asyncio.sleep(0)
        assert bench.again_s == float(caught.value.headers["retry-after"])
        bench.again_s = 0.0
    bench.check()


async def test_what_was_promised_to_a_busy_endpoint_wakes_nothing() -> None:
    bench = Bench()
    bench.set("live", 1)
    leases = [await bench.ask() for _ in range(3)]
    with pytest.raises(ApiError) as caught:
        await bench.ask(0.0)
    assert (caught.value.body.code, bench.wakes) == ("endpoint_saturated", 0)
    for lease in leases:
        lease.give_back()
    bench.check()


async def test_wakes_go_on_while_the_control_plane_is_away() -> None:
    bench = Bench()
    bench.away = True
    bench.set("zero")
    held = bench.ask()
    async with asyncio.timeout(2):
        while bench.wakes < 3:  # noqa: ASYNC110 - looked at from outside
            await asyncio.sleep(0.01)
    bench.set("live", 1)
    (await held).give_back()
    bench.check()


async def test_a_wake_that_answers_failed_fails_the_waiters() -> None:
    bench = Bench()
    bench.answer = WakeAnswer("failed", reason="no node has room")
    bench.set("failed", reason="old", retry_at=time.time() - 1)
    with pytest.raises(ApiError, match="no node has room") as caught:
        await bench.ask()
    assert caught.value.headers == {"x-should-retry": "false"}
    bench.check()


async def test_closed_takes_nobody() -> None:
    bench = Bench()
    bench.set("zero")
    held = bench.ask()
    await bench.waiting(1)
    bench.activation.close()
    for task in (held, bench.ask()):
        with pytest.raises(ApiError) as caught:
            await task
        assert caught.value.body.code == "shutting_down"
    bench.check()


STEPS = st.lists(st.sampled_from(("ask", "cancel", "return", "zero", "one", "two", "failed", "turn")), max_size=60)


@settings(max_examples=200, deadline=None)
@given(STEPS)
async def test_no_order_of_events_loses_a_place(steps: list[str]) -> None:
    """Asks, cancellations, returns and route changes in any order: books balance, and all end empty."""
    bench = Bench()
    bench.set("zero")
    asked: list[asyncio.Task[Lease]] = []
    for step in steps:
        running = [task for task in asked if not task.done()]
        if step == "ask":
            asked.append(bench.ask())
        elif step == "cancel" and running:
            running[len(running) // 2].cancel()
        elif step == "return":
            done = [task for task in asked if task.done() and not task.cancelled() and not task.exception()]
            if done:
                done[0].result().give_back()
        elif step == "turn":
            await asyncio.sleep(0)
        elif step == "failed":
            bench.set("failed", reason=f"number {bench.versions}", retry_at=time.time() + 60)
        elif step in ("zero", "one", "two"):
            bench.set(*{"zero": ("zero",), "one": ("live", 1), "two": ("live", 2, 3)}[step])  # type: ignore[arg-type]
        bench.in_flight.check()
    bench.set("live", 100)
    for result in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(result, Lease):
            result.give_back()
        elif isinstance(result, ApiError):
            assert result.body.code == "model_failed"
        else:
            assert isinstance(result, asyncio.CancelledError)
    bench.check()
    assert bench.in_flight.total == 0
    assert bench.activation.waiting("e") == (0, 0)
