"""Reads the traces that can be replayed: mooncake, agentic and synthetic. Knows nothing of what is done with them.

mooncake: lines of {timestamp ms, input_length, output_length, hash_ids}; 512 tokens a block, names shared by all.
Arrivals are quantised to 3 s, so each is drawn from the 3 s after its own. All requests share block 0.
agentic: a session a line, closed loop; names mean nothing outside it, except for the system prompt and tools, which
sessions with the same sizes of both share. Session starts are not in the trace: they are drawn.
synthetic: TOML that says how many sessions of which sizes to make up.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.workload import Request, Session, Workload

MOONCAKE_BLOCK_TOKENS = 512
MOONCAKE_BUCKET_S = 3.0
PREFIX_TOKENS = 1024
"""How much of a prompt the policies that hash its beginning look at: past the block that all of mooncake share."""


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


class _AgenticRequest(msgspec.Struct):
    t: float = 0.0
    input: int = msgspec.field(name="in", default=0)
    output: int = msgspec.field(name="out", default=0)
    hash_ids: list[int] = []
    api_time: float = 0.0
    think_time: float | None = None
    requests: list["_AgenticRequest"] | None = None
    """A sub-agent's; it has no prompt of its own."""


class _AgenticRow(msgspec.Struct):
    block_size: int
    requests: list[_AgenticRequest]
    tool_tokens: int = 0
    system_tokens: int = 0


def read_mooncake(path: Path, seed: int) -> Workload:
    """An open trace: each request a session of its own. Raises SimulationError."""
    rows = [row for _, row in _lines(path, _MooncakeRow)]
    random = Random(seed)  # noqa: S311 # nothing here is a secret
    first = min(row.timestamp for row in rows)
    sessions = [
        Session(
            (Request(tuple(row.hash_ids), max(1, row.input_length), max(1, row.output_length)),),
            (row.timestamp - first) / 1000.0 + random.uniform(0.0, MOONCAKE_BUCKET_S),
        )
        for row in rows
    ]
    sessions.sort(key=lambda session: session.start_s)
    return Workload(tuple(sessions), MOONCAKE_BLOCK_TOKENS, PREFIX_TOKENS // MOONCAKE_BLOCK_TOKENS)


def read_agentic(path: Path, seed: int) -> Workload:
    """A closed trace. Sub-agents take their turn where they stand. Raises SimulationError."""
    random = Random(seed)  # noqa: S311 # nothing here is a secret
    names: dict[object, int] = {}
    sessions: list[Session] = []
    block_tokens = 0
    for number, row in _lines(path, _AgenticRow):
        if row.block_size < 1 or block_tokens not in (0, row.block_size):
            raise SimulationError(f"{path}, line {number}: blocks of {row.block_size} tokens, where others differ.")
        block_tokens = row.block_size
        requests = tuple(_agentic_requests(row, number, names))
        if requests:
            sessions.append(Session(requests, random.random(), f"session-{number}"))
    if not sessions:
        raise SimulationError(f"{path} has no request.")
    sessions.sort(key=lambda session: session.start_s)
    return Workload(tuple(sessions), block_tokens, max(1, PREFIX_TOKENS // block_tokens))


def _agentic_requests(row: _AgenticRow, number: int, names: dict[object, int]) -> Iterator[Request]:
    flat = list(_flat(row.requests))
    shared_blocks = (row.tool_tokens + row.system_tokens) // row.block_size
    shared = dict.fromkeys(flat[0].hash_ids[:shared_blocks]) if flat else {}
    places = {name: (row.tool_tokens, row.system_tokens, at) for at, name in enumerate(shared)}
    for request in flat:
        keys = (places.get(name, (number, name)) for name in request.hash_ids)
        chain = tuple(names.setdefault(key, len(names)) for key in keys)
        think_s = max(0.0, request.think_time or 0.0)
        yield Request(chain, max(1, request.input), max(1, request.output), think_s)


def _flat(requests: list[_AgenticRequest]) -> Iterator[_AgenticRequest]:
    for request in requests:
        if request.requests is not None:
            yield from _flat(request.requests)
        else:
            yield request


def _lines(path: Path, kind: type[Any]) -> Iterator[tuple[int, Any]]:
    """(number, row) of each line; a file that ends in .gz is unpacked. Raises SimulationError."""
    decode = msgspec.json.Decoder(kind).decode
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, decode(line)
    except msgspec.MsgspecError as error:
        raise SimulationError(f"{path}, line {number}: {error}. Is --format the right one?") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SimulationError(f"{path} cannot be read: {error}.") from error
    if not number:
        raise SimulationError(f"{path} is empty.")
