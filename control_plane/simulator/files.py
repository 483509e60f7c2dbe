"""Opens the files that simulations are told of, and turns what is wrong with them into sentences."""

import gzip
import tomllib
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import IO, TypeVar, cast

import msgspec

from control_plane.simulator.errors import SimulationError

S = TypeVar("S", bound=msgspec.Struct)


@contextmanager
def opened(path: Path) -> Generator[IO[bytes]]:
    """The file's bytes; one that ends in .gz is unpacked. Raises SimulationError, also for a fault while it is read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error) as error:
        raise SimulationError(f"{path} cannot be read: {error}.") from error


def read_settings_file(path: Path | None, own: str, kind: type[S], needs: str) -> tuple[str, S]:
    """Its name and what it says: the TOML file at `path`, or the one named `own` that Ebb brings.

    Raises SimulationError, with the sentence `needs`, where it cannot be used.
    """
    name = str(path) if path else own
    try:
        text = (path or files("control_plane.simulator") / own).read_text(encoding="utf-8")
        return name, msgspec.convert(tomllib.loads(text), kind)
    except OSError as error:
        raise SimulationError(f"The settings {name} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SimulationError(f"The settings {name} cannot be used: {error}. {needs}") from error
