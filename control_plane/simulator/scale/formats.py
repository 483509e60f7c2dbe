"""Reads the traces that `ebb simulate scale` can replay. Knows nothing of what is done with them.

gentd26: image generations, CSV; the endpoint is the base model, and each request brings the time it took.
servegen: rates of clients in windows of 10 minutes, CSV; each client is an endpoint, arrivals are drawn as it says.
azure-functions: function calls, CSV with their ends and durations; the endpoint is the function.
arena: chat requests, CSV with lengths; the endpoint is the model.
azure-conversation, azure-code: requests of Azure's LLM inference service, CSV with lengths; all are to one endpoint.
"""

import csv
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from random import Random
from typing import TypeVar

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.files import opened
from control_plane.simulator.scale.settings import FleetSettings
from control_plane.simulator.scale.workload import Arrival, Trace

Row = dict[str, str]
T = TypeVar("T")

SERVEGEN_WINDOW_S = 600.0
SERVEGEN_TOKENS = (1000.0, 300.0)
"""Prompt and answer of a servegen request: the rates' file has no lengths."""
GENTD26_TIME = "%Y-%m-%d %H:%M:%S"


def read_trace(path: Path, format: str, settings: FleetSettings, seed: int) -> Trace:
    """The requests of a file in the order of their arrival. Raises SimulationError where it is not of the format."""
    trace = READERS[format](path, settings, seed)
    if not trace.arrivals:
        raise SimulationError(f"{path} has no request.")
    return trace


def _gentd26(path: Path, settings: FleetSettings, seed: int) -> Trace:
    def read(row: Row) -> tuple[float, str, float]:
        at = datetime.strptime(row["gmt_create"], GENTD26_TIME).replace(tzinfo=UTC).timestamp()
        taken = row["exec_time_seconds"]
        return at, row["checkpoint_model_version_id"], _number(taken) if taken else 0.0

    columns = ("gmt_create", "exec_time_seconds", "checkpoint_model_version_id")
    return _ordered([read_one for read_one in _parsed(path, columns, read) if read_one[1]])


def _azure_functions(path: Path, settings: FleetSettings, seed: int) -> Trace:
    def read(row: Row) -> tuple[float, str, float]:
        taken = _number(row["duration"])
        return _number(row["end_timestamp"]) - taken, f"{row['app']}/{row['func']}", taken

    return _ordered(list(_parsed(path, ("app", "func", "end_timestamp", "duration"), read)))


def _arena(path: Path, settings: FleetSettings, seed: int) -> Trace:
    def read(row: Row) -> tuple[float, str, float]:
        return (
            _number(row["t"]),
            row["model"],
            settings.busy_s(_number(row["prompt_len"]), _number(row["output_len"])),
        )

    return _ordered(list(_parsed(path, ("t", "model", "prompt_len", "output_len"), read)))


def _azure_llm(path: Path, settings: FleetSettings, seed: int) -> Trace:
    def read(row: Row) -> tuple[float, int, int]:
        moment = datetime.fromisoformat(row["TIMESTAMP"])
        at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        if prompt < 0 or output < 0:
            raise ValueError(f"{min(prompt, output)} tokens are less than none")
        return at, max(1, prompt), max(1, output)

    rows = sorted(_parsed(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), read))
    first = rows[0][0] if rows else 0.0
    return Trace(tuple(Arrival(at - first, 0, 0.0, prompt, output) for at, prompt, output in rows), ("llm",), first)


def _servegen(path: Path, settings: FleetSettings, seed: int) -> Trace:
    def read(row: Row) -> tuple[str, float, float, str, float]:
        if row["pattern"] not in ("Gamma", "Weibull"):
            raise ValueError(f"'{row['pattern']}' is no pattern; there are Gamma and Weibull")
        shape = _number(row["shape"])
        if shape <= 0:
            raise ValueError(f"a shape of {shape:g} is not positive")
        return f"{row['model']}/{row['client']}", _number(row["ts"]), _number(row["rate"]), row["pattern"], shape

    windows: dict[str, list[tuple[float, float, str, float]]] = {}
    for name, at, rate, pattern, shape in _parsed(path, ("model", "client", "ts", "rate", "pattern", "shape"), read):
        windows.setdefault(name, []).append((at, rate, pattern, shape))
    expected = {name: SERVEGEN_WINDOW_S * sum(window[1] for window in of) for name, of in windows.items()}
    left = float(settings.servegen_requests)
    arrivals: list[tuple[float, str, float]] = []
    busy_s = settings.busy_s(*SERVEGEN_TOKENS)
    for name in sorted(windows, key=lambda one: (expected[one], one)):
        left -= expected[name]
        if left < 0 and arrivals:
            break
        random = Random(f"{seed} {name}")  # noqa: S311 # nothing here is a secret
        arrivals += [(at, name, busy_s) for window in sorted(windows[name]) for at in _drawn(window, random)]
    return _ordered(arrivals)


def _drawn(window: tuple[float, float, str, float], random: Random) -> Iterator[float]:
    """Arrivals of one window: inter-arrival times of its shape, scaled to its rate, from a random moment on."""
    begin, rate, pattern, shape = window
    if rate <= 0:
        return
    mean_of_shape = shape if pattern == "Gamma" else math.gamma(1.0 + 1.0 / shape)
    scale = 1.0 / (rate * mean_of_shape)

    def gap() -> float:
        return random.gammavariate(shape, scale) if pattern == "Gamma" else random.weibullvariate(scale, shape)

    at = gap() * random.random()
    while at < SERVEGEN_WINDOW_S:
        yield begin + at
        at += gap()


def _ordered(arrivals: list[tuple[float, str, float]]) -> Trace:
    arrivals.sort()
    names = {name: number for number, name in enumerate(dict.fromkeys(name for _, name, _ in arrivals))}
    first = arrivals[0][0] if arrivals else 0.0
    return Trace(
        tuple(Arrival(at - first, names[name], max(0.0, busy_s)) for at, name, busy_s in arrivals),
        tuple(names),
        first,
    )


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"'{text}' is no finite number")
    return value


def _parsed(path: Path, columns: tuple[str, ...], read: Callable[[Row], T]) -> Iterator[T]:
    """Each row as `read` makes it. A file that ends in .gz is unpacked. Raises SimulationError."""
    line = 1
    try:
        with opened(path) as file:
            rows = csv.DictReader(TextIOWrapper(file, encoding="utf-8", newline=""))
            missing = [column for column in columns if column not in (rows.fieldnames or ())]
            if missing:
                found = ", ".join(chain(rows.fieldnames or ("nothing",)))[:200]
                raise SimulationError(
                    f"{path} has no column {', '.join(missing)}: its first line has {found}. Is --format the right one?"
                )
            for row in rows:
                line = rows.line_num
                yield read(row)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise SimulationError(f"{path}, line {line}: {error}. Is --format the right one?") from error


READERS: dict[str, Callable[[Path, FleetSettings, int], Trace]] = {
    "gentd26": _gentd26,
    "servegen": _servegen,
    "azure-functions": _azure_functions,
    "arena": _arena,
    "azure-conversation": _azure_llm,
    "azure-code": _azure_llm,
}
"""By the names that --format takes."""
