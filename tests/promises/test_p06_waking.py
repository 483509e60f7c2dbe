"""Promise 6: a request wakes a sleeping endpoint, once; idleness puts it to sleep; what cannot start says so."""

import asyncio
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.promises.running import Platform, wait_for

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def sleeper(stocked: Platform) -> Iterator[Platform]:
    """An endpoint `sleeper` that idles for 3 s only."""
    stocked.ebb("deploy", "sleeper", "--model", "smollm2", "--min", "0", "--max", "1", "--idle", "3", "--wait")
    yield stocked
    stocked.ebb("rm", "sleeper")


def test_zero_wakes_serves_and_sleeps_again(sleeper: Platform) -> None:
    assert sleeper.row("sleeper")["state"] == "zero"
    for path in ("/v1/models", "/health"):
        base = f"{sleeper.gateway}/e/sleeper{path}"
        assert httpx.get(base, headers={"Authorization": f"Bearer {sleeper.key}"}).status_code == 200
    auth = {"Authorization": f"Bearer {sleeper.key}"}
    assert httpx.get(f"{sleeper.gateway}/metrics", headers=auth).status_code == 200
    assert httpx.get(f"{sleeper.gateway}/v1/models", headers=auth).status_code == 200
    time.sleep(1)
    assert sleeper.row("sleeper")["state"] == "zero", "looking woke it"

    before = time.monotonic()
    raw = sleeper.client("sleeper").chat.completions.with_raw_response.create(
        model="sleeper", messages=HELLO, max_tokens=4
    )
    waited_ms = (time.monotonic() - before) * 1000
    assert raw.parse().choices[0].message.content
    assert raw.headers["x-ebb-cold-start"] == "1"
    assert 0 < float(raw.headers["x-ebb-wake-ms"]) <= waited_ms
    warm = sleeper.client("sleeper").chat.completions.with_raw_response.create(
        model="sleeper", messages=HELLO, max_tokens=4
    )
    assert warm.headers.get("x-ebb-cold-start", "0") == "0"
    [replica] = sleeper.replicas("sleeper")
    assert {"import", "load", "warm_up"} <= set(replica["spans"])
    [start] = [
        one for one in json.loads(sleeper.ebb("ps", "--starts", "-o", "json")) if one["replica"] == replica["id"]
    ]
    until_ready = [seconds for name, seconds in start["spans"].items() if name not in ("route", "first_token")]
    assert start["total_s"] == pytest.approx(sum(until_ready), abs=0.5 + start["total_s"] / 2)
    assert start["total_s"] * 1000 <= waited_ms

    asleep = sleeper.wait_state("zero", "sleeper", timeout_s=30)
    assert asleep["reason"] == "No work for 3 s."
    wait_for("the runner to be gone", lambda: not psutil.pid_exists(replica["pid"]), 10)


async def _many(platform: Platform, count: int) -> list[str | None]:
    client = openai.AsyncOpenAI(
        base_url=f"{platform.gateway}/e/sleeper/v1", api_key=platform.key, max_retries=0, timeout=120
    )

    async def one(i: int) -> str | None:
        asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"Say the number {i}."}]
        answer = await client.chat.completions.create(model="sleeper", messages=asked, max_tokens=4)
        return answer.choices[0].message.content

    return await asyncio.gather(*(one(i) for i in range(count)))


def test_twenty_at_once_start_exactly_one(sleeper: Platform) -> None:
    sleeper.wait_state("zero", "sleeper")
    before = len(sleeper.replicas("sleeper", all=True))
    answers = asyncio.run(_many(sleeper, 20))
    assert len(answers) == 20
    assert all(answers)
    assert len(sleeper.replicas("sleeper", all=True)) == before + 1


def test_what_cannot_start_fails_its_waiters_at_once(stocked: Platform, tiny_hf_model: Path) -> None:
    stocked.ebb("models", "add", "broken", f"file:{tiny_hf_model}", "--wait")
    digest = stocked.rest("GET", "/api/v1/models/broken").json()["artifact"].replace(":", "-")
    weights = stocked.home / "artifacts" / digest / "model.safetensors"
    kept = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(kept[: len(kept) // 2])
    stocked.ebb("deploy", "broken", "--model", "broken", "--min", "0", "--max", "1")
    before = time.monotonic()
    answer = stocked.post("broken", "completions", json={"prompt": "x", "max_tokens": 1})
    assert answer.status_code == 503, answer.text
    assert time.monotonic() - before < 30, "held although it could not start"
    assert answer.headers["x-should-retry"] == "false"
    assert "safetensors" in answer.json()["error"]["message"]
    assert stocked.row("broken")["state"] == "failed"
    again = time.monotonic()
    assert stocked.post("broken", "completions", json={"prompt": "x", "max_tokens": 1}).status_code == 503
    assert time.monotonic() - again < 20
    stocked.ebb("rm", "broken")
    stocked.ebb("models", "rm", "broken")
    shutil.rmtree(weights.parent, ignore_errors=True)


def test_corrupt_weights_are_put_aside_never_served_and_made_again(stocked: Platform, tiny_hf_model: Path) -> None:
    stocked.ebb("models", "add", "flipped", f"file:{tiny_hf_model}", "--wait")
    digest = stocked.rest("GET", "/api/v1/models/flipped").json()["artifact"]
    weights = stocked.home / "artifacts" / digest.replace(":", "-") / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(raw)
    stocked.ebb("deploy", "flipped", "--model", "flipped")
    answer = stocked.post("flipped", "completions", json={"prompt": "x", "max_tokens": 1})
    assert answer.status_code == 503, answer.text
    message = answer.json()["error"]["message"]
    assert digest in message and len(re.findall("sha256:[0-9a-f]{64}", message)) == 2, message
    assert "ebb models quantize flipped" in message and not weights.exists()
    aside = weights.parent.with_name(".quarantined-" + weights.parent.name)
    assert (aside / weights.name).read_bytes() == raw
    stocked.ebb("models", "quantize", "flipped", "--quant", "bf16", "--force", "--wait")
    asked: dict[str, object] = {"prompt": "x", "max_tokens": 1}
    wait_for("it to be served", lambda: stocked.post("flipped", "completions", json=asked).status_code == 200, 30)
    assert not aside.exists()
    stocked.ebb("rm", "flipped")
    stocked.ebb("models", "rm", "flipped")
    shutil.rmtree(weights.parent)


def test_a_hold_ends_at_its_deadline(sleeper: Platform) -> None:
    sleeper.wait_state("zero", "sleeper")
    answer = sleeper.post("sleeper", json={"messages": HELLO, "max_tokens": 1}, headers={"x-ebb-hold-timeout": "0"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    bad = sleeper.post("sleeper", json={"messages": HELLO}, headers={"x-ebb-hold-timeout": "soon"})
    assert bad.status_code == 400
