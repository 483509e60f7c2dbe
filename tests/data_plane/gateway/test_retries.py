"""What may be sent once more, and what never again: budget and quarantine by themselves, and through a gateway."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.gateway.quarantine import FOR_S, MOST, Quarantine, fingerprint
from data_plane.gateway.retry_budget import FLOOR, SHARE, RetryBudget
from data_plane.gateway.settings import GatewaySettings

from .world import SETTINGS, World, chat, eventually


@given(st.lists(st.booleans(), max_size=400))
def test_no_more_than_a_fifth_is_repeated(steps: list[bool]) -> None:
    budget, asked, repeated = RetryBudget(), 0, 0
    for is_request in steps:
        if is_request:
            budget.note_request("e", 0.0)
            asked += 1
        else:
            repeated += budget.spend("e", 0.0)
        assert repeated <= FLOOR + SHARE * asked


def test_a_quiet_endpoint_may_repeat_a_few_and_later_again() -> None:
    budget = RetryBudget()
    assert [budget.spend("e", 0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [budget.spend("e", 24.0) for _ in range(3)] == [True, True, False]
    assert budget.spend("other", 24.0)
    budget.forget_all_but({"other"})
    assert [budget.spend("e", 24.0) for _ in range(6)] == [True] * 5 + [False]


def test_a_death_pays_for_its_own_unless_too_many_die() -> None:
    budget = RetryBudget()
    for _ in range(25):
        budget.note_death("e", "one", 25, 4, 0.0)
    budget.note_death("e", "two", 10, 4, 1.0)
    budget.note_death("e", "three", 1_000, 4, 2.0)
    assert sum(budget.spend("e", 2.0) for _ in range(100)) == 25 + 10 + FLOOR
    budget.note_death("e", "four", 7, 1, 200.0)
    assert sum(budget.spend("e", 200.0) for _ in range(100)) == 7 + FLOOR


def test_quarantine_ends_is_bounded_and_keeps_tenants_apart() -> None:
    quarantine = Quarantine()
    assert not quarantine
    name = fingerprint("t", "/v1/completions", b"{}")
    assert len({name, fingerprint("u", "/v1/completions", b"{}"), fingerprint("t", "/v1/completions", b"[]")}) == 3
    quarantine.add(name, 0.0)
    assert quarantine.holds(name, FOR_S - 1) and not quarantine.holds(name, FOR_S)
    assert not quarantine
    for number in range(MOST + 10):
        quarantine.add(str(number).encode(), 0.0)
    assert not quarantine.holds(b"9", 1.0) and quarantine.holds(b"10", 1.0)


async def test_a_fleet_that_loses_every_request_is_spared(world: World) -> None:
    """Replicas that live and lose what they are sent: after the floor, requests are refused rather than repeated."""
    runners = [await world.runner(f"r{at}") for at in range(12)]
    for runner in runners:
        runner.behaviour.crash = "before_first_byte"
    await world.live(*runners)
    world.gateway.attempts.budget.note_death("id-chat", "http://other", 0, 1, asyncio.get_running_loop().time())
    answers: list[str] = []
    for _ in range(4):
        async with world.post() as response:
            answers.append((await response.json())["error"]["code"])
            assert response.status in (502, 503)
    assert answers == ["upstream_failed"] * 4
    assert sum(len(runner.seen) for runner in runners) <= 4 + FLOOR + 6


async def test_an_answer_is_the_same_wherever_it_is_made(world: World) -> None:
    """Where the client names no seed one is chosen, and kept when the request is sent once more."""
    bad, good = await world.runner("a-bad"), await world.runner("b-good")
    bad.behaviour.crash = "before_first_byte"
    await world.live(bad, good)
    for body in (chat(), chat(seed=7)):
        async with world.post(body=body) as response:
            assert response.status == 200
    first, second, third = bad.seen[0].body, good.seen[0].body, good.seen[1].body
    assert first["seed"] == second["seed"] and 0 <= first["seed"] < 1 << 63
    assert third["seed"] == 7


class TestReturn:
    """A replica that was left alone comes back by what it says of itself."""

    async def test_by_a_probe(self, world: World) -> None:
        runner = await world.runner()
        await world.live(runner)
        runner.behaviour.draining = True
        async with world.post(headers={"x-ebb-hold-timeout": "0.1"}) as response:
            assert response.status == 503
        assert not world.gateway.table.usable("id-chat", 0)
        await asyncio.sleep(0.4)
        assert not world.gateway.table.usable("id-chat", 0), "it says itself that it takes nothing"
        runner.behaviour.draining = False
        held = asyncio.create_task(world.post().__aenter__())
        async with await held as response:
            assert response.status == 200

    async def test_one_that_fails_again_stays_away_longer(self, world: World) -> None:
        runner = await world.runner()
        runner.behaviour.crash = "before_first_byte"
        await world.live(runner)
        async with world.post(headers={"x-ebb-hold-timeout": "2.5"}) as response:
            assert response.status in (502, 503)
        assert 2 <= len(runner.seen) <= 3


class TestStalled:
    """A client that takes nothing loses its stream, and the runner is told."""

    @pytest.fixture
    def settings(self) -> GatewaySettings:
        return replace(SETTINGS, stream=replace(SETTINGS.stream, stalled_s=0.3))

    async def test_is_cut_off(self, world: World) -> None:
        runner = await world.runner()
        runner.behaviour.events, runner.behaviour.text = 500, "x" * 65_536
        await world.live(runner)
        async with world.post(body=chat(stream=True)) as response:
            assert response.status == 200
            await eventually(lambda: runner.running == 0, within_s=10)
            assert runner.aborted == 1
