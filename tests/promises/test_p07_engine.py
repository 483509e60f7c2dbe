"""Promise 7, seen from outside: answers do not depend on who else is served, and a client that goes is forgotten."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx

from tests.promises.running import Platform, wait_for

PROMPTS = [f"Question {i}: what is {i} plus {i + 3}? Answer:" for i in range(16)]


def _greedy(platform: Platform, prompt: str) -> str:
    answer = platform.client().completions.create(model="chat", prompt=prompt, max_tokens=12, temperature=0)
    return answer.choices[0].text


def test_sixteen_at_once_answer_as_each_alone(chat: Platform) -> None:
    alone = [_greedy(chat, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(partial(_greedy, chat), PROMPTS))
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    # bfloat16: the order of additions in a matrix product may depend on the batch, so a near tie may fall otherwise.
    # Exact equality is tested in float32, beside the engine.
    assert same >= 14, list(zip(alone, together, strict=True))


def test_a_short_request_overtakes_a_long_one(chat: Platform) -> None:
    client = chat.client()
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(
            lambda: client.completions.create(
                model="chat", prompt="Count:", max_tokens=300, temperature=0, extra_body={"ignore_eos": True}
            )
        )
        time.sleep(0.5)
        _greedy(chat, "Hi")
        assert not long.done(), "the short one waited for the long one"
        assert long.result().usage is not None


def _running(platform: Platform) -> float:
    [replica] = platform.replicas()
    metrics = httpx.get(replica["url"] + "/metrics", headers={"Authorization": f"Bearer {platform.key}"}).text
    [line] = [m for m in metrics.splitlines() if m.startswith("vllm:num_requests_running{")]
    return float(line.split()[-1])


def test_a_client_that_goes_is_forgotten_within_a_second(chat: Platform) -> None:
    _greedy(chat, "warm")
    body = {"prompt": "Count:", "max_tokens": 4000, "ignore_eos": True, "temperature": 0, "stream": True}
    with httpx.stream(
        "POST", f"{chat.gateway}/e/chat/v1/completions", json=body, headers={"Authorization": f"Bearer {chat.key}"}
    ) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the connection when its iterator is collected
        next(lines)
        assert _running(chat) == 1
    wait_for("the engine to forget the request", lambda: _running(chat) == 0, 1.5, every_s=0.05)
