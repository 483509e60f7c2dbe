"""Promise 10: killing any part with -9 loses no request that another part could still answer."""

import json
import os
import signal
import threading
import time

import httpx
import psutil
import pytest

from tests.promises.running import Platform, wait_for

HELLO = [{"role": "user", "content": "Hello"}]


def _ask(platform: Platform, endpoint: str = "chat") -> httpx.Response:
    return platform.post(endpoint, json={"messages": HELLO, "max_tokens": 4})


@pytest.mark.parametrize("module", ["control_plane", "data_plane.node"])
def test_killed_and_restarted_while_serving(chat: Platform, module: str) -> None:
    assert _ask(chat).status_code == 200
    [before] = chat.replicas()
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            statuses.append(_ask(chat).status_code)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    victim = chat.pid_of(module)
    os.kill(victim, signal.SIGKILL)

    def reborn() -> bool:
        try:
            return chat.pid_of(module) != victim and httpx.get(chat.control + "/readyz").status_code == 200
        except (AssertionError, httpx.HTTPError):
            return False  # it is not there yet

    wait_for(f"{module} to be back", reborn, 30)
    time.sleep(5)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert set(statuses) == {200}
    assert len(statuses) > 5
    [after] = chat.replicas()
    assert (after["id"], after["pid"]) == (before["id"], before["pid"]), "the running replica was not adopted"
    assert len(chat.runner_pids()) <= 2, "more than the one that serves and the one in waiting"


def test_a_killed_runner_is_replaced(chat: Platform) -> None:
    assert _ask(chat).status_code == 200
    [before] = chat.replicas()
    os.kill(before["pid"], signal.SIGKILL)
    answer = _ask(chat)
    assert answer.status_code == 200, answer.text
    [after] = chat.replicas()
    assert after["id"] != before["id"] or after["pid"] != before["pid"]
    wait_for("the killed one to be gone", lambda: not psutil.pid_exists(before["pid"]), 5)


def test_a_runner_killed_while_starting_does_not_lose_the_request(stocked: Platform) -> None:
    stocked.ebb("deploy", "phoenix", "--model", "smollm2", "--min", "0", "--max", "1", "--idle", "30")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(_ask(stocked, "phoenix")))
    asking.start()

    def starting() -> int | None:
        return next((r["pid"] for r in stocked.replicas("phoenix") if r["pid"]), None)

    os.kill(wait_for("a runner to start", starting, 20, every_s=0.02), signal.SIGKILL)
    asking.join(60)
    assert answers and answers[0].status_code == 200, answers
    stocked.ebb("rm", "phoenix")


def test_a_stream_cut_by_a_killed_runner_goes_on_with_its_successor(chat: Platform) -> None:
    """The only replica is killed: the stream waits until another is there, and its text is the one of no accident."""
    body = {"prompt": "Count:", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    whole = chat.post("chat", "completions", json=body).json()["choices"][0]["text"]
    [replica] = chat.replicas()
    headers = {"Authorization": f"Bearer {chat.key}"}
    lines: list[str] = []
    with httpx.stream(
        "POST", f"{chat.gateway}/e/chat/v1/completions", json=body | {"stream": True}, headers=headers, timeout=60
    ) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if len(lines) == 6:
                os.kill(replica["pid"], signal.SIGKILL)
    said = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert said[-1] == "[DONE]"
    assert "".join(json.loads(data)["choices"][0]["text"] for data in said[:-1]) == whole
    [successor] = chat.replicas()
    assert successor["pid"] != replica["pid"]
    assert _ask(chat).status_code == 200
