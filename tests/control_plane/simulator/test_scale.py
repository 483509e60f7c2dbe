"""Scaling replayed: traces read, files refused in a sentence, and what each policy comes to on plain traces."""

import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace
from typer.testing import CliRunner

from control_plane.cli import simulate
from control_plane.cli.errors import CliError
from control_plane.simulator.errors import SimulationError
from control_plane.simulator.scale.compare import Comparison, compare
from control_plane.simulator.scale.engine import Engine
from control_plane.simulator.scale.formats import read_trace
from control_plane.simulator.scale.policies import check_name, scaler_of
from control_plane.simulator.scale.replay import Outcome, Replay
from control_plane.simulator.scale.settings import read_settings
from control_plane.simulator.scale.workload import Arrival, Trace

SETTINGS = read_settings(None)
ALL = ("ebb", "constant:60", "constant:300", "knative")


def trace_of(*arrivals: tuple[float, int, float]) -> Trace:
    made = tuple(Arrival(*one) for one in sorted(arrivals))
    return Trace(made, tuple(f"m{number}" for number in range(1 + max(one.endpoint for one in made))))


def replayed(trace: Trace, policy: str, nodes: int = 1, **changed: float) -> Outcome:
    fleet = replace(SETTINGS, **changed)
    return Replay(trace, nodes, fleet, scaler_of(policy, fleet, trace)).run()


def arena(path: Path, count: int = 60, gap_s: float = 40.0) -> Path:
    lines = [f"{at * gap_s},m{at % 2},100,20" for at in range(count)]
    path.write_text("t,model,prompt_len,output_len\n" + "\n".join(lines) + "\n")
    return path


def test_a_constant_keeps_for_its_time_and_no_longer() -> None:
    within, after = trace_of((0.0, 0, 1.0), (70.0, 0, 1.0)), trace_of((0.0, 0, 1.0), (90.0, 0, 1.0))
    assert replayed(within, "constant:60").cold == 1 and replayed(after, "constant:60").cold == 2
    outcome = replayed(after, "constant:60")
    assert outcome.waits == [20.0, 20.0] and outcome.replica_s == pytest.approx(20.0 + 1.0 + 60.0)


def test_a_load_that_one_replica_cannot_bear_starts_more() -> None:
    outcome = replayed(trace_of(*((0.0, 0, 10.0) for _ in range(12))), "constant:60", concurrency=4)
    assert outcome.starts == 3 and outcome.cold == 12 and outcome.waits == [20.0] * 12


def test_ebb_wakes_ahead_of_what_comes_by_the_clock() -> None:
    trace = trace_of(*((3600.0 * at, 0, 1.0) for at in range(40)))
    ebb, constant = replayed(trace, "ebb:400"), replayed(trace, "constant:900")
    assert constant.cold == 40 and ebb.cold < 12 and ebb.replica_s < constant.replica_s


def test_one_that_has_no_room_takes_the_place_of_the_longest_idle() -> None:
    trace = trace_of((0.0, 0, 1.0), (50.0, 1, 1.0), (100.0, 2, 1.0), (150.0, 1, 1.0))
    outcome = replayed(trace, "constant:900", node_devices=1, device_gb=36.0)
    assert outcome.evictions == 1 and outcome.cold == 3 and len(outcome.waits) == 4


def test_those_without_room_wait_for_it_and_all_are_answered() -> None:
    trace = trace_of(*((float(at), at, 50.0) for at in range(6)))
    outcome = replayed(trace, "constant:60", node_devices=1, device_gb=36.0)
    assert len(outcome.waits) == 6 and outcome.waits[-1] > 60.0


def test_knative_is_gone_after_its_stable_window() -> None:
    outcome = replayed(trace_of((0.0, 0, 1.0), (50.0, 0, 1.0), (400.0, 0, 1.0)), "knative")
    assert outcome.cold == 2 and 90.0 < outcome.replica_s < 150.0


@given(
    st.lists(st.tuples(st.floats(0.0, 5000.0), st.integers(0, 4), st.floats(0.0, 200.0)), min_size=1, max_size=40),
    st.sampled_from(ALL),
    st.floats(18.0, 80.0),
)
@settings(max_examples=60, deadline=None)
def test_everyone_has_a_turn_and_no_books_are_left_open(
    arrivals: list[tuple[float, int, float]], policy: str, device_gb: float
) -> None:
    outcome = replayed(trace_of(*arrivals), policy, node_devices=1, device_gb=device_gb, concurrency=2)
    assert len(outcome.waits) == len(arrivals) and min(outcome.waits) >= 0.0
    assert 1 <= outcome.cold <= len(arrivals) and outcome.replica_s >= 0.0 and outcome.evictions < outcome.starts


def test_each_format_is_read(tmp_path: Path) -> None:
    texts = {
        "gentd26": "gmt_create,exec_time_seconds,checkpoint_model_version_id\n"
        "2024-11-15 18:17:14,43.0,M1\n2024-11-15 18:16:14,,M2\n",
        "azure-functions": "app,func,end_timestamp,duration\na,f,10.0,4.0\na,g,8.0,3.0\n",
        "arena": "t,model,prompt_len,output_len\n5,m0,2000,40\n4,m1,0,0\n",
    }
    for format, text in texts.items():
        path = tmp_path / f"{format}.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))
        trace = read_trace(path, format, SETTINGS, 0)
        assert [one.endpoint for one in trace.arrivals] == [0, 1] and trace.arrivals[0].at_s == 0.0, format
    trace = read_trace(tmp_path / "arena.csv.gz", "arena", SETTINGS, 0)
    assert trace.arrivals[1].busy_s == pytest.approx(
        2000 / SETTINGS.prefill_tokens_per_s + 1.0
    ) and trace.endpoints == ("m1", "m0")


def test_servegen_arrivals_have_their_rate_and_rare_clients_come_first(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    rows = [f"m,{client},{600 * at},{rate},1,{pattern},0.9,1" for at in range(20) for client, rate, pattern in CLIENTS]
    path.write_text("model,client,ts,rate,cv,pattern,shape,scale\n" + "\n".join(rows) + "\n")
    trace = read_trace(path, "servegen", replace(SETTINGS, servegen_requests=4000), 7)
    counts = [sum(one.endpoint == number for one in trace.arrivals) for number in range(len(trace.endpoints))]
    assert sorted(trace.endpoints) == ["m/a", "m/b"] and all(1000 < count < 1400 for count in counts)
    assert trace == read_trace(path, "servegen", replace(SETTINGS, servegen_requests=4000), 7)


def quiet(label: str, done: int, total: int | None) -> None:
    """Nobody watches."""


CLIENTS = (("a", 0.1, "Gamma"), ("b", 0.1, "Weibull"), ("c", 5.0, "Gamma"))


@pytest.mark.parametrize(
    ("format", "text", "told"),
    [
        ("arena", "", "no column t, model"),
        ("arena", "t,model,prompt_len,output_len\n", "has no request"),
        ("arena", "t,model,prompt_len,output_len\nx,m,1,1\n", "line 2: could not convert"),
        ("arena", "t,model,prompt_len,output_len\nnan,m,1,1\n", "line 2: 'nan' is no finite number"),
        ("arena", "t,model,prompt_len,output_len\n1,m\n", "line 2: "),
        ("gentd26", "t,model,prompt_len,output_len\n1,m,1,1\n", "its first line has t, model"),
        ("gentd26", "gmt_create,exec_time_seconds,checkpoint_model_version_id\ntoday,1,M\n", "line 2: time data"),
        ("servegen", "model,client,ts,rate,pattern,shape\nm,1,0,1,Pareto,1\n", "'Pareto' is no pattern"),
        ("azure-functions", "\0\x01", "no column app"),
        ("azure-code", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n", "line 2: Invalid isoformat"),
        ("azure-conversation", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,-1,1\n", "less than none"),
    ],
)
def test_a_file_that_is_not_of_its_format_is_told_in_a_sentence(
    tmp_path: Path, format: str, text: str, told: str
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(SimulationError, match=r"trace\.csv") as failed:
        read_trace(path, format, SETTINGS, 0)
    assert told in str(failed.value)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(b"no gzip")
    for path in (broken, tmp_path / "none.csv", tmp_path):
        with pytest.raises(SimulationError, match="cannot be read"):
            read_trace(path, "arena", SETTINGS, 0)


def test_settings_that_make_no_sense_are_told(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text("start_s = 1")
    with pytest.raises(SimulationError, match="It needs start_s"):
        read_settings(path)
    with pytest.raises(SimulationError, match="memory_gb 90 and device_gb 80"):
        replayed(trace_of((0.0, 0, 1.0)), "ebb", memory_gb=90.0)


@pytest.mark.parametrize("name", ["", "none", "ebb:x", "ebb:0", "constant", "constant:-1", "knative:3", "constant:inf"])
def test_a_policy_that_is_none_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="is no policy; there are ebb"):
        check_name(name)


def test_the_figures_of_a_comparison(tmp_path: Path) -> None:
    result = compare(Comparison(arena(tmp_path / "t.csv"), "arena", 1, ALL), quiet)
    assert [one.policy for one in result.figures] == list(ALL) and "60 requests to 2 endpoints" in result.title
    for one in result.figures:
        assert one.memory_hours == pytest.approx(16.0 * one.replica_hours)
        assert 0.0 < one.cold_share < 1.0 and one.wait_p50_s <= one.wait_p95_s <= one.wait_p99_s


def test_the_command_prints_what_was_agreed(tmp_path: Path) -> None:
    args = ["scale", "--trace", str(arena(tmp_path / "t.csv")), "--format", "arena", "--nodes", "2"]
    done = CliRunner().invoke(simulate.app, [*args, "-o", "json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)["policies"]
    assert [one["policy"] for one in printed] == ["ebb", "constant:60", "constant:300", "constant:900", "knative"]
    assert set(printed[0]) == {
        *("policy", "cold_share", "wait_p50_s", "wait_p95_s", "wait_p99_s", "memory_hours", "replica_hours"),
        *("slo_attainment", "evictions"),
    }
    table = CliRunner().invoke(simulate.app, args)
    assert table.exit_code == 0 and "constant:900" in table.stdout


def test_the_command_refuses_in_a_sentence(tmp_path: Path) -> None:
    args = ["scale", "--trace", str(tmp_path / "none.csv"), "--format", "arena"]
    assert CliRunner().invoke(simulate.app, [*args, "--policies", "magic"]).exit_code == 2
    failed = CliRunner().invoke(simulate.app, args)
    assert isinstance(failed.exception, CliError) and "cannot be read" in str(failed.exception)


def tokens_of(*arrivals: tuple[float, int, int]) -> Trace:
    return Trace(tuple(Arrival(at, 0, 0.0, prompt, output) for at, prompt, output in arrivals), ("llm",))


def test_an_engine_reads_prompts_in_chunks_and_writes_in_rows() -> None:
    engine = Engine(SETTINGS)
    engine.add(Arrival(0.0, 0, 0.0, 1000, 5), 0.0)
    (alone,) = engine.advance(100.0)
    assert alone.first_at == pytest.approx(SETTINGS.step_s * 4 + SETTINGS.token_s * 1000)
    assert alone.itl_s == pytest.approx(1.0 / SETTINGS.decode_per_s(1)) and engine.decoded == 5
    assert engine.next_at == math.inf


def test_a_prompt_that_comes_in_between_slows_those_that_write() -> None:
    engine = Engine(SETTINGS)
    engine.add(Arrival(0.0, 0, 0.0, 10, 50), 0.0)
    assert engine.advance(0.5) == []
    engine.add(Arrival(0.5, 0, 0.0, 4000, 1), 0.5)
    late, early = engine.advance(100.0)
    assert late.ended_at <= early.ended_at and early.itl_s > 1.5 / SETTINGS.decode_per_s(1)
    assert 1.0 < late.ttft_s < 1.7 and late.itl_s == 0.0


def test_the_least_to_compute_goes_first_and_by_turns_the_oldest() -> None:
    engine = Engine(SETTINGS)
    sizes = (300, 4000, *(100 + at for at in range(12)))
    for size in sizes:
        engine.add(Arrival(0.0, 0, 0.0, size, 1), 0.0)
    ended = [job.arrival.prompt_tokens for job in engine.advance(100.0)]
    assert engine.owed == 0 and sorted(ended) == sorted(sizes)
    assert ended[:7] == [300, *(100 + at for at in range(6))], "the first was begun before others came"
    assert 4000 in ended[7:9], "every eighth turn is the oldest one's"


def test_in_a_burst_who_is_late_already_lets_others_be_in_time_but_for_knative() -> None:
    burst = tokens_of((0.0, 800, 20), *((30.0 + at / 40.0, 800, 20) for at in range(400)))
    met = {policy: replayed(burst, policy).met for policy in ("constant:60", "knative")}
    assert met["constant:60"] > 1.5 * met["knative"]


def test_counting_in_between_changes_nothing() -> None:
    plain, counted = Engine(SETTINGS), Engine(SETTINGS)
    for engine in (plain, counted):
        engine.add(Arrival(0.0, 0, 0.0, 100, 300), 0.0)
    for step in range(30):
        assert counted.advance(step / 10.0) == []
        counted.count(step / 10.0 + 0.05)
    assert 0 < counted.decoded < 300
    assert counted.advance(50.0)[0].ended_at == pytest.approx(plain.advance(50.0)[0].ended_at)
    assert counted.decoded == plain.decoded == 300


@pytest.mark.parametrize("policy", ["ebb", "constant:60", "knative"])
def test_requests_with_tokens_are_all_answered_and_held_to_both_latencies(policy: str) -> None:
    trace = tokens_of(*((at / 3.0, 800, 60) for at in range(400)))
    outcome = replayed(trace, policy)
    assert len(outcome.waits) == 400 and outcome.cold < 100 and 0 < outcome.met < 400
    assert outcome.starts > 2 and outcome.replica_s < 32 * trace.span_s


def test_azures_traces_have_tokens(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:46.6805900,0,0\n"
    )
    trace = read_trace(path, "azure-code", SETTINGS, 0)
    assert [(one.prompt_tokens, one.output_tokens) for one in trace.arrivals] == [(1, 1), (396, 109)]
    assert trace.has_tokens and trace.span_s == pytest.approx(4.314579) and trace.endpoints == ("llm",)
    assert not trace_of((0.0, 0, 1.0)).has_tokens


def test_knative_is_not_taken_down_at_once_nor_in_a_panic() -> None:
    burst = [(0.0, 0, 30.0)] * 30 + [(300.0, 0, 1.0)]
    outcome = replayed(trace_of(*burst), "knative", concurrency=2, start_s=1.0)
    assert outcome.starts > 15 and outcome.replica_s > 15 * 60.0


def test_settings_whose_steps_cannot_be_are_told(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    lines = [f"{name} = {value}" for name, value in structs.asdict(replace(SETTINGS, step_s=1.0)).items()]
    path.write_text("\n".join(lines))
    with pytest.raises(SimulationError, match="raise step_tokens or lower step_s"):
        read_settings(path)
