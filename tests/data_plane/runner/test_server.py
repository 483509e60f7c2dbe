"""The port itself: who may use what, the shape of failures, headers, numbers, draining."""

import json
import re
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from data_plane.runner.access import Access
from data_plane.wire.keys import KeyRecord, Scope, new_key
from data_plane.wire.names import USAGE_HEADER
from tests.fakes.served import SCRIPT, TOKEN, Fake, events_of, fake_runner, until

ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/fake"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("GET", "/metrics"),
    ("GET", "/state"),
    ("POST", "/drain"),
    ("GET", "/"),
    ("GET", "/nothing/here"),
]


async def _ask(fake: Fake, method: str, path: str, **options: Any) -> tuple[int, dict[str, str], bytes]:
    options.setdefault("headers", fake.headers)
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, fake.url + path, **options) as response,
    ):
        return response.status, {k.lower(): v for k, v in response.headers.items()}, await response.read()


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "header", [None, "Bearer ", "Bearer wrong", "Bearer ebb_1.x", "Basic abc", "Bearer \u00fcml.aut"]
)
async def test_nothing_without_a_key(fake: Fake, method: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    status, sent, body = await _ask(fake, method, path, headers=headers)
    assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key" and sent["x-request-id"]


async def test_health_is_open(fake: Fake) -> None:
    for path in ("/healthz", "/readyz"):
        assert (await _ask(fake, "GET", path, headers={}))[0] == 200


async def test_scopes_and_changed_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    def write(scopes: tuple[Scope, ...], expires_at: float | None = None) -> dict[str, str]:
        shown, prefix, digest = new_key()
        record = KeyRecord("k1", "default", prefix, digest, scopes, expires_at)
        path.write_bytes(msgspec.json.encode([record]))
        return {"Authorization": f"Bearer {shown}"}

    async with fake_runner(access=Access(TOKEN, path)) as fake:
        infer = write(("infer",))
        assert (await _ask(fake, "GET", "/v1/models", headers=infer))[0] == 200
        assert (await _ask(fake, "GET", "/metrics", headers=infer))[0] == 403
        read = write(("read",))
        assert (await _ask(fake, "GET", "/v1/models", headers=infer))[0] == 401
        assert (await _ask(fake, "GET", "/metrics", headers=read))[0] == 200
        assert (await _ask(fake, "POST", "/v1/completions", headers=read))[0] == 403
        admin = write(("admin",))
        assert (await _ask(fake, "GET", "/state", headers=admin))[0] == 200
        assert (await _ask(fake, "POST", "/drain", headers=admin))[0] == 403 and not fake.drains
        expired = write(("admin",), time.time() - 1)
        assert (await _ask(fake, "GET", "/state", headers=expired))[0] == 401
        path.write_text("not json")
        assert (await _ask(fake, "GET", "/state", headers=fake.headers))[0] == 200
        path.unlink()
        assert (await _ask(fake, "GET", "/state", headers=admin))[0] == 401
        assert (await _ask(fake, "POST", "/drain"))[0] == 202 and fake.drains == [1]


@pytest.mark.parametrize(
    ("path", "raw", "status", "param"),
    [
        ("/v1/completions", b"{", 400, None),
        ("/v1/completions", b'{"prompt":"\xff"}', 400, "prompt"),
        ("/v1/completions", b'{"prompt":"x","n":99}', 400, "n"),
        ("/v1/completions", b'{"prompt":""}', 400, "prompt"),
        ("/v1/completions", b'{"prompt":[99999]}', 400, "prompt"),
        ("/v1/completions", b'{"prompt":"x","logit_bias":{"99999":1}}', 400, "logit_bias"),
        ("/v1/completions", b'{"prompt":"x","stop_token_ids":[99999]}', 400, "stop_token_ids"),
        ("/v1/completions", b'{"prompt":"x","max_tokens":2,"min_tokens":3}', 400, "min_tokens"),
        ("/v1/completions", b'{"prompt":"x","max_tokens":2000000000}', 400, "max_tokens"),
        ("/v1/completions", b'{"prompt":"' + b"a" * 10_100_000 + b'"}', 413, None),
        ("/v1/completions", b'{"prompt":"' + b"ab " * 100_000 + b'"}', 400, "prompt"),
        ("/v1/chat/completions", b"{}", 400, "messages"),
        ("/tokenize", b"{}", 400, "prompt"),
        ("/detokenize", b'{"tokens":[99999]}', 400, "tokens"),
        ("/detokenize", b'{"tokens":"x"}', 400, "tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_input(fake: Fake, path: str, raw: bytes, status: int, param: str | None) -> None:
    got, headers, body = await _ask(fake, "POST", path, data=raw)
    error = json.loads(body)["error"]
    assert (got, error["param"]) == (status, param) and set(error) == {"message", "type", "param", "code"}
    assert headers["content-type"].startswith("application/json") and headers["x-request-id"]
    assert fake.service.busy == 0


async def test_unknown_paths_and_methods(fake: Fake) -> None:
    assert (await _ask(fake, "GET", "/v1/nothing"))[0] == 404
    assert (await _ask(fake, "GET", "/v1/models/other"))[0] == 404
    status, _, body = await _ask(fake, "GET", "/v1/completions")
    assert status == 405 and json.loads(body)["error"]["message"]


async def test_request_ids_and_timing(fake: Fake) -> None:
    body = b'{"prompt":"x","max_tokens":2}'
    _, headers, _ = await _ask(
        fake, "POST", "/v1/completions", data=body, headers=fake.headers | {"x-request-id": "mine-1"}
    )
    assert headers["x-request-id"] == "mine-1" and int(headers["openai-processing-ms"]) >= 0
    _, headers, _ = await _ask(
        fake, "POST", "/v1/completions", data=body, headers=fake.headers | {"x-request-id": "no good/"}
    )
    assert headers["x-request-id"] != "no good/"


async def test_the_shape_of_a_stream(fake: Fake) -> None:
    raw = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":5,"temperature":0,"stream":true}'
    status, headers, body = await _ask(fake, "POST", "/v1/chat/completions", data=raw)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = events_of(body.decode())
    assert events[-1] == "[DONE]" and body.endswith(b"data: [DONE]\n\n")
    chunks = [event for event in events if isinstance(event, dict)]
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)
    first: Any = chunks[0]["choices"]
    last: Any = chunks[-1]["choices"]
    assert first[0]["delta"] == {"role": "assistant", "content": ""} and first[0]["finish_reason"] is None
    assert last[0]["delta"] == {} and last[0]["finish_reason"] == "length"


async def test_a_stream_ends_with_its_usage_as_a_comment_where_a_gateway_asks(fake: Fake) -> None:
    raw = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":5,"stream":true,'
    raw += b'"stream_options":{"include_usage":true}}'
    plain = (await _ask(fake, "POST", "/v1/chat/completions", data=raw))[2]
    asking = {**fake.headers, USAGE_HEADER: "1"}
    told = (await _ask(fake, "POST", "/v1/chat/completions", data=raw, headers=asking))[2]
    assert b": usage" not in plain
    usage: Any = [event for event in events_of(told.decode()) if isinstance(event, dict)][-1]["usage"]
    counts = f"{usage['prompt_tokens']} {usage['completion_tokens']} {usage['prompt_tokens_details']['cached_tokens']}"
    comment = f"\n\n: usage {counts}\n\ndata: [DONE]\n\n"
    assert told.endswith(comment.encode())


async def test_tokenizer_routes(fake: Fake) -> None:
    async def post(path: str, value: object) -> dict[str, Any]:
        status, _, body = await _ask(fake, "POST", path, data=json.dumps(value))
        assert status == 200
        return json.loads(body)

    tokens = (await post("/tokenize", {"prompt": "héllo <|im_end|>"}))["tokens"]
    assert 2 not in tokens and (await post("/detokenize", {"tokens": tokens}))["prompt"] == "héllo <|im_end|>"
    assert (await post("/tokenize", {"prompt": "<|im_end|>", "parse_special": True}))["tokens"] == [2]
    chat = await post(
        "/tokenize", {"messages": [{"role": "user", "content": "a<|im_end|>b"}], "return_token_strs": True}
    )
    assert chat["tokens"].count(2) == 1 and chat["count"] == len(chat["tokens"]) == len(chat["token_strs"])
    info = json.loads((await _ask(fake, "GET", "/tokenizer_info"))[2])
    assert info["eos_token"] == "<|im_end|>" and "chat_template" in info


async def test_metrics_and_state(fake: Fake) -> None:
    await _ask(fake, "POST", "/v1/completions", data=b'{"prompt":"the fox","max_tokens":7,"temperature":0}')
    text = (await _ask(fake, "GET", "/metrics"))[2].decode()
    assert 'vllm:generation_tokens_total{model_name="fake"} 7.0' in text
    http_cpu = re.search(r'^ebb:runner_http_cpu_seconds_total\{model_name="fake"\} (\S+)$', text, re.M)
    assert http_cpu is not None and 0 < float(http_cpu[1]) < time.thread_time()
    assert 'vllm:request_success_total{finished_reason="length",model_name="fake"} 1.0' in text
    for stem in [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prompt_tokens_total",
        "num_preemptions_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "spec_decode_num_draft_tokens_total",
        "spec_decode_num_accepted_tokens_total",
        "request_queue_time_seconds_bucket",
        "request_prefill_time_seconds_bucket",
        "engine_host_seconds_total",
        "engine_executor_seconds_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_bucket",
        "request_prompt_tokens_bucket",
        "request_generation_tokens_bucket",
        "iteration_tokens_total_bucket",
        "cache_config_info",
    ]:
        assert f"vllm:{stem}{{" in text
    assert 'vllm:request_queue_time_seconds_count{model_name="fake"} 1.0' in text
    state = json.loads((await _ask(fake, "GET", "/state"))[2])
    assert state["running"] == 0 and state["idle_for_s"] >= 0 and state["draining"] is False
    await until(lambda: fake.model.engine.stats.kv_usage == 0)


async def test_cached_prompts_are_told_and_kept_apart_by_tenant_and_salt(tmp_path: Path) -> None:
    keys = {tenant: new_key() for tenant in ("one", "two")}
    records = [
        KeyRecord(f"k-{tenant}", tenant, prefix, digest, ("infer",)) for tenant, (_, prefix, digest) in keys.items()
    ]
    path = tmp_path / "keys.json"
    path.write_bytes(msgspec.json.encode(records))
    prompt = list(range(40, 90))
    async with fake_runner(access=Access(TOKEN, path)) as fake:

        async def cached(headers: dict[str, str], **more: object) -> int:
            body = {"prompt": prompt, "max_tokens": 3, **more}
            status, _, answer = await _ask(fake, "POST", "/v1/completions", json=body, headers=headers)
            assert status == 200
            return json.loads(answer)["usage"]["prompt_tokens_details"]["cached_tokens"]

        one, two = ({"Authorization": f"Bearer {keys[tenant][0]}"} for tenant in ("one", "two"))
        assert await cached(one) == 0
        assert await cached(one) == 48
        assert await cached(two) == 0
        assert await cached(two | {"x-ebb-tenant": "one"}, cache_salt="a") == 0
        assert await cached(two | {"x-ebb-tenant": "one"}) == 48, "its own, whatever the header says"
        assert await cached(one, cache_salt="a") == 0
        assert await cached(fake.headers | {"x-ebb-tenant": "one"}) == 48
        assert await cached(fake.headers | {"x-ebb-tenant": "three"}) == 0
        assert await cached(fake.headers | {"x-ebb-tenant": "\u00fc\udcff"}) == 0
        text = (await _ask(fake, "GET", "/metrics"))[2].decode()
        assert 'vllm:prefix_cache_hits_total{model_name="fake"} 144.0' in text
        assert 'vllm:prefix_cache_queries_total{model_name="fake"} 450.0' in text


async def test_choices_of_one_prompt_count_what_the_first_found(fake: Fake) -> None:
    body = {"prompt": list(range(40, 90)), "max_tokens": 2, "n": 4}
    usages = [json.loads((await _ask(fake, "POST", "/v1/completions", json=body))[2])["usage"] for _ in range(2)]
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages] == [0, 48]
    assert [usage["prompt_tokens"] for usage in usages] == [50, 50]


async def test_priority_goes_to_the_engine_and_is_checked(fake: Fake) -> None:
    async with aiohttp.ClientSession(headers=fake.headers) as session:
        fake.executor.step_delay_s = 0.05
        body = {"prompt": "x", "max_tokens": 40, "stream": True, "priority": -7}
        async with session.post(f"{fake.url}/v1/completions", json=body) as response:
            assert response.status == 200
            await response.content.readany()
            assert [request.rank[0] for request in fake.engine.scheduler.requests.values()] == [-7]
    assert (await _ask(fake, "POST", "/v1/completions", data=b'{"prompt":"x","priority":"high"}'))[0] == 400
    assert (await _ask(fake, "POST", "/v1/completions", data=b'{"prompt":"x","priority":4294967296}'))[0] == 400


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_token_ids_are_given_where_asked(fake: Fake, path: str, stream: bool) -> None:
    text = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    body = text | {"max_tokens": 9, "temperature": 0, "stream": stream}

    async def choices(**more: object) -> list[dict[str, Any]]:
        raw = (await _ask(fake, "POST", path, json=body | more))[2].decode()
        answers: list[Any] = [e for e in events_of(raw) if isinstance(e, dict)] if stream else [json.loads(raw)]
        return [choice for answer in answers for choice in answer["choices"]]

    ids = [token for choice in await choices(return_token_ids=True) for token in choice.get("token_ids", [])]
    assert ids == fake.model.tokenizer.encode(SCRIPT)[:9]
    assert not any("token_ids" in choice for choice in await choices())


async def test_draining_refuses_new_requests(fake: Fake) -> None:
    fake.service.draining = True
    status, _, body = await _ask(fake, "POST", "/v1/completions", data=b'{"prompt":"x"}')
    assert status == 503 and json.loads(body)["error"]["code"] == "draining"
    assert (await _ask(fake, "GET", "/readyz", headers={}))[0] == 503
    assert (await _ask(fake, "GET", "/healthz", headers={}))[0] == 200


async def test_no_contents_in_logs(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    await _ask(fake, "POST", "/v1/completions", data=b'{"prompt":"canary-4711","max_tokens":2}')
    fake.executor.fail_on = lambda _batch: RuntimeError("boom")
    await _ask(fake, "POST", "/v1/completions", data=b'{"prompt":"canary-4711","max_tokens":2}')
    written = "".join(capfd.readouterr())
    assert "canary-4711" not in written and TOKEN not in written and "request ended" in written
