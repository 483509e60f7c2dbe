"""Promise 8: metrics on every process, one request id from gateway to runner, an event for each change of state."""

import json
import threading

import httpx

from tests.promises.running import Platform, wait_for

HELLO = [{"role": "user", "content": "Hello"}]


def test_metrics_on_every_process(chat: Platform) -> None:
    chat.post("chat", json={"messages": HELLO, "max_tokens": 2})
    [node] = chat.rest("GET", "/api/v1/nodes").json()["items"]
    [replica] = chat.replicas()
    for url, stem in (
        (chat.control, "ebb_"),
        (chat.gateway, "ebb_gateway_"),
        (node["agent_url"], "ebb_"),
        (replica["url"], "vllm:"),
    ):
        assert httpx.get(url + "/metrics").status_code == 401, url
        shown = httpx.get(url + "/metrics", headers={"Authorization": f"Bearer {chat.key}"})
        assert shown.status_code == 200, url
        assert stem in shown.text, url
    runner = httpx.get(replica["url"] + "/metrics", headers={"Authorization": f"Bearer {chat.key}"}).text
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:e2e_request_latency_seconds",
    ):
        assert name in runner, name


def test_one_request_id_from_gateway_to_runner(chat: Platform) -> None:
    mine = "promise-eight.request-1"
    answer = chat.post("chat", json={"messages": HELLO, "max_tokens": 2}, headers={"x-request-id": mine})
    assert answer.headers["x-request-id"] == mine
    [replica] = chat.replicas()

    def logged(name: str) -> bool:
        lines = (chat.home / "logs" / name).read_text().splitlines()
        return any(mine in json.dumps(json.loads(line)) for line in lines if line.startswith("{"))

    wait_for("the gateway's log line", lambda: logged("gateway.log"), 5)
    wait_for("the runner's log line", lambda: logged(f"replica-{replica['id']}.log"), 5)
    strange = chat.post("chat", json={"messages": HELLO, "max_tokens": 1}, headers={"x-request-id": "a b\tc" * 60})
    assert strange.headers["x-request-id"] != "a b\tc" * 60


def test_events_tell_every_change_with_its_reason(stocked: Platform) -> None:
    heard: list[dict[str, str]] = []
    listening = threading.Event()

    def listen() -> None:
        headers = {"Authorization": f"Bearer {stocked.key}", "Accept": "text/event-stream"}
        with httpx.stream("GET", stocked.control + "/api/v1/events", headers=headers, timeout=60) as stream:
            listening.set()
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    heard.append(json.loads(line.removeprefix("data:")))
                    if heard[-1]["type"] == "deleted" and heard[-1]["subject"] == "watched":
                        return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert listening.wait(10)
    stocked.ebb("deploy", "watched", "--model", "smollm2", "--min", "0", "--max", "1", "--idle", "2")
    assert stocked.post("watched", json={"messages": HELLO, "max_tokens": 1}).status_code == 200
    stocked.wait_state("zero", "watched", 40)
    stocked.ebb("rm", "watched")
    thread.join(20)
    assert not thread.is_alive(), "the stream did not tell of the end"
    endpoint = [e for e in heard if e["kind"] == "endpoint" and e["subject"] == "watched"]
    told = " ".join(str(e) for e in endpoint)
    for state in ("waking", "live", "zero"):
        assert state in told, told
    assert all(e["reason"] for e in endpoint)
    assert any(e["kind"] == "replica" for e in heard)
