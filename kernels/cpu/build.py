"""Builds the native library with the machine's own C++ compiler: `python -m kernels.cpu.build`. A second or two a file.

Each instruction set is compiled into it and chosen when it is loaded, so it may be moved to another x86-64 machine.
Where nothing can be built, Ebb runs on torch operators, more slowly; the reason is printed.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-pthread", "-fno-math-errno", "-ffp-contract=off")
"""Multiplications and additions are fused only where the code says so: else results would depend on the compiler."""


def build(folder: Path = HERE) -> Path | None:
    """The library in `folder`, or None with the reason on stderr."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return _without(f"this is {platform.machine()}, and the native CPU decoder is written for x86-64")
    if compiler is None:
        return _without("there is no C++ compiler (Debian, Ubuntu: apt-get install g++)")
    target = folder / "lib" / "libebb.so"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        sources = sorted((HERE / "csrc").glob("*.cpp"))
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
        commands = [
            [compiler, *FLAGS, "-c", str(source), "-o", str(made)]
            for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            failures = [output for output in pool.map(_run, commands) if output]
        linked = Path(scratch) / target.name
        failures = failures or [
            text for text in [_run([compiler, "-shared", "-pthread", *map(str, objects), "-o", str(linked)])] if text
        ]
        if failures:
            return _without(f"{compiler} failed:\n{failures[0][-2000:]}")
        # in one move: a running process keeps the file it has mapped
        staged = target.with_name(f".{target.name}.new")
        shutil.copyfile(linked, staged)
        staged.replace(target)
    return target


def _run(command: list[str]) -> str:
    """What went wrong, or nothing."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr or f"{command[0]} ended with {done.returncode}"


def _without(reason: str) -> None:
    print(f"The native CPU decoder was not built: {reason}. Ebb works without it, on slower paths.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(0 if build() is not None else 1)
