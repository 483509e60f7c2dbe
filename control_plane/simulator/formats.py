"""Reads the traces that can be replayed: mooncake, agentic and synthetic. Knows nothing of what is done with them.

mooncake: lines of {timestamp ms, input_length, output_length, hash_ids}; 512 tokens a block, names shared by all.
Arrivals are quantised to 3 s, so each is drawn from the 3 s after its own. All requests share block 0.
agentic: a session a line, closed loop; names mean nothing outside it, except for the system prompt and tools, which
sessions with the same sizes of both share. Session starts are not in the trace: they are drawn.
synthetic: TOML that says how many sessions of which sizes to make up.
"""

import tomllib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.files import opened
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
    for before, request in zip([None, *flat], flat, strict=False):
        keys = (places.get(name, (number, name)) for name in request.hash_ids)
        chain = tuple(names.setdefault(key, len(names)) for key in keys)
        think_s = request.think_time
        if think_s is None:
            think_s = request.t - before.t - before.api_time if before else 0.0
        yield Request(chain, max(1, request.input), max(1, request.output), max(0.0, think_s))


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
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, decode(line)
    except msgspec.MsgspecError as error:
        raise SimulationError(f"{path}, line {number}: {error}. Is --format the right one?") from error
    if not number:
        raise SimulationError(f"{path} is empty.")


class _Synthetic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sessions that all begin with one of `systems` prompts and grow turn by turn."""

    sessions: int = 200
    turns: int = 6
    systems: int = 1
    block_tokens: int = 64
    system_tokens: int = 1024
    turn_tokens: int = 512
    """What each turn adds to the prompt, the answer before it included; exponential around this."""
    output_tokens: int = 256
    think_s: float = 10.0


def read_synthetic(path: Path, seed: int) -> Workload:
    """Sessions made up as the file says, in a closed loop. Raises SimulationError."""
    try:
        plan = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Synthetic)
    except OSError as error:
        raise SimulationError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SimulationError(f"{path}: {error}. A synthetic trace is TOML with {_FIELDS}.") from error
    if min(plan.sessions, plan.turns, plan.systems, plan.block_tokens, plan.output_tokens) < 1:
        raise SimulationError(f"{path}: sessions, turns, systems, block_tokens and output_tokens are at least 1.")
    if min(plan.system_tokens, plan.turn_tokens, plan.think_s) < 0:
        raise SimulationError(f"{path}: system_tokens, turn_tokens and think_s are at least 0.")
    random, names = Random(seed), count()  # noqa: S311 # nothing here is a secret
    system_blocks = plan.system_tokens // plan.block_tokens
    systems = [tuple(next(names) for _ in range(system_blocks)) for _ in range(plan.systems)]
    sessions = [_synthetic_session(number, plan, random, systems, names) for number in range(plan.sessions)]
    sessions.sort(key=lambda session: session.start_s)
    prefix_blocks = system_blocks + max(1, plan.turn_tokens // plan.block_tokens)
    return Workload(tuple(sessions), plan.block_tokens, min(prefix_blocks, max(1, PREFIX_TOKENS // plan.block_tokens)))


def _synthetic_session(
    number: int, plan: _Synthetic, random: Random, systems: list[tuple[int, ...]], names: Iterator[int]
) -> Session:
    chain, tokens = random.choice(systems), plan.system_tokens
    requests: list[Request] = []
    for turn in range(plan.turns):
        tokens += 1 + int(_exponential(random, plan.turn_tokens))
        chain += tuple(next(names) for _ in range(tokens // plan.block_tokens - len(chain)))
        output = 1 + int(_exponential(random, plan.output_tokens - 1))
        requests.append(Request(chain, tokens, output, _exponential(random, plan.think_s) if turn else 0.0))
    return Session(tuple(requests), random.random(), f"session-{number}")


def _exponential(random: Random, mean: float) -> float:
    return random.expovariate(1.0 / mean) if mean else 0.0


_FIELDS = ", ".join(_Synthetic.__struct_fields__)

READERS: dict[str, Callable[[Path, int], Workload]] = {
    "mooncake": read_mooncake,
    "agentic": read_agentic,
    "synthetic": read_synthetic,
}
"""By the names that --format takes: (file, seed) to a workload."""
