"""Promise 12, of starts: whatever goes wrong with one, it is told in a sentence, not repeated for ever, and its
neighbours notice nothing.

Faults by their common names: F5 hangs while it loads, F6 no memory for a load, F7 no memory while it serves, F8 corrupt
weights, F9 other weights than were asked for, F10 ends again and again once it is ready. The agents and processes are
real, the runners stand-ins; F6 and F7 need memory groups (cgroup v1) that this user may make, and are skipped without.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Generator
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from control_plane.endpoints.states import Circuit, after_failure, half_open
from control_plane.placement.rollout import next_steps
from data_plane.node.cleanup import stop_all
from tests.fakes.node_agent import FAKE_RUNNER, agent_here, desired, make_artifact
from tests.fakes.node_control import FakeControl

GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 60 << 20


@pytest.fixture
def home(tmp_path: Path) -> Generator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    stop_all(folder, grace_s=0.0)


@pytest_asyncio.fixture
async def control() -> AsyncGenerator[FakeControl]:
    fake = FakeControl()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def group() -> Generator[Path]:
    """A memory group without a limit as yet."""
    path = GROUPS / f"ebb-test-{os.getpid()}"
    try:
        path.mkdir()
        (path / "memory.swappiness").write_text("0")
    except OSError as error:
        pytest.skip(f"no memory group can be made here: {error}")
    yield path
    for pid in (path / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    gone_by = time.monotonic() + 5.0
    while path.exists():
        with contextlib.suppress(OSError):  # the kernel is still taking the last of them apart
            path.rmdir()
        assert time.monotonic() < gone_by, "the memory group is still in use"
        time.sleep(0.01)


def grouped(group: Path, only: str = "") -> tuple[str, ...]:
    """Starts runners in the group; with `only` just the one whose spec has that in its name."""
    code = (
        "import os, sys; args = sys.argv[3:]; named = any(sys.argv[2] in arg for arg in args[2:]);"
        " open(sys.argv[1], 'w').write(str(os.getpid())) if named else None; os.execv(args[0], args)"
    )
    return (sys.executable, "-c", code, str(group / "cgroup.procs"), only, *FAKE_RUNNER)


async def test_f5_a_load_that_hangs_is_given_up_and_the_next_start_is_served(home: Path, control: FakeControl) -> None:
    hangs, good = make_artifact(home, "a", hang_in="loading"), make_artifact(home, "b", load_s=0.2)
    async with agent_here(home, control, stall_s=4.0):
        await control.want(desired("r1", hangs), desired("r2", good))
        failed = await control.until_phase("r1", "failed")
        assert failed.failure is not None and not failed.failure.fatal, "another try may end otherwise"
        assert "no progress" in failed.failure.message
        # what goes on from phase to phase may take longer than that in all
        await control.until_phase("r2", "ready")
        await control.want(desired("r2", good), desired("r3", good))
        await control.until_phase("r3", "ready")


async def test_f6_a_load_without_memory_is_told_with_the_numbers(home: Path, control: FakeControl, group: Path) -> None:
    (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    digest = make_artifact(home, grow_mb_in=["loading", 200], load_s=0.4)
    async with agent_here(home, control, grouped(group)):
        await control.want(desired("r1", digest))
        failed = await control.until_phase("r1", "failed")
        assert failed.failure is not None
        assert "not enough memory" in failed.failure.message and "MiB are free" in failed.failure.message
        assert failed.memory_bytes == 0
        (group / "memory.limit_in_bytes").write_text("-1")
        await control.want(desired("r2", digest))
        await control.until_phase("r2", "ready")
    # the control plane tries it three times, and then tells the waiters
    circuit, tries = Circuit(), 0
    while not circuit.is_open:
        circuit = after_failure(circuit, fatal=failed.failure.fatal, lived_s=None, now=0.0)
        tries += 1
    assert tries == 3


async def test_f7_one_that_takes_all_memory_ends_alone(home: Path, control: FakeControl, group: Path) -> None:
    digest = make_artifact(home, grow_mb=200)
    async with agent_here(home, control, grouped(group, "r1.spec")):
        await control.want(desired("r1", digest), desired("r2", digest))
        victim, neighbour = await control.until_phase("r1", "ready"), await control.until_phase("r2", "ready")
        assert victim.pid is not None and neighbour.pid is not None
        for pid in (victim.pid, neighbour.pid):
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n", "before whatever holds the platform up"
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        os.kill(victim.pid, signal.SIGUSR1)
        failed = await control.until_phase("r1", "failed")
        assert failed.failure is not None and "killed the runner while it served" in failed.failure.message
        (group / "memory.limit_in_bytes").write_text("-1")
        await control.want(desired("r2", digest), desired("r3", digest))
        await control.until_phase("r3", "ready")
        still = await control.until_phase("r2", "ready")
        assert still.pid == neighbour.pid and set(control.phases("r2")) <= {"starting", "loading", "warming", "ready"}


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def oversized(path: Path) -> None:
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes())


def swapped(path: Path) -> None:
    other = next(each for each in path.parent.parent.iterdir() if each != path.parent)
    path.write_bytes((other / path.name).read_bytes())


async def test_f8_and_f9_weights_that_are_not_those_are_refused_once(home: Path, control: FakeControl) -> None:
    good = make_artifact(home, "good")
    bad = {fault: make_artifact(home, fault.__name__) for fault in (flipped, truncated, oversized, swapped)}
    for fault, digest in bad.items():
        fault(home / "artifacts" / digest.replace(":", "-") / "model.safetensors")
    async with agent_here(home, control):
        wanted = [desired(fault.__name__, digest) for fault, digest in bad.items()]
        await control.want(*wanted, desired("r2", good))
        for fault, digest in bad.items():
            failed = await control.until_phase(fault.__name__, "failed")
            assert failed.failure is not None and failed.failure.fatal, "no loop: the next start finds the same"
            assert digest in failed.failure.message and "corrupt" in failed.failure.message
            assert "ready" not in control.phases(fault.__name__)
        await control.until_phase("r2", "ready")


@pytest.mark.parametrize("lives_s", [0.0, 0.5, 59.0, 61.0])
@pytest.mark.parametrize("desired", [1, 4])
def test_f10_one_that_ends_again_and_again_is_started_ever_more_rarely(lives_s: float, desired: int) -> None:
    """Somebody asks all the time, and all that was started dies `lives_s` after it was ready. Waves of starts: four
    replicas that were never seen to fail do so together, and each wave counts once."""
    circuit, now, waves, sizes = Circuit(), 0.0, list[float](), list[int]()
    while now < 3600.0:
        probe = half_open(circuit, now)
        if probe is None:
            assert circuit.retry_at is not None
            now = circuit.retry_at
            continue
        steps = next_steps([], desired, 1, may_start=not probe.is_open, is_probe=probe.is_half_open)
        waves.append(now)
        sizes.append(steps.start)
        now += lives_s
        circuit = probe
        for _ in range(steps.start):
            circuit = after_failure(circuit, fatal=False, lived_s=lives_s, now=now)
    gaps = [later - at for at, later in pairwise(waves)]
    assert gaps == sorted(gaps) and gaps[-1] >= 60.0
    assert max(sum(at <= one < at + 600.0 for one in waves) for at in waves) <= 10, "CPU: ten loads in ten minutes"
    if lives_s < 60.0:
        opened = next(at for at, gap in enumerate(gaps) if gap >= lives_s + 1.0)
        assert gaps[opened] == lives_s + 1.0 and set(sizes[opened + 1 :]) == {1}, "then one probe at a time"
