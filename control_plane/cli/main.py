"""`ebb`: one command per verb, grouped by noun. Only puts the commands together; each lives beside its noun."""

import os
import sys
from collections.abc import Callable

import typer

from control_plane.cli import (
    bench,
    bench_decide,
    bench_gateway,
    bench_place,
    bench_wake,
    chat,
    doctor,
    endpoints,
    explain,
    jobs,
    keys,
    logs,
    models,
    node,
    nodes,
    replay,
    simulate,
    status,
    up,
    usage,
)
from control_plane.cli.errors import CliError
from control_plane.cli.options import examples_of
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


def _add(name: str, panel: str, command: Callable[..., None], *examples: str) -> None:
    """Every command ends its --help with lines to copy."""
    app.command(name, rich_help_panel=panel, epilog=examples_of(*examples))(command)


_add(
    *("up", PLATFORM, up.up, "ebb up", "ebb up --demo --detach"),
    *("ebb up --home /srv/ebb --port 8070 --gateway-port 8071", "ebb up --host 10.0.0.5"),
)
_add("down", PLATFORM, up.down, "ebb down", "ebb down --home /srv/ebb")
_add("status", PLATFORM, status.status, "ebb status", "ebb status -o json")
_add("doctor", PLATFORM, doctor.doctor, "ebb doctor", "ebb doctor -o json")
app.add_typer(models.app, name="models", rich_help_panel=MODELS)
_add("jobs", MODELS, jobs.jobs, "ebb jobs", "ebb jobs JOB -o json")
_add(
    *("deploy", ENDPOINTS, endpoints.deploy, "ebb deploy chat --model smollm2 --wait"),
    "ebb deploy chat --model smollm2 --min 1 --max 4 --idle 300 --concurrency 16 --quant int8",
)
_add("ps", ENDPOINTS, endpoints.ps, "ebb ps", "ebb ps -o json")
_add(
    *("chat", ENDPOINTS, chat.chat, "ebb chat chat", 'ebb chat chat "Name the capital of France."'),
    "cat question.txt | ebb chat chat",
)
_add("wake", ENDPOINTS, endpoints.wake, "ebb wake chat", "ebb wake chat --wait")
_add("sleep", ENDPOINTS, endpoints.sleep, "ebb sleep chat")
_add(
    "scale",
    ENDPOINTS,
    endpoints.scale,
    "ebb scale chat --min 1 --max 4",
    "ebb scale chat --idle 600",
    "ebb scale chat --idle auto",
)
_add("logs", ENDPOINTS, logs.logs, "ebb logs chat", "ebb logs chat -f")
_add(
    "events",
    ENDPOINTS,
    logs.events,
    "ebb events",
    "ebb events -f --subject chat",
    "ebb events --requests",
    "ebb events --decisions",
)
_add(
    *(
        "usage",
        ENDPOINTS,
        usage.usage,
        "ebb usage",
        "ebb usage chat --since 24h --by hour",
        "ebb usage --by key -o json",
    )
)
_add("explain", ENDPOINTS, explain.explain, "ebb explain chat", "ebb explain chat -o json")
_add("rm", ENDPOINTS, endpoints.rm, "ebb rm chat")
app.add_typer(nodes.app, name="nodes", rich_help_panel=ACCESS)
app.add_typer(node.app, name="node", rich_help_panel=PLATFORM)
app.add_typer(keys.app, name="keys", rich_help_panel=ACCESS)
bench.app.command(
    "gateway",
    epilog=examples_of(
        "ebb bench gateway",
        "ebb bench gateway --stub-only --stub-ports 9101,9102",
        "ebb bench gateway --stub http://127.0.0.1:9101,http://127.0.0.1:9102 --peer other=http://127.0.0.1:30000",
    ),
)(bench_gateway.gateway)
bench.app.command(
    "decide", epilog=examples_of("ebb bench decide", "ebb bench decide --endpoints 10,100,1000,10000 -o json")
)(bench_decide.decide)
bench.app.command(
    "place", epilog=examples_of("ebb bench place", "ebb bench place --endpoints 10,100,1000,10000 -o json")
)(bench_place.place)
bench.app.command(
    "wake",
    epilog=examples_of(
        "ebb bench wake --url http://127.0.0.1:7071/e/chat/v1 --times 20",
        "ebb bench wake --url http://127.0.0.1:7071/e/chat/v1 --peer-command 'llama-server -m m.gguf --port {port}'",
    ),
)(bench_wake.wake)
app.add_typer(bench.app, name="bench", rich_help_panel=ACCESS)
simulate.app.command(
    "decision",
    epilog=examples_of("ebb simulate decision 4711", "ebb simulate decision 4711 --set limits.idle_s=300 -o json"),
)(replay.decision)
simulate.app.command(
    "decisions",
    epilog=examples_of("ebb simulate decisions --from-events", "ebb simulate decisions --from-events -n 20"),
)(replay.replay_all)
app.add_typer(simulate.app, name="simulate", rich_help_panel=ACCESS)


def main() -> None:
    """Run the command line; exits with 0, 1 (it failed, and says why), 2 (it was asked wrongly) or 130 (Ctrl-C)."""
    try:
        app()
    except (CliError, StartError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except SystemExit as end:
        if end.code == 130 and sys.stderr.isatty():
            sys.stderr.write("\n")  # Typer leaves without a word, and the shell's prompt would follow ^C on its line
        raise
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
