"""`ebb`: one command per verb, grouped by noun. Only puts the commands together; each lives beside its noun."""

import os
import sys

import typer

from control_plane.cli import bench, chat, doctor, endpoints, jobs, keys, logs, models, nodes, status, up
from control_plane.cli.errors import CliError
from control_plane.cli.output import stderr
from control_plane.embedded.errors import StartError

app = typer.Typer(
    name="ebb",
    help="Serverless model endpoints on a few machines of your own.",
    epilog="Start with:  ebb up --demo      Then:  ebb chat chat",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

PLATFORM = "This machine"
MODELS = "Models"
ENDPOINTS = "Endpoints"
ACCESS = "Nodes, keys, measurements"

app.command("up", rich_help_panel=PLATFORM)(up.up)
app.command("down", rich_help_panel=PLATFORM)(up.down)
app.command("status", rich_help_panel=PLATFORM)(status.status)
app.command("doctor", rich_help_panel=PLATFORM)(doctor.doctor)
app.add_typer(models.app, name="models", rich_help_panel=MODELS)
app.command("jobs", rich_help_panel=MODELS)(jobs.jobs)
app.command("deploy", rich_help_panel=ENDPOINTS)(endpoints.deploy)
app.command("ps", rich_help_panel=ENDPOINTS)(endpoints.ps)
app.command("chat", rich_help_panel=ENDPOINTS)(chat.chat)
app.command("wake", rich_help_panel=ENDPOINTS)(endpoints.wake)
app.command("scale", rich_help_panel=ENDPOINTS)(endpoints.scale)
app.command("logs", rich_help_panel=ENDPOINTS)(logs.logs)
app.command("events", rich_help_panel=ENDPOINTS)(logs.events)
app.command("rm", rich_help_panel=ENDPOINTS)(endpoints.rm)
app.command("nodes", rich_help_panel=ACCESS)(nodes.nodes)
app.add_typer(keys.app, name="keys", rich_help_panel=ACCESS)
app.add_typer(bench.app, name="bench", rich_help_panel=ACCESS)


def main() -> None:
    """Run the command line; exits with 0, 1 (it failed, and says why), 2 (it was asked wrongly) or 130 (Ctrl-C)."""
    try:
        app()
    except (CliError, StartError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except BrokenPipeError:
        # `ebb ps | head -1`: the reader has what it wanted. Python would complain again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        # Nobody who types a command is helped by a traceback, and whoever writes Ebb can ask for it.
        if os.environ.get("EBB_DEBUG"):
            raise
        _fail(f"unexpected {type(error).__name__}: {error}. Set EBB_DEBUG=1 to see where; 'ebb doctor' may help.", 1)


def _fail(message: str, code: int) -> None:
    stderr().print(f"[red]ebb:[/red] {_escape(message)}")
    sys.exit(code)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
