"""The planner never promises what is not there, gives the same answer to the same question, and says numbers."""

import dataclasses
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from control_plane.endpoints.memory import GIB, MIB, Estimate, ModelSize, estimate, human
from control_plane.placement.fleet import Fleet
from control_plane.placement.planner import DeviceView, Need, NoRoom, Placed, plan, plan_gang, threads_for

BYTES = st.integers(0, 64).map(lambda gib: gib * GIB)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[DeviceView, ...]:
    devices: list[DeviceView] = []
    for node in range(draw(st.integers(0, 4))):
        devices.append(DeviceView(f"n{node}", f"node-{node}", "cpu", "cpu", draw(BYTES)))
        for index in range(draw(st.integers(0, 2))):
            devices.append(DeviceView(f"n{node}", f"node-{node}", f"cuda:{index}", "cuda", draw(BYTES)))
    return tuple(devices)


def need(device: str, total: int) -> Need:
    return Need(device, {"cpu": Estimate(total, 0, 0), "cuda": Estimate(total // 2, 0, 0)})


DEVICE = st.sampled_from(["auto", "cpu", "cuda", "cuda:0", "cuda:1"])


@given(fleets(), st.lists(st.tuples(DEVICE, BYTES), max_size=20), st.randoms())
def test_whatever_comes_no_device_is_overcommitted(
    fleet: tuple[DeviceView, ...], asked: list[tuple[str, int]], random: Random
) -> None:
    for device, size in asked:
        answer = plan(fleet, need(device, size))
        shuffled = list(fleet)
        random.shuffle(shuffled)
        assert plan(tuple(shuffled), need(device, size)) == answer, "the order of the rows decides nothing"
        if isinstance(answer, NoRoom):
            continue
        chosen = next(d for d in fleet if (d.node_id, d.device) == (answer.node_id, answer.device))
        assert device in ("auto", chosen.kind, chosen.device)
        fleet = tuple(
            dataclasses.replace(d, promised_bytes=d.promised_bytes + answer.estimate.total_bytes, of_endpoint=1)
            if d is chosen
            else d
            for d in fleet
        )
        assert all(d.promised_bytes <= d.usable_bytes <= d.memory_bytes for d in fleet)


@given(fleets(), DEVICE, BYTES)
def test_no_room_is_permanent_exactly_when_emptying_does_not_help(
    fleet: tuple[DeviceView, ...], device: str, size: int
) -> None:
    full = tuple(dataclasses.replace(d, promised_bytes=d.usable_bytes) for d in fleet)
    answer, empty = plan(full, need(device, size)), plan(fleet, need(device, size))
    if isinstance(answer, NoRoom) and fleet:
        assert answer.permanent == isinstance(empty, NoRoom)


def node_of(answer: Placed | NoRoom) -> str:
    assert isinstance(answer, Placed), answer
    return answer.node


def test_a_gpu_then_spread_then_the_artifact_then_idle_cores_then_the_tightest_fit() -> None:
    cpu = DeviceView("a", "a", "cpu", "cpu", 64 * GIB)
    small = DeviceView("b", "b", "cuda:0", "cuda", 24 * GIB)
    large = DeviceView("c", "c", "cuda:0", "cuda", 80 * GIB)
    assert node_of(plan((cpu, small, large), need("auto", GIB))) == "b", "packed: the large one stays for large models"
    assert node_of(plan((cpu, dataclasses.replace(small, busy=1), large), need("auto", GIB))) == "c"
    has = dataclasses.replace(small, cached=True, busy=3)
    assert node_of(plan((cpu, has, large), need("auto", GIB))) == "b"
    assert node_of(plan((cpu, dataclasses.replace(has, of_endpoint=1), large), need("auto", GIB))) == "c"
    assert node_of(plan((cpu, small), need("cpu", GIB))) == "a"


def test_a_small_device_takes_a_replica_with_less_cache_rather_than_none() -> None:
    guess = Estimate(GIB, 4 * GIB, 0, one_sequence_bytes=GIB)
    little, roomy = DeviceView("a", "a", "cpu", "cpu", 4 * GIB), DeviceView("b", "b", "cpu", "cpu", 16 * GIB)
    wanted = Need("auto", {"cpu": guess, "cuda": guess})
    cut = plan((little,), wanted)
    assert isinstance(cut, Placed) and cut.estimate.total_bytes == little.usable_bytes
    assert node_of(plan((little, roomy), wanted)) == "b", "all of it where that is to be had"
    never = plan((DeviceView("a", "a", "cpu", "cpu", 2 * GIB),), wanted)
    assert isinstance(never, NoRoom) and never.permanent


def test_a_gang_is_placed_whole_or_not_at_all_and_on_one_machine_where_that_goes() -> None:
    def machine(name: str, free: int, gpus: int = 4) -> list[DeviceView]:
        taken = [0] * free + [70 * GIB] * (gpus - free)
        return [DeviceView(name, name, f"cuda:{i}", "cuda", 80 * GIB, promised_bytes=t) for i, t in enumerate(taken)]

    share = Need("cuda", {"cpu": Estimate(20 * GIB, 0, 0), "cuda": Estimate(20 * GIB, 0, 0)})
    whole = plan_gang([*machine("a", 4), *machine("b", 2), *machine("c", 3)], share, 2)
    assert isinstance(whole, tuple) and {rank.node for rank in whole} == {"b"}, "the machine it leaves least of"
    assert len({rank.spot for rank in whole}) == 2
    over = plan_gang([*machine("a", 1), *machine("b", 2), *machine("c", 3)], share, 5)
    assert isinstance(over, tuple) and [rank.node for rank in over] == ["c"] * 3 + ["b"] * 2, "as few as it takes"
    waits = plan_gang([*machine("a", 1), *machine("b", 2)], share, 4)
    assert isinstance(waits, NoRoom) and not waits.permanent, "three of four places are none"
    never = plan_gang(machine("a", 4), share, 5)
    assert isinstance(never, NoRoom) and never.permanent and "only 4 of the 4 devices" in never.message


@given(fleets(), st.lists(st.tuples(DEVICE, BYTES, st.integers(0, 9), st.booleans()), max_size=25))
def test_the_fleet_answers_what_the_planner_answers(
    devices: tuple[DeviceView, ...], asked: list[tuple[str, int, int, bool]]
) -> None:
    fleet = Fleet(devices)
    for device, size, pick, is_new in asked:
        views = list(fleet.all())
        own = {} if is_new or not views else {views[pick % len(views)].spot: 1}
        cached = frozenset(view.node_id for view in views[: pick % 3])
        seen = [dataclasses.replace(v, of_endpoint=own.get(v.spot, 0), cached=v.node_id in cached) for v in fleet.all()]
        wanted = need(device, size)
        answer = fleet.place(wanted, own, cached)
        assert answer == plan(seen, wanted)
        if isinstance(answer, Placed):
            few = fleet.beside(answer, wanted, own, cached, 3)
            assert plan(few, wanted) == answer, "a decision is stored with few of many"
            fleet.take(answer.spot, answer.estimate.total_bytes, works=pick % 2)


def test_copies_on_one_processor_share_its_cores() -> None:
    cpu = DeviceView("a", "a", "cpu", "cpu", GIB, cpus=8)
    assert [threads_for(cpu, copies) for copies in (1, 2, 3, 20)] == [0, 4, 2, 1]
    assert threads_for(DeviceView("a", "a", "cuda:0", "cuda", GIB, cpus=8), 2) == 0


def test_what_does_not_fit_is_told_in_numbers_and_with_the_next_step() -> None:
    node = DeviceView("a", "box", "cpu", "cpu", 10 * GIB, promised_bytes=5 * GIB)
    never = plan((node,), need("cpu", 9 * GIB))
    assert isinstance(never, NoRoom) and never.permanent
    assert "needs 9.0 GiB" in never.message and "8.0 GiB for replicas" in never.message
    assert "--context" in never.message
    later = plan((node,), need("cpu", 4 * GIB))
    assert isinstance(later, NoRoom) and not later.permanent and "3.0 GiB free" in later.message
    nobody = plan((), need("cpu", 1))
    assert isinstance(nobody, NoRoom) and not nobody.permanent and "ebb up" in nobody.message
    gpu = plan((node,), need("cuda", 1))
    assert isinstance(gpu, NoRoom) and gpu.permanent and "'cuda'" in gpu.message and "there is cpu" in gpu.message


SIZE = ModelSize(artifact_bytes=270 * MIB, kv_bytes_per_token=23_040, dtype="bfloat16")


def test_a_small_model_on_a_cpu() -> None:
    guess = estimate(SIZE, context=8192, concurrency=32, dtype="bfloat16", kind="cpu")
    assert guess.weights_bytes == 270 * MIB
    assert guess.kv_cache_bytes == GIB, "capped"
    wide = estimate(SIZE, context=8192, concurrency=1, dtype="float32", kind="cpu")
    assert (wide.weights_bytes, wide.kv_cache_bytes) == (270 * MIB, 8192 * 23_040 * 2), "weights stay as stored"
    unsaid = estimate(SIZE, context=8192, concurrency=1, dtype="auto", kind="cpu")
    assert unsaid.kv_cache_bytes == 8192 * 23_040, "a CPU keeps bfloat16 unless it is told otherwise"
    stored_wide = dataclasses.replace(SIZE, dtype="float32", kv_bytes_per_token=46_080)
    assert estimate(stored_wide, context=64, concurrency=1, dtype="auto", kind="cpu").kv_cache_bytes == 64 * 23_040


def test_on_a_gpu_plain_weights_are_computed_in_another_width_and_quantized_ones_are_not() -> None:
    plain = estimate(SIZE, context=64, concurrency=1, dtype="float32", kind="cuda")
    assert plain.weights_bytes == 540 * MIB
    fp8 = dataclasses.replace(SIZE, artifact_bytes=140 * MIB, is_plain=False)
    guess = estimate(fp8, context=64, concurrency=1, dtype="float32", kind="cuda")
    assert (guess.weights_bytes, guess.kv_cache_bytes) == (140 * MIB, 64 * 23_040 * 2)


@given(st.integers(1, 200_000), st.integers(1, 256), st.sampled_from(["auto", "float32", "bfloat16", "float16"]))
def test_the_estimate_always_has_room_for_one_whole_sequence(context: int, concurrency: int, dtype: str) -> None:
    for kind in ("cpu", "cuda"):
        guess = estimate(SIZE, context=context, concurrency=concurrency, dtype=dtype, kind=kind)
        assert guess.kv_cache_bytes >= context * SIZE.kv_bytes_per_token
        more = estimate(SIZE, context=context, concurrency=concurrency + 1, dtype=dtype, kind=kind)
        assert more.total_bytes >= guess.total_bytes


def test_bytes_in_words() -> None:
    assert (human(300 * MIB), human(9 * GIB + GIB * 6 // 10), human(23_040)) == ("300 MiB", "9.6 GiB", "22 KiB")
