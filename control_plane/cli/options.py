"""The options that many commands share. Knows no command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from control_plane.catalog import quantization
from control_plane.embedded.home import Home

DEFAULT_HOME = Path("~/.ebb")


class Output(StrEnum):
    """How a listing is printed."""

    table = "table"
    json = "json"


HomeOption = Annotated[
    Path, typer.Option("--home", metavar="DIR", envvar="EBB_HOME", help="The platform's home directory.")
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print it.")]


def _checked_quant(text: str) -> str:
    if not quantization.is_word(text):
        raise typer.BadParameter(quantization.unknown(text))
    return text


_QUANT_HELP = f"How weights are stored: {', '.join(quantization.WORDS)}."
QuantOption = Annotated[str, typer.Option("--quant", metavar="QUANT", callback=_checked_quant, help=_QUANT_HELP)]


def open_home(path: Path) -> Home:
    """The home that an option names, as an absolute path."""
    return Home(path.expanduser().absolute())


def examples_of(*lines: str) -> str:
    """The end of a command's --help: lines to copy, each on its own."""
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *(f"$ {line}" for line in lines)))
