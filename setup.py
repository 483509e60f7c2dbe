"""Builds the native CPU decoder beside the Python files, where a compiler is at hand. All else is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py


class BuildWithNative(build_py):
    """Adds the library to what is installed; without it Ebb works too."""

    def run(self) -> None:
        """Builds after the Python files have their place; an editable install has it in the sources."""
        super().run()
        folder = Path("kernels/cpu") if self.editable_mode else Path(self.build_lib, "kernels/cpu")
        runpy.run_path("kernels/cpu/build.py")["build"](folder)


class NativeDistribution(Distribution):
    """What holds machine code is no wheel for every machine."""

    def has_ext_modules(self) -> bool:
        """Says so to whoever names the wheel."""
        return True


setup(cmdclass={"build_py": BuildWithNative}, distclass=NativeDistribution)
