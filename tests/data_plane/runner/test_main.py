"""A runner as a process: what it tells its agent when it cannot start, and a whole life on real weights."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from data_plane.gateway.resume import Journal
from data_plane.runner.loading import judge
from data_plane.wire.fleet import Assignment, ReplicaSpec, RunnerSpec, RunnerStatus, SnapshotSpec
from data_plane.wire.resume import RESUME_PATH
from tests.data_plane.runner.test_resume import relay, told


def _spec(folder: Path, artifact: Path) -> RunnerSpec:
    return RunnerSpec(
        replica_id="r1",
        endpoint="chat",
        artifact_dir=str(artifact),
        token="secret",
        status_path=str(folder / "status.json"),
        keys_path=str(folder / "keys.json"),
        spec=ReplicaSpec(model="m", artifact="sha256:" + "0" * 64, device="cpu", max_model_len=256, max_num_seqs=4),
        snapshot=SnapshotSpec(str(folder / "kv" / "e.kv"), 8 << 20),
    )


def _start(folder: Path, artifact: Path) -> subprocess.Popen[bytes]:
    path = folder / "spec.json"
    path.write_bytes(msgspec.json.encode(_spec(folder, artifact)))
    root = Path(__file__).parents[3]
    # the pipe has no reader: a runner must not die of what it writes
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "data_plane.runner", "--spec", str(path)]
    child = subprocess.Popen(command, cwd=root, stdout=write, stderr=write, start_new_session=True)
    os.close(write)
    return child


def _status(folder: Path) -> RunnerStatus | None:
    path = folder / "status.json"
    return msgspec.json.decode(path.read_bytes(), type=RunnerStatus) if path.exists() else None


def _wait(folder: Path, true: Callable[[RunnerStatus], bool], within_s: float = 90) -> RunnerStatus:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        status = _status(folder)
        if status is not None and true(status):
            return status
        time.sleep(0.05)
    raise TimeoutError(f"the status stayed {_status(folder)}")


def test_a_missing_artifact_is_fatal(tmp_path: Path) -> None:
    child = _start(tmp_path, tmp_path / "nowhere")
    assert child.wait(60) == 1
    status = _status(tmp_path)
    assert status is not None and status.phase == "failed" and status.failure is not None
    assert status.failure.fatal and "nowhere" in status.failure.message and status.pid == child.pid


def test_a_broken_tokenizer_is_fatal(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    child = _start(tmp_path, tmp_path)
    assert child.wait(60) == 1
    status = _status(tmp_path)
    assert status is not None and status.failure is not None and status.failure.fatal
    assert "tokenizer.json is not usable" in status.failure.message


def _claim(folder: Path, artifact: Path) -> subprocess.Popen[bytes]:
    """A runner that waited, and was told what for. Its channel is closed, as an agent closes it."""
    path, log = folder / "spec.json", folder / "replica.log"
    path.write_bytes(msgspec.json.encode(_spec(folder, artifact)))
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "data_plane.runner", "--standby", "--text", str(artifact)]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[3], stdin=theirs.fileno(), start_new_session=True)
    theirs.close()
    with ours:
        ours.settimeout(60)
        assert ours.recv(64) == b"ready\n"
        used_s = sum(psutil.Process(child.pid).cpu_times()[:2])
        time.sleep(0.3)
        assert sum(psutil.Process(child.pid).cpu_times()[:2]) - used_s <= 0.02, "one that waits does nothing"
        ours.sendall(msgspec.json.encode(Assignment(str(path), str(log))) + b"\n")
    return child


def test_a_standby_without_an_agent_ends() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "data_plane.runner", "--standby"]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[3], stdin=theirs.fileno(), start_new_session=True)
    theirs.close()
    ours.close()
    assert child.wait(60) == 0


def test_a_whole_life(tmp_path: Path, smollm2_artifact: Path) -> None:
    child = _claim(tmp_path, smollm2_artifact)
    try:
        status = _wait(tmp_path, lambda now: now.phase in ("ready", "failed"))
        assert status.phase == "ready" and status.url and status.slots == 4 and status.max_model_len == 256
        assert set(status.spans) == {"import", "tokenizer", "map", "load", "warm_up"}
        assert status.started_at <= time.time() and os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(
            os.PRIO_PROCESS, 0
        )
        assert "phase" in (tmp_path / "replica.log").read_text()
        assert (tmp_path / "status.json").stat().st_mode & 0o777 == 0o600
        body = {"messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0}
        answer = httpx.post(
            f"{status.url}/v1/chat/completions",
            json=body | {"max_tokens": 12},
            headers={"Authorization": "Bearer secret"},
            timeout=60,
        )
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
        assert httpx.get(f"{status.url}/metrics").status_code == 401
        first = _wait(tmp_path, lambda now: "first_token" in now.spans)
        assert first.spans["first_token"] > 0 and not first.torch
        headers = {"Authorization": "Bearer secret"}
        assert httpx.post(f"{status.url}/park", headers=headers).status_code == 202
        assert _wait(tmp_path, lambda now: now.phase == "parked").spans == {}
        assert httpx.post(f"{status.url}/unpark", headers=headers).status_code == 200
        back = _wait(tmp_path, lambda now: now.phase == "ready")
        assert set(back.spans) == {"unpark"} and back.pid == child.pid
        again = httpx.post(f"{status.url}/v1/chat/completions", json=body | {"max_tokens": 12}, headers=headers)
        assert again.json()["choices"] == answer.json()["choices"]
        assert _cached(answer) == 0 < _cached(again), "what was kept when it parked"
        child.send_signal(signal.SIGTERM)
        assert child.wait(40) == 0
        assert json.loads((tmp_path / "status.json").read_text())["phase"] == "stopped"
        (tmp_path / "status.json").unlink()
        child = _claim(tmp_path, smollm2_artifact)
        url = _wait(tmp_path, lambda now: now.phase in ("ready", "failed")).url
        later = httpx.post(f"{url}/v1/chat/completions", json=body | {"max_tokens": 12}, headers=headers, timeout=60)
        assert later.json()["choices"] == answer.json()["choices"]
        assert _cached(later) == _cached(again), "the next one goes on from what this one left"
    finally:
        child.kill()
        child.wait()


def _cached(answer: httpx.Response) -> int:
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_fresh_process_goes_on_where_another_stopped(tmp_path: Path, smollm2_artifact: Path) -> None:
    """Given the prompt, the tokens so far and the seed it says bit for bit what the first one would have said."""
    prompt = list(range(300, 340)) * 2
    greedy = {"prompt": prompt, "temperature": 0}
    random = {"prompt": prompt, "temperature": 1.0, "top_p": 0.95, "seed": 11}
    names = ["one", "two"]
    answers: list[list[list[int]]] = []
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        child = _start(folder, smollm2_artifact)
        try:
            status = _wait(folder, lambda now: now.phase in ("ready", "failed"))
            assert status.phase == "ready" and status.url

            def ask(body: Mapping[str, object], url: str = status.url) -> list[int]:
                answer = httpx.post(
                    f"{url}/v1/completions",
                    json={**body, "return_token_ids": True, "ignore_eos": True},
                    headers={"Authorization": "Bearer secret"},
                    timeout=60,
                )
                return answer.json()["choices"][0]["token_ids"]

            if not answers:
                answers.append([ask(body | {"max_tokens": 40}) for body in (greedy, random)])
            else:
                so_far = answers[0]
                for body, whole in zip((greedy, random), so_far, strict=True):
                    for cut in (1, 16, 27):
                        rest = ask(body | {"prompt": prompt + whole[:cut], "max_tokens": 40 - cut})
                        assert rest == whole[cut:], f"after {cut} tokens of {body}"
        finally:
            child.kill()
            child.wait()


def _tell(url: str, path: str, body: bytes) -> bytes:
    headers = {"Authorization": "Bearer secret", "x-ebb-resumable": "1700000000", "x-request-id": "one"}
    answer = httpx.post(url + path, content=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_a_stream_of_real_weights_is_taken_up_by_another_process(tmp_path: Path, smollm2_artifact: Path) -> None:
    """With penalties, log-probabilities, several choices and a stop: bit for bit, probabilities too."""
    base = {"prompt": "The capital of France is", "stream": True, "max_tokens": 24}
    bodies = [
        {"temperature": 0, "repetition_penalty": 1.2, "logprobs": 2},
        {"temperature": 1.0, "seed": 3, "n": 2, "frequency_penalty": 0.7, "stop": [". The", "a "]},
        {"temperature": 0.8, "seed": 4, "min_tokens": 20, "top_p": 0.9, "logprobs": 0},
    ]
    raws = [json.dumps(base | body).encode() for body in bodies]
    wholes: list[bytes] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        child = _start(folder, smollm2_artifact)
        try:
            status = _wait(folder, lambda now: now.phase in ("ready", "failed"))
            assert status.phase == "ready" and status.url
            if not wholes:
                wholes = [_tell(status.url, "/v1/completions", raw) for raw in raws]
                continue
            for raw, whole in zip(raws, wholes, strict=True):
                ends = [at + 2 for at in range(len(whole)) if whole.startswith(b"\n\n", at)]
                for at in (ends[0], ends[7], ends[14], ends[-2]):
                    journal = Journal()
                    passed = relay(whole, at, journal, 1_000)
                    rest = _tell(status.url, RESUME_PATH, journal.request("completion", raw))
                    assert told(passed + Journal().take(rest)) == told(Journal().take(whole)), (raw, at)
        finally:
            child.kill()
            child.wait()


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (ValueError("bad"), True),
        (FileNotFoundError("gone"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("something else"), False),
        (OSError("device busy"), False),
    ],
)
def test_what_a_failed_start_means(error: BaseException, fatal: bool) -> None:
    assert judge(error).fatal is fatal and judge(error).message
