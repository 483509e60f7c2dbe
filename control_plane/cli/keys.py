"""`ebb keys`: API keys, shown once when they are made; what they may take may be changed later."""

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import CliError
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, examples_of
from control_plane.cli.output import ago, clock, print_json, print_table, stderr

app = typer.Typer(help="Create, list, change and revoke API keys.", no_args_is_help=True)


class Priority(StrEnum):
    """Whose requests go first where they have to wait."""

    high = "high"
    normal = "normal"
    low = "low"


KeyArgument = Annotated[
    str, typer.Argument(metavar="PREFIX", help="The key's prefix, as 'ebb keys ls' shows it, or its id.")
]
PriorityOption = Annotated[
    Priority | None, typer.Option("--priority", help="Whose requests go first where they have to wait.")
]
ConcurrencyOption = Annotated[
    int | None, typer.Option("--max-concurrency", min=0, help="Requests it may have in hand at once; 0: any number.")
]
RpmOption = Annotated[int | None, typer.Option("--rpm", min=0, help="Requests a minute; 0: any number.")]
TpmOption = Annotated[
    int | None, typer.Option("--tpm", min=0, help="Tokens a minute, prompts and answers; 0: any number.")
]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> int:
    """`90`, `30m`, `12h` or `7d` as seconds. Raises a usage error for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if match is None:
        raise typer.BadParameter(f"'{text}' is no duration. Write a number and s, m, h or d, such as 30d.")
    return int(match[1]) * _UNITS[match[2] or "s"]


def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="infer, read, admin or node; may be given again.")
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="How long it works, such as 12h or 30d.")] = None,
    priority: PriorityOption = None,
    max_concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Make a key. It is printed this once."""
    expires_in_s = None if expires is None else seconds_of(expires)
    body = {"name": name, "scopes": scope or ["infer"], "expires_in_s": expires_in_s}
    with Api.open(home) as api:
        issued = api.post("/keys", {**body, **_changes(priority, max_concurrency, rpm, tpm)})
    if output is Output.json:
        return print_json(issued)
    stderr().print(f"Key '{name}' ({', '.join(issued['scopes'])}). Keep it: it is not shown again.")
    typer.echo(issued["key"])


app.command(
    "create",
    epilog=examples_of(
        "ebb keys create laptop --scope infer --expires 30d",
        "ebb keys create batch --priority low --rpm 600 --tpm 200000 --max-concurrency 8",
    ),
)(create)
app.command("add", hidden=True)(create)


@app.command("ls", epilog=examples_of("ebb keys ls"))
def list_keys(home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """List the keys, without their secrets."""
    with Api.open(home) as api:
        items = api.items("/keys")
    if output is Output.json:
        return print_json(items)
    rows = [
        (
            *(key["prefix"], key["name"], ", ".join(key["scopes"]), key["priority"], _limits(key)),
            *(ago(key["created_at"]), clock(key["expires_at"]) if key["expires_at"] else "never", _state(key)),
        )
        for key in items
    ]
    print_table(("prefix", "name", "scopes", "class", "limits", "created", "expires", "state"), rows, "No keys.")


@app.command(
    epilog=examples_of("ebb keys update ebb_89d149bb159a --rpm 120", "ebb keys update ebb_89d149bb159a --priority low")
)
def update(
    key: KeyArgument,
    priority: PriorityOption = None,
    max_concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Change a key's class or limits. It holds for its next requests."""
    change = _changes(priority, max_concurrency, rpm, tpm)
    if not change:
        raise CliError("Nothing to change: give --priority, --max-concurrency, --rpm or --tpm.")
    with Api.open(home) as api:
        changed = api.patch(f"/keys/{segment(_find(api, key))}", change)
    if output is Output.json:
        return print_json(changed)
    stderr().print(f"Key {changed['prefix']} ({changed['priority']}): {_limits(changed) or 'no limits'}.")


def _changes(priority: Priority | None, max_concurrency: int | None, rpm: int | None, tpm: int | None) -> Json:
    """What was given, as the REST API takes it: a limit of 0 is none."""
    limits = {"max_concurrency": max_concurrency, "requests_per_minute": rpm, "tokens_per_minute": tpm}
    given: Json = {name: value or None for name, value in limits.items() if value is not None}
    return given if priority is None else {"priority": priority.value, **given}


def _limits(key: Json) -> str:
    """What a key may take, in a few words."""
    words = {"max_concurrency": "at once", "requests_per_minute": "rpm", "tokens_per_minute": "tpm"}
    return ", ".join(f"{key[name]} {word}" for name, word in words.items() if key[name] is not None)


def _find(api: Api, key: str) -> str:
    """The id of a key by its prefix or id. Raises CliError."""
    found = next((item["id"] for item in api.items("/keys") if key in (item["prefix"], item["id"])), None)
    if found is None:
        raise CliError(f"There is no key '{key}'. See 'ebb keys ls'.")
    return found


def _state(key: Json) -> str:
    if key["revoked_at"]:
        return "revoked"
    return "expired" if key["expires_at"] and datetime.fromisoformat(key["expires_at"]) <= datetime.now(UTC) else "live"


@app.command(epilog=examples_of("ebb keys revoke ebb_89d149bb159a"))
def revoke(
    key: KeyArgument,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Revoke a key for good."""
    with Api.open(home) as api:
        api.delete(f"/keys/{segment(_find(api, key))}")
    stderr().print(f"Key {key} is revoked.")
