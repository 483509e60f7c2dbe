"""The order of the queue: priorities, tenants' shares, what is to be computed, and the turn of the oldest."""

from dataclasses import replace

from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.sampling import SamplingParams
from data_plane.engine.waiting import TURNS, WINDOW, Ledger
from tests.fakes.executor import FakeExecutor

PARAMS = SamplingParams(max_tokens=4, seed=1, ignore_eos=True)


def engine_of(seqs: int = 1, **changes: int) -> Engine:
    config = EngineConfig(max_model_len=64, max_num_seqs=seqs, block_size=4, num_blocks=64)
    return Engine(replace(config, **changes), FakeExecutor(), clock=lambda: 0.0)


def order(engine: Engine) -> list[str]:
    """Requests by their first tokens."""
    seen: list[str] = []
    while engine.has_work:
        seen += [output.request_id for output in engine.step() if output.request_id not in seen]
        engine.check()
    return seen


def test_the_lower_priority_number_goes_first_and_equals_by_arrival() -> None:
    engine = engine_of()
    for name, priority in (("a5", 5), ("b0", 0), ("c5", 5), ("d-1", -1), ("e0", 0)):
        engine.add(name, [1, 2], PARAMS, priority=priority)
    assert order(engine) == ["d-1", "b0", "e0", "a5", "c5"]


def test_every_eighth_turn_is_the_oldests() -> None:
    engine = engine_of()
    engine.add("patient", [1, 2], PARAMS, priority=9)
    for at in range(20):
        engine.add(f"{at}", [1, 2], PARAMS)
    assert order(engine).index("patient") == TURNS - 1


def test_of_one_tenant_who_has_least_to_compute_goes_first_and_by_turns_the_oldest() -> None:
    engine = engine_of()
    engine.add("cached", list(range(40)), PARAMS)
    engine.step()
    engine.add("long", list(range(100, 124)), PARAMS)
    for at in range(TURNS):
        engine.add(f"short{at}", [50 + at, 60 + at], PARAMS)
    engine.add("next", [*range(40), 99], PARAMS)
    seen = order(engine)
    assert seen.index("long") == TURNS - 1
    assert seen[1:3] == ["next", "short0"], "what is cached already counts as done"


def test_only_so_many_of_the_oldest_are_compared() -> None:
    engine = engine_of()
    for at in range(WINDOW + 1):
        engine.add(f"long{at}", [at] * 8, PARAMS)
    engine.add("short", [99], PARAMS)
    assert order(engine).index("short") == 2, "it is among the oldest as soon as two have gone"


def test_a_flood_of_one_tenant_does_not_drown_another() -> None:
    engine = engine_of(2)
    for at in range(40):
        engine.add(f"flood{at}", [1] * 8, PARAMS, tenant="flood")
    for _ in range(5):
        engine.step()
    for at in range(5):
        engine.add(f"drop{at}", [1] * 8, PARAMS, tenant="drop")
    seen = order(engine)
    last = max(seen.index(f"drop{at}") for at in range(5))
    assert last < 16, "half of the turns are the newcomer's"


def test_shares_are_counted_in_tokens_and_not_in_requests() -> None:
    engine = engine_of()
    for at in range(12):
        engine.add(f"long{at}", list(range(24)), PARAMS, tenant="long", cache_salt=str(at))
        engine.add(f"short{at}", [1, 2], PARAMS, tenant="short", cache_salt=str(at))
    seen = order(engine)[:12]
    # 27 tokens against 5
    assert sum(name.startswith("long") for name in seen) == 2


def test_nobody_saves_up_while_idle_and_nothing_is_remembered_of_those_who_left() -> None:
    ledger = Ledger()
    busy = ledger.open("busy")
    busy.served = 1000
    newcomer = ledger.open("new")
    assert newcomer.served == 1000
    newcomer.served = 1500
    ledger.close(newcomer)
    assert ledger.open("new").served == 1500, "who had more than others still has, when he comes back"
    busy.served = 9000
    ledger.close(busy)
    ledger.close(newcomer)
    assert ledger.open("anybody").served == 0
    assert ledger.open("busy").served == 0


def test_a_long_prompt_lets_others_pass_in_its_middle() -> None:
    """Another tenant's by turns, a better priority's at once, its own tenant's not."""

    def rows(tenant: str, priority: int) -> list[list[tuple[str, int]]]:
        engine = engine_of(4, max_num_batched_tokens=16)
        engine.add("long", list(range(60)), PARAMS, tenant="a")
        engine.step()
        engine.add("late", list(range(20)), PARAMS, tenant=tenant, cache_salt="x", priority=priority)
        for _ in range(4):
            engine.step()
        assert isinstance(engine.executor, FakeExecutor)
        return [[(row.request_id, len(row.tokens)) for row in batch.rows] for batch in engine.executor.batches[1:5]]

    assert rows("a", 0)[:3] == [[("long", 16)], [("long", 16)], [("long", 12), ("late", 4)]]
    assert rows("a", -1)[:2] == [[("late", 16)], [("late", 4), ("long", 12)]]
    assert rows("b", 0) == [[("long", 16)], [("late", 16)], [("long", 16)], [("late", 4), ("long", 12)]]


def test_the_lowest_priority_is_preempted_though_it_is_the_oldest() -> None:
    config = EngineConfig(max_model_len=40, max_num_seqs=2, block_size=4, num_blocks=10, max_speculative_batch=0)
    engine = Engine(config, FakeExecutor(), clock=lambda: 0.0)
    params = SamplingParams(max_tokens=30, seed=1, ignore_eos=True)
    engine.add("later", [1, 2], params, priority=1)
    engine.add("sooner", [1, 2], params, priority=0)
    ends: list[str] = []
    while engine.has_work:
        ends += [output.request_id for output in engine.step() if output.finish_reason]
        engine.check()
    assert engine.stats().preemptions >= 1
    assert ends == ["sooner", "later"]
