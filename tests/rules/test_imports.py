"""Who may import whom, and what a fresh process loads.

Why: `wire` and the gateway must start in a tenth of a second on machines without torch, and the engine must run on a
GPU machine that has only torch, numpy, safetensors, tokenizers, jinja2, aiohttp and psutil. One convenient import ends
either, and nobody notices before it is deployed. `transformers` probes for a package called `kernels`: ours must be
empty at its door.
"""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = ("data_plane.wire", "data_plane.gateway", "data_plane.router", "data_plane.node", "data_plane.engine")
ON_A_BARE_GPU_MACHINE = (
    "data_plane.engine", "data_plane.execution", "data_plane.models", "data_plane.layers", "data_plane.weights",
    "data_plane.parallel", "kernels",
)  # fmt: skip
NOT_THERE = ("msgspec", "structlog", "gguf", "litestar", "sqlalchemy", "prometheus_client", "transformers")
OPTIONAL = ("triton",)
"""A folder that only machines with this package can import."""


def modules(package: str) -> list[str]:
    """The package and all modules in it, `__main__` left out (importing one may run it)."""
    folder = ROOT / package.replace(".", "/")
    names = [package]
    for info in pkgutil.walk_packages([str(folder)], package + "."):
        parts = info.name.split(".")
        if parts[-1] != "__main__" and not any(part in OPTIONAL for part in parts):
            names.append(info.name)
    return names


def loaded_after(packages: tuple[str, ...]) -> set[str]:
    """The top-level packages in a fresh interpreter that has imported every module of `packages`."""
    names = [name for package in packages for name in modules(package)]
    code = "import sys, importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_import_directions_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_no_torch_where_there_are_no_tensors(package: str) -> None:
    assert "torch" not in loaded_after((package,))


def test_the_model_side_runs_on_a_bare_gpu_machine() -> None:
    loaded = loaded_after(ON_A_BARE_GPU_MACHINE)
    assert not loaded & set(NOT_THERE)


@pytest.mark.parametrize("package", ["kernels", "data_plane"])
def test_the_doors_are_empty(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_bytes() == b""


def test_data_plane_wire_does_no_io() -> None:
    assert not loaded_after(("data_plane.wire",)) & {"aiohttp", "psutil", "socket", "asyncio", "numpy"}
