"""The native decoder's instruction sets for tests: the processor's own, or else run by an emulation of theirs."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernels.cpu import build, library

NAMES = ("avx2", "avx512_vnni", "amx")
SOURCES = Path(library.__file__).parent / "csrc"
EMULATION = Path(__file__).with_name("emulated.h")
EMULATED = ("backend_avx512", "backend_amx")
NO_AVX2 = "namespace ebb { struct Backend; const Backend* avx2_backend() { return nullptr; } }\n"


class Backends:
    """`folder`: where the emulation is built when it is first needed, in some seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = library.open_library()
        self._emulated: ctypes.CDLL | None = None

    @contextmanager
    def using(self, name: str) -> Generator[str]:
        """`kernels.cpu` has the instruction set `name` inside. Skips the test where neither way is open."""
        if self._own is None:
            pytest.skip("the native library is not built")
        chosen = self._own if self._own.ebb_backend(name.encode()) else self._emulation()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "open_library", lambda: chosen)
            yield name

    def _emulation(self) -> ctypes.CDLL:
        if self._emulated is None:
            self._emulated = library.load(_build(self._folder))
            assert self._emulated is not None, "the emulation was built and cannot be loaded"
        return self._emulated


def _build(folder: Path) -> Path:
    """Under a name that tells what it was built from, so that it is built once."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to build the emulation")
    # quick to compile rather than quick
    flags = ["-O1" if flag == "-O3" else flag for flag in build.FLAGS]
    read = [*sorted(SOURCES.iterdir()), EMULATION]
    digest = hashlib.sha256(repr([compiler, *flags, *[each.read_bytes() for each in read]]).encode()).hexdigest()
    target = folder / f"{digest[:16]}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "backend_avx2.cpp").write_text(NO_AVX2)
        sources = [each for each in sorted(SOURCES.glob("*.cpp")) if each.stem != "backend_avx2"]

        def compiled(source: Path) -> str:
            forced = ["-include", str(EMULATION)] if source.stem in EMULATED else []
            made = str(Path(scratch) / f"{source.stem}.o")
            subprocess.run([compiler, *flags, *forced, "-c", str(source), "-o", made], check=True)
            return made

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compiled, [Path(scratch) / "backend_avx2.cpp", *sources]))
        staged = folder / f"{digest[:16]}.{os.getpid()}"
        subprocess.run([compiler, "-shared", "-pthread", *objects, "-o", str(staged)], check=True)
        staged.replace(target)
    return target
