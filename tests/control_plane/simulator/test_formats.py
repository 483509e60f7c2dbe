"""Traces as they are written, read into what is replayed; and files that cannot be, told in a sentence."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.formats import READERS, read_agentic, read_mooncake, read_synthetic
from control_plane.simulator.settings import read_settings


def written(path: Path, *rows: dict[str, Any]) -> Path:
    """The rows as lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mooncake(timestamp: int, *hash_ids: int) -> dict[str, Any]:
    return {"timestamp": timestamp, "input_length": 512 * len(hash_ids), "output_length": 9, "hash_ids": hash_ids}


def agentic(hash_ids: list[int], **more: Any) -> dict[str, Any]:
    return {"t": 0.0, "in": 64 * len(hash_ids), "out": 7, "hash_ids": hash_ids, "api_time": 1.0, **more}


def test_mooncake_arrivals_are_drawn_from_their_three_seconds(tmp_path: Path) -> None:
    trace = written(tmp_path / "t.jsonl", *(mooncake(3000 * (at // 4) + 9000, 0, at + 1) for at in range(40)))
    workload = read_mooncake(trace, 1)
    starts = [session.start_s for session in workload.sessions]
    assert starts == sorted(starts) and len(set(starts)) == 40 and workload.block_tokens == 512
    for session in workload.sessions:
        bucket = (session.requests[0].chain[1] - 1) // 4
        assert 3.0 * bucket <= session.start_s <= 3.0 * bucket + 3.0
    assert read_mooncake(trace, 1) == workload != read_mooncake(trace, 2)


def test_a_packed_trace_is_the_same(tmp_path: Path) -> None:
    plain = written(tmp_path / "t.jsonl", mooncake(0, 0, 1), mooncake(3000, 0, 2))
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_mooncake(packed, 0) == read_mooncake(plain, 0)


def test_agentic_sessions_share_their_system_prompt_and_nothing_else(tmp_path: Path) -> None:
    sizes = {"block_size": 64, "tool_tokens": 64, "system_tokens": 64}
    first = {**sizes, "requests": [agentic([1, 2, 3]), agentic([1, 2, 3, 4], think_time=5.0)]}
    second = {**sizes, "requests": [agentic([1, 2, 3], think_time=0.0)]}
    other = {**sizes, "tool_tokens": 128, "requests": [agentic([1, 2, 3])]}
    workload = read_agentic(written(tmp_path / "t.jsonl", first, second, other), 0)
    chains = {one.key: [request.chain for request in one.requests] for one in workload.sessions}
    one, two, three = chains["session-1"], chains["session-2"], chains["session-3"]
    assert one[1][:3] == one[0] and one[0][:2] == two[0][:2] and one[0][2] != two[0][2]
    assert not set(three[0]) & {name for chain in (*one, *two) for name in chain}
    thinks = next(s for s in workload.sessions if s.key == "session-1").requests
    assert [request.think_s for request in thinks] == [0.0, 5.0]
    assert all(0.0 <= session.start_s < 1.0 for session in workload.sessions)


def test_sub_agents_take_their_turn_and_a_missing_pause_is_what_the_times_say(tmp_path: Path) -> None:
    inner = [agentic([1, 5], t=3.0, think_time=0.5)]
    requests = [agentic([1]), {"t": 2.0, "requests": inner}, agentic([1, 2], t=9.0)]
    workload = read_agentic(written(tmp_path / "t.jsonl", {"block_size": 64, "requests": requests}), 0)
    (session,) = workload.sessions
    assert [len(request.chain) for request in session.requests] == [1, 2, 2]
    assert [request.think_s for request in session.requests] == [0.0, 0.5, 9.0 - 3.0 - 1.0]


def test_synthetic_sessions_grow_from_what_they_share(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text("sessions = 12\nturns = 3\nsystems = 2\nsystem_tokens = 640\nturn_tokens = 300\n")
    workload = read_synthetic(plan, 3)
    assert len(workload.sessions) == 12 and {len(one.requests) for one in workload.sessions} == {3}
    assert len({one.requests[0].chain[:10] for one in workload.sessions}) == 2
    for session in workload.sessions:
        for before, after in zip(session.requests, session.requests[1:], strict=False):
            assert after.chain[: len(before.chain)] == before.chain and after.prompt_tokens > before.prompt_tokens
            assert len(after.chain) == after.prompt_tokens // 64


@pytest.mark.parametrize(
    ("format", "text", "says"),
    [
        ("mooncake", "", "is empty"),
        ("mooncake", '{"timestamp": 0}\n', "line 1: .*Is --format the right one"),
        ("mooncake", "{}\nnot json\n", "line 1"),
        ("agentic", '{"block_size": 0, "requests": []}\n', "blocks of 0 tokens"),
        ("agentic", '{"block_size": 64, "requests": []}\n', "has no request"),
        ("synthetic", "session = 3\n", "session.*sessions, turns"),
        ("synthetic", "turns = 0\n", "at least 1"),
        ("synthetic", "= 3\n", "TOML"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_told(tmp_path: Path, format: str, text: str, says: str) -> None:
    trace = tmp_path / "trace"
    trace.write_text(text)
    with pytest.raises(SimulationError, match=says):
        READERS[format](trace, 0)


def test_a_file_that_is_not_there_or_broken_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "t.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"timestamp": 0}' * 100)[:40])
    for path in (broken, tmp_path / "none.jsonl"):
        with pytest.raises(SimulationError, match="cannot be read"):
            read_mooncake(path, 0)
    with pytest.raises(SimulationError, match="cannot be read"):
        read_synthetic(tmp_path / "none.toml", 0)


def test_settings_are_those_of_ebb_or_of_a_file(tmp_path: Path) -> None:
    assert read_settings(None).batch > 1
    path = tmp_path / "replica.toml"
    path.write_text("prefill_tokens_per_s = 1000\nstep_s = 0.1\nstep_tokens = 200\nbatch = 8\n")
    assert read_settings(path).full_step_s == 0.2
    for wrong, says in (
        ("prefill_tokens_per_s = 0\nstep_s = 0.1\nstep_tokens = 200\nbatch = 8", "not positive"),
        ("prefill_tokens_per_s = 1000\nstep_s = 0.3\nstep_tokens = 200\nbatch = 8", "raise step_tokens"),
        ("prefill_tokens_per_s = 1000\nstep_s = 0.1\nstep_tokens = 8\nbatch = 8", "batch of 8"),
        ("prefill_tokens_per_s = 1000\n", "step_s"),
        ("speed = 1\n", "speed"),
    ):
        path.write_text(wrong)
        with pytest.raises(SimulationError, match=says):
            read_settings(path)
    with pytest.raises(SimulationError, match="cannot be read"):
        read_settings(tmp_path / "none.toml")
