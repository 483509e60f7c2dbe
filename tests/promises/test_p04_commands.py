"""Promise 4: the commands that people type."""

import json
import re
from collections.abc import Iterator

import httpx
import pytest

from tests.promises.running import Platform

STATES = {"zero", "waking", "live", "draining", "failed"}


@pytest.fixture
def typed(stocked: Platform) -> Iterator[Platform]:
    """An endpoint `typed`, removed afterwards."""
    stocked.ebb("deploy", "typed", "--model", "smollm2", "--min", "0", "--max", "1", "--idle", "30", "--wait")
    yield stocked
    stocked.run("rm", "typed")


def test_ps_scale_events_and_rm(typed: Platform) -> None:
    rows = json.loads(typed.ebb("ps", "-o", "json"))
    rows = rows["items"] if isinstance(rows, dict) else rows
    [row] = [r for r in rows if r["endpoint"] == "typed"]
    assert row["state"] in STATES
    assert (row["desired"], row["ready"]) == (0, 0)
    assert row["url"] == f"{typed.gateway}/e/typed/v1"
    assert "typed" in typed.ebb("ps")

    typed.ebb("scale", "typed", "--min", "1", "--max", "1")
    typed.wait_state("live", "typed")
    assert "ready" in typed.ebb("logs", "typed")
    typed.ebb("scale", "typed", "--min", "0", "--max", "1")

    events = json.loads(typed.ebb("events", "-o", "json"))
    events = events["items"] if isinstance(events, dict) else events
    of_replica = [e for e in events if e["kind"] == "replica"]
    assert of_replica
    assert all(e["reason"] for e in events)

    typed.ebb("rm", "typed")
    gone = typed.post("typed", json={"messages": [{"role": "user", "content": "x"}]})
    assert gone.status_code == 404
    assert typed.run("rm", "typed").returncode != 0


def test_chat_streams_and_wakes(typed: Platform) -> None:
    said = typed.ebb("chat", "typed", "Name the capital of France.")
    assert "Paris" in said


def test_nodes_doctor_and_status(bare: Platform) -> None:
    nodes = json.loads(bare.ebb("nodes", "-o", "json"))
    nodes = nodes["items"] if isinstance(nodes, dict) else nodes
    assert nodes[0]["status"] == "ready"
    assert nodes[0]["devices"]
    report = json.loads(bare.ebb("doctor", "-o", "json"))
    checks = report["checks"] if isinstance(report, dict) else report
    names = " ".join(str(c) for c in checks).lower()
    for subject in ("python", "torch", "memory", "port", "postgres", "broker"):
        assert subject in names
    assert bare.gateway in bare.ebb("status")


def test_every_command_has_help_with_examples(bare: Platform) -> None:
    for command in (["deploy"], ["models", "add"], ["chat"], ["up"], ["bench", "load"], ["keys", "create"]):
        shown = bare.run(*command, "--help").stdout
        assert re.search(r"\$ ebb " + " ".join(command), shown), command


def test_mistakes_are_sentences(bare: Platform) -> None:
    for command in (
        ["deploy", "Bad/Name", "--model", "nothing"],
        ["deploy", "fine", "--model", "no-such-model"],
        ["rm", "no-such-endpoint"],
        ["logs", "no-such-endpoint"],
        ["scale", "no-such-endpoint", "--min", "1"],
        ["models", "show", "no-such-model"],
        ["jobs", "no-such-job"],
    ):
        done = bare.run(*command)
        assert done.returncode != 0, command
        assert done.stderr.strip(), command
        assert "Traceback" not in done.stderr + done.stdout, command


def test_bench_load_measures_any_url(chat: Platform) -> None:
    printed = chat.ebb(
        *("bench", "load", "--url", f"{chat.gateway}/e/chat/v1", "--key", chat.key, "--concurrency", "1,2"),
        *("--prompt-tokens", "32", "--new-tokens", "8", "--requests-per-case", "2", "-o", "json"),
    )
    cases = json.loads(printed)["cases"]
    assert [c["concurrency"] for c in cases] == [1, 2]
    for case in cases:
        assert case["errors"] == 0
        assert case["decode_tps"] > 0
        assert 0 < case["ttft_p50_ms"] <= case["ttft_p99_ms"]
        assert {"itl_p50_ms", "itl_p99_ms", "requests"} <= set(case)


def test_the_ui_url_answers(bare: Platform) -> None:
    assert httpx.get(bare.control + "/", headers={"Authorization": f"Bearer {bare.key}"}).status_code == 200
