"""The options that many commands share. Knows no command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from control_plane.catalog import quantization
from control_plane.embedded.home import Home
from control_plane.endpoints.idle import idle_of

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


def _checked_idle(text: str | None) -> str | None:
    if text is not None:
        try:
            idle_of(_idle_value(text), "--idle")
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return text


def _idle_value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def idle_body(text: str) -> float | str:
    """What REST is sent for `--idle`: whole seconds stay whole."""
    value = _idle_value(text)
    return int(value) if isinstance(value, float) and value.is_integer() else value


_IDLE_HELP = "auto: it sleeps, and wakes ahead of requests, by its own idle times; or seconds without work."
IDLE = typer.Option("--idle", metavar="auto|SECONDS", callback=_checked_idle, help=_IDLE_HELP)
SLO_TTFT = typer.Option("--slo-ttft", metavar="MS", min=0.1, help="Milliseconds to the first token, 95th percentile.")
SLO_ITL = typer.Option("--slo-itl", metavar="MS", min=0.1, help="Milliseconds between tokens, 95th percentile.")


def open_home(path: Path) -> Home:
    """The home that an option names, as an absolute path."""
    return Home(path.expanduser().absolute())


def examples_of(*lines: str) -> str:
    """The end of a command's --help: lines to copy, each on its own."""
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *(f"$ {line}" for line in lines)))
