"""Starts node agents for tests, in this process or as one of their own, with the stand-in for runners."""

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from data_plane.node import integrity
from data_plane.node.agent import Tempo
from data_plane.node.launch import RunnerSettings
from data_plane.node.main import Settings, serve
from data_plane.node.records import NodePaths
from data_plane.wire.fleet import DesiredReplica, Intent, ReplicaSpec
from tests.fakes.node_control import NODE_KEY, FakeControl

FAKE_RUNNER = (sys.executable, str(Path(__file__).with_name("runner_process.py")))


def make_artifact(home: Path, digit: str = "a", **hooks: Any) -> str:
    """A sound artifact's folder whose `fake.json` tells the fake runner what to do; its digest varies with `digit`."""
    files = {name: f"{name} {digit}" for name in integrity.FILES}
    scratch = home / "artifacts" / f"scratch-{digit}"
    scratch.mkdir(parents=True)
    for name, content in files.items():
        (scratch / name).write_text(content)
    digest = integrity.digest(scratch)
    folder = home / "artifacts" / digest.replace(":", "-")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    (folder / "manifest.json").write_text("{}")
    (folder / "fake.json").write_text(json.dumps(hooks))
    return digest


def desired(replica_id: str, digest: str, intent: Intent = "run", generation: int = 1) -> DesiredReplica:
    spec = ReplicaSpec(model="tiny", artifact=digest, max_num_seqs=4)
    return DesiredReplica(replica_id, "chat", generation, intent, spec)


@asynccontextmanager
async def agent_here(
    home: Path, control: FakeControl, command: tuple[str, ...] = FAKE_RUNNER, **runner: Any
) -> AsyncGenerator[asyncio.Task[None]]:
    """An agent in this process. Its runners are left running at the end unless the test stops them."""
    paths = NodePaths(home)
    paths.make()
    settings = Settings(
        control=control.url,
        key=NODE_KEY,
        home=home,
        name="node-a",
        runner=RunnerSettings(command=command, **runner),
        tempo=Tempo(heartbeat_s=0.3, wait_s=5),
    )
    stop = asyncio.Event()
    task = asyncio.create_task(serve(settings, stop))
    try:
        yield task
    finally:
        stop.set()
        await task


def agent_process(home: Path, control: FakeControl, *more: str) -> subprocess.Popen[bytes]:
    """An agent as a process of its own; what it says goes to a file beside its home."""
    with (home.parent / "agent.log").open("ab") as log:
        return subprocess.Popen(
            [
                sys.executable, "-m", "data_plane.node", "--control", control.url, "--home", str(home),
                "--name", "node-a", "--standby", "0", "--runner-command", shlex.join(FAKE_RUNNER), *more,
            ],
            env={**os.environ, "EBB_NODE_KEY": NODE_KEY},
            stdout=log,
            stderr=log,
        )  # fmt: skip
