"""`ebb bench wake`: how long a client waits for the first token of an endpoint that sleeps, and where the time goes.

Each round puts the endpoint to sleep, waits until nothing of it runs, and sends one streamed request. The phases are
those of the platform's own ledger of starts. Another server may be started beside it, from nothing to the same token.
"""

import http.client
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.status import Status

from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import CliError
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption
from control_plane.cli.output import print_json, print_table, stderr
from control_plane.cli.starts import PHASES, start_of

ASLEEP_S = 120.0
ANSWER_S = 300.0
LEDGER_S = 5.0
"""A node tells what became of a first token with its next heartbeat."""
SAYS_CONTENT = b'"content":"'
NO_CONTENT = b'"content":""'


@dataclass(frozen=True)
class Target:
    """Where a streamed chat is asked for. `path` ends with /chat/completions."""

    host: str
    port: int
    path: str
    key: str

    def first_token_s(self, body: bytes) -> float:
        """Seconds from before the connection is made to the first piece of text. CliError where there is none."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=ANSWER_S)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        began = time.perf_counter()
        try:
            connection.request("POST", self.path, body, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise CliError(f"The request was answered with {response.status}: {response.read()[:300].decode()}")
            while line := response.readline():
                if line.startswith(b"data:") and SAYS_CONTENT in line and NO_CONTENT not in line:
                    took_s = time.perf_counter() - began
                    response.read()
                    return took_s
        finally:
            connection.close()
        raise CliError("The stream ended without a token; 'ebb logs' may say why.")


def wake(
    url: Annotated[str, typer.Option("--url", help="The endpoint's URL, …/e/NAME/v1.")],
    key: Annotated[str, typer.Option("--key", envvar="EBB_API_KEY", help="The API key; by default this home's.")] = "",
    times: Annotated[int, typer.Option("--times", min=1, help="How often it is put to sleep and woken.")] = 20,
    pause: Annotated[float, typer.Option("--pause", min=0, help="Seconds asleep before each wake.")] = 3.0,
    prompt: Annotated[str, typer.Option("--prompt", help="What is asked.")] = "Say hi.",
    peer_command: Annotated[
        str, typer.Option("--peer-command", help="Starts another server; {port} stands for its port.")
    ] = "",
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Put an endpoint to sleep, wake it with a request, and tell the time to the first token at this client.

    With --peer-command each round also starts that server and times it from its process' start to the same token.
    """
    target, name = _target(url)
    body = json.dumps({"model": name, **_asked(prompt)}).encode()
    waits: list[float] = []
    peers: list[float] = []
    with Api.open(home) as api, Status("measuring", console=stderr()) as status:
        target = Target(target.host, target.port, target.path, key or api.key)
        for number in range(1, times + 1):
            _put_to_sleep(api, name)
            time.sleep(pause)
            waits.append(target.first_token_s(body))
            if peer_command:
                peers.append(_peer_s(peer_command, body))
            status.update(f"wake {number} of {times}: {waits[-1] * 1000:.0f} ms")
        found = _ledger(api, name, times)
    figures = _figures(name, waits, peers, found)
    if output is Output.json:
        return print_json(figures)
    _print(figures)


def _asked(prompt: str) -> Json:
    return {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": 2, "temperature": 0}


def _target(url: str) -> tuple[Target, str]:
    parts = urlsplit(url.rstrip("/"))
    pieces = parts.path.strip("/").split("/")
    if parts.scheme != "http" or not parts.hostname or len(pieces) != 3 or pieces[0] != "e" or pieces[2] != "v1":
        raise typer.BadParameter(f"'{url}' is no endpoint's URL; write it like http://127.0.0.1:7071/e/chat/v1.")
    return Target(parts.hostname, parts.port or 80, parts.path + "/chat/completions", ""), pieces[1]


def _put_to_sleep(api: Api, name: str) -> None:
    api.post(f"/endpoints/{segment(name)}/sleep")
    until = time.monotonic() + ASLEEP_S
    while (state := api.get(f"/endpoints/{segment(name)}")["state"]) != "zero":
        if time.monotonic() > until:
            raise CliError(
                f"Endpoint '{name}' did not fall asleep within {ASLEEP_S:g} s: it is {state}. Others may use it; "
                f"'ebb explain {name}' says why."
            )
        time.sleep(0.1)


def _peer_s(command: str, body: bytes) -> float:
    """From the start of the peer's process to its first token; it is asked every few milliseconds until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    target = Target("127.0.0.1", port, "/v1/chat/completions", "none")
    quiet = subprocess.DEVNULL
    words = shlex.split(command.replace("{port}", str(port)))
    began = time.perf_counter()
    try:
        process = subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    except OSError as error:
        raise CliError(f"--peer-command could not be started: {error}.") from error
    try:
        while time.perf_counter() - began < ANSWER_S:
            if process.poll() is not None:
                raise CliError(f"--peer-command ended with code {process.returncode} before it answered.")
            try:
                target.first_token_s(body)
                return time.perf_counter() - began
            except (OSError, CliError, http.client.HTTPException):
                time.sleep(0.005)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    raise CliError(f"--peer-command did not answer within {ANSWER_S:g} s.")


def _ledger(api: Api, name: str, times: int) -> list[Json]:
    """The starts of these wakes, once the last of them has told of its first token."""
    until = time.monotonic() + LEDGER_S
    while True:
        items = api.items(f"/starts?endpoint={segment(name)}&limit={min(times, 500)}")
        starts = [start_of(start) for start in items if start["outcome"] == "ready"]
        if time.monotonic() > until or (starts and starts[0]["client_s"] is not None):
            return starts
        time.sleep(0.2)


def _figures(name: str, waits: list[float], peers: list[float], starts: list[Json]) -> Json:
    phases = {
        phase: round(statistics.median(seen), 4)
        for phase in PHASES
        if (seen := [start["spans"][phase] for start in starts if phase in start["spans"]])
    }
    bounds = [start["bound_s"] for start in starts if start["bound_s"] is not None]
    return {
        "endpoint": name,
        "times": len(waits),
        "ttft": _summary(waits),
        "phases_s": phases,
        "bound_s": round(statistics.median(bounds), 4) if bounds else None,
        "tiers": {tier: sum(start["tier"] == tier for start in starts) for tier in {start["tier"] for start in starts}},
        "claimed": sum("claim" in start["spans"] for start in starts),
        "peer": _summary(peers) if peers else None,
        "starts": starts,
    }


def _summary(seconds: list[float]) -> Json:
    ordered = sorted(seconds)
    return {
        "median_s": round(statistics.median(ordered), 4),
        "p95_s": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 4),
        "min_s": round(ordered[0], 4),
        "max_s": round(ordered[-1], 4),
        "all_s": [round(value, 4) for value in seconds],
    }


def _print(figures: Json) -> None:
    rows = [("zero to first token", *_cells(figures["ttft"]))]
    if figures["peer"]:
        rows.append(("the peer, from its start", *_cells(figures["peer"])))
    print_table(("wake", "median", "p95", "fastest"), rows, "")
    phases = [(phase, _ms(seconds)) for phase, seconds in figures["phases_s"].items()]
    if figures["bound_s"] is not None:
        phases.append(("(bound: the weights read once)", _ms(figures["bound_s"])))
    print_table(("phase", "median"), phases, "The ledger has no start of it yet.")


def _cells(summary: Json) -> tuple[str, str, str]:
    return _ms(summary["median_s"]), _ms(summary["p95_s"]), _ms(summary["min_s"])


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
