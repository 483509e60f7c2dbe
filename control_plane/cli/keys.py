"""`ebb keys`: API keys, shown once when they are made."""

import re
from datetime import UTC, datetime
from typing import Annotated

import typer

from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import CliError
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, examples_of
from control_plane.cli.output import ago, clock, print_json, print_table, stderr

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

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
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Make a key. It is printed this once."""
    expires_in_s = None if expires is None else seconds_of(expires)
    with Api.open(home) as api:
        issued = api.post("/keys", {"name": name, "scopes": scope or ["infer"], "expires_in_s": expires_in_s})
    if output is Output.json:
        return print_json(issued)
    stderr().print(f"Key '{name}' ({', '.join(issued['scopes'])}). Keep it: it is not shown again.")
    typer.echo(issued["key"])


app.command("create", epilog=examples_of("ebb keys create laptop --scope infer --expires 30d"))(create)
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
            *(key["prefix"], key["name"], ", ".join(key["scopes"]), ago(key["created_at"])),
            *(clock(key["expires_at"]) if key["expires_at"] else "never", _state(key)),
        )
        for key in items
    ]
    print_table(("prefix", "name", "scopes", "created", "expires", "state"), rows, "No keys.")


def _state(key: Json) -> str:
    if key["revoked_at"]:
        return "revoked"
    return "expired" if key["expires_at"] and datetime.fromisoformat(key["expires_at"]) <= datetime.now(UTC) else "live"


@app.command(epilog=examples_of("ebb keys revoke ebb_89d149bb159a"))
def revoke(
    key: Annotated[
        str, typer.Argument(metavar="PREFIX", help="The key's prefix, as 'ebb keys ls' shows it, or its id.")
    ],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Revoke a key for good."""
    with Api.open(home) as api:
        found = next((item["id"] for item in api.items("/keys") if key in (item["prefix"], item["id"])), None)
        if found is None:
            raise CliError(f"There is no key '{key}'. See 'ebb keys ls'.")
        api.delete(f"/keys/{segment(found)}")
    stderr().print(f"Key {key} is revoked.")
