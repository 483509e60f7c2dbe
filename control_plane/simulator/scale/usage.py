"""What a platform tells of itself, made into a trace: its own requests, and its endpoints and devices as they stand.

Where the platform knows nothing (of endpoints that are gone, of speeds that nobody measured) the settings are taken,
and a note says so. Knows no command line, and not how it was asked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, cast

import msgspec

from control_plane.autoscaler.keepalive import Terms
from control_plane.catalog.quantization import DeviceKind
from control_plane.endpoints.idle import IDLE_AUTO
from control_plane.endpoints.memory import Estimate
from control_plane.endpoints.specs import RevisionSpec
from control_plane.placement.planner import DeviceView, Need
from control_plane.simulator.errors import SimulationError
from control_plane.simulator.scale.fleet import GB, need_of
from control_plane.simulator.scale.settings import FleetSettings
from control_plane.simulator.scale.workload import Arrival, Deployed, Trace

Json = dict[str, Any]
LEAST_REQUESTS = 10
MOST_REQUESTS = 2_000_000
FEW_REQUESTS = 100
SHORT_S = 3600.0
REMEMBERED = 9
"""Starts of an endpoint that its time to start is the median of: as many as the platform itself goes by."""


@dataclass(frozen=True, slots=True)
class Told:
    """Items of the REST API: /usage/requests (with its `columns` and `endings`), /endpoints, /starts, /nodes, /models.
    Requests before `since_ms` (Unix milliseconds) are left out."""

    blocks: Sequence[Json]
    columns: Sequence[str]
    endings: Sequence[str]
    since_ms: int
    endpoints: Sequence[Json] = ()
    starts: Sequence[Json] = ()
    nodes: Sequence[Json] = ()
    models: Sequence[Json] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """The trace with its endpoints as they are deployed, the devices there are, and what had to be assumed."""

    trace: Trace
    devices: tuple[DeviceView, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Seen:
    """One row: `count` requests from `at_s` on, each with so many tokens; 0 where that is not known."""

    at_s: float
    count: int
    prompt: float
    completion: float
    first_s: float | None = None
    """To the first token, of a stream that found a replica."""
    token_s: float | None = None
    """Each token after it."""


def recorded(told: Told, settings: FleetSettings) -> Recorded:
    """Raises SimulationError where there are too few requests to compare by, or too many to replay."""
    seen = _requests(told)
    total = sum(row.count for rows in seen.values() for row in rows)
    if total < LEAST_REQUESTS:
        raise SimulationError(
            f"The platform's usage has {total} requests in that time, and a comparison needs at least "
            f"{LEAST_REQUESTS}. Send some, or look further back with --days; 'ebb usage' shows what was counted. A "
            "request is counted some seconds after it has ended."
        )
    if total > MOST_REQUESTS:
        raise SimulationError(
            f"The platform's usage has {total:,} requests in that time; up to {MOST_REQUESTS:,} can be replayed. Look "
            "less far back with --days."
        )
    by_name = {each["name"]: each for each in told.endpoints}
    # one that always has replicas holds their memory, whether anyone asks it or not
    names = sorted(seen.keys() | {name for name, each in by_name.items() if each["min"] > 0})
    devices = devices_of(told.nodes)
    assumed = _Assumed(told, settings, devices, seen)
    known = {name: assumed.deployed(name, by_name[name]) for name in names if name in by_name}
    deployed = tuple(known[name] if name in known else assumed.gone(name, known) for name in names)
    arrivals = sorted(
        (arrival for number, name in enumerate(names) for arrival in _arrivals(number, seen.get(name, []))),
        key=lambda one: one.at_s,
    )
    first = arrivals[0].at_s
    moved = tuple(Arrival(a.at_s - first, a.endpoint, 0.0, a.prompt_tokens, a.output_tokens) for a in arrivals)
    trace = Trace(moved, tuple(names), first, deployed)
    if total < FEW_REQUESTS or trace.span_s < SHORT_S:
        assumed.notes.append(
            f"{total} requests in {trace.span_s / 60:.0f} minutes say little of how the endpoints are used: a "
            "keep-alive learns from hours."
        )
    return Recorded(trace, devices, tuple(assumed.notes))


def _requests(told: Told) -> dict[str, list[_Seen]]:
    """By endpoint, those that wanted work: what was refused for its own faults moved nothing."""
    names = ("at_ms", "ending", "count", "prompt", "cached", "completion", "first_ms", "ms", "is_cold")
    at, ending, count, prompt, cached, completion, first, whole, cold = map(told.columns.index, names)
    seen: dict[str, list[_Seen]] = {}
    for block in told.blocks:
        for row in cast("list[list[int]]", block["requests"]):
            if row[at] < told.since_ms or told.endings[row[ending]] == "client_error":
                continue
            each = row[count]
            # what was found in a cache was not computed
            read = max(0, row[prompt] - row[cached]) or min(1, row[prompt])
            kept = _Seen(row[at] / 1000, each, read / each, row[completion] / each)
            if told.endings[row[ending]] == "ok" and row[first] > 0 and not row[cold]:
                kept.first_s = row[first] / each / 1000
                if row[completion] > each:
                    kept.token_s = (row[whole] - row[first]) / (row[completion] - each) / 1000
            seen.setdefault(block["endpoint"], []).append(kept)
    return seen


def _arrivals(number: int, rows: list[_Seen]) -> list[Arrival]:
    """Requests that stand together in a row are spread evenly over its second; one that failed or was given up before
    its answer would have been like the endpoint's others."""
    usual = [
        fmean([each for each in column if each > 0] or [1.0])
        for column in ([row.prompt for row in rows], [row.completion for row in rows])
    ]
    return [
        Arrival(
            row.at_s + (part / row.count if row.count > 1 else 0.0),
            number,
            0.0,
            max(1, round(row.prompt or usual[0])),
            max(1, round(row.completion or usual[1])),
        )
        for row in rows
        for part in range(row.count)
    ]


def devices_of(nodes: Sequence[Json]) -> tuple[DeviceView, ...]:
    """The devices of the nodes that are ready."""
    return tuple(
        DeviceView(
            node["id"],
            node["name"],
            "cpu" if device["kind"] == "cpu" else f"cuda:{device['index']}",
            device["kind"],
            device["memory_bytes"],
        )
        for node in nodes
        if node["status"] == "ready"
        for device in node["devices"]
    )


class _Assumed:
    """Makes of what is told of an endpoint how it stands, and notes what had to be assumed."""

    def __init__(
        self, told: Told, settings: FleetSettings, devices: Sequence[DeviceView], seen: Mapping[str, list[_Seen]]
    ) -> None:
        self.notes: list[str] = []
        self._seen = seen
        self._settings = settings
        self._devices = devices
        self._kind: DeviceKind = "cuda" if any(device.kind == "cuda" for device in devices) or not devices else "cpu"
        self._starts = _start_times(told.starts)
        self._speeds = {
            artifact["digest"]: artifact["speed"] or {} for model in told.models for artifact in model["artifacts"]
        }

    def gone(self, name: str, known: Mapping[str, Deployed]) -> Deployed:
        """An endpoint that there is no more: of the known ones it is like the one of middling size."""
        start_s = self._start_s(name)
        if known:
            order = sorted(known.items(), key=lambda each: each[1].settings.memory_gb)
            like, other = order[(len(order) - 1) // 2]
            self.notes.append(f"Endpoint '{name}' is gone: it is taken for one like '{like}' that sleeps by itself.")
            settings = msgspec.structs.replace(other.settings, start_s=start_s)
            return Deployed(settings, other.need, 0, other.target, None, other.has_slo)
        self.notes.append(f"Endpoint '{name}' is gone: what the settings say is taken for what it was.")
        most_gb = max((device.usable_bytes / GB for device in self._devices), default=math.inf)
        memory_gb = min(self._settings.memory_gb, most_gb)
        settings = msgspec.structs.replace(self._settings, start_s=start_s, memory_gb=memory_gb)
        return Deployed(settings, need_of(memory_gb), 0, settings.concurrency, None, False)

    def deployed(self, name: str, endpoint: Json) -> Deployed:
        """The endpoint as it stands."""
        start_s = self._start_s(name)
        spec = msgspec.convert(endpoint["spec"], RevisionSpec)
        estimates: dict[DeviceKind, Estimate] = {"cpu": spec.estimate("cpu"), "cuda": spec.estimate("cuda")}
        kind: DeviceKind = "cpu" if spec.device == "cpu" else self._kind
        slo: Json = endpoint["slo"] or {}
        settings = msgspec.structs.replace(
            self._at_speed(name, spec),
            start_s=start_s,
            memory_gb=estimates[kind].total_bytes / GB,
            concurrency=spec.concurrency,
            max_replicas=endpoint["max"],
            slo_ttft_s=(slo.get("ttft_p95_ms") or self._settings.slo_ttft_s * 1000) / 1000,
            slo_itl_s=(slo.get("itl_p95_ms") or self._settings.slo_itl_s * 1000) / 1000,
        )
        return Deployed(
            settings,
            Need(spec.device, estimates),
            endpoint["min"],
            spec.requests_per_replica,
            None if endpoint["idle_s"] == IDLE_AUTO else float(endpoint["idle_s"]),
            any(slo.values()),
        )

    def _start_s(self, name: str) -> float:
        """The median of the endpoint's last starts; else that of all; else the settings'."""
        own = self._starts.get(name)
        if own:
            return median(own[:REMEMBERED])
        others = [seconds for starts in self._starts.values() for seconds in starts]
        start_s = median(others) if others else self._settings.start_s
        whose = "that of the others" if others else "the settings'"
        self.notes.append(f"No start of '{name}' is known: {whose} is taken, {start_s:.2f} s.")
        return start_s

    def _at_speed(self, name: str, spec: RevisionSpec) -> FleetSettings:
        """The settings with the speed that the artifact was measured to have; else that which its requests saw."""
        speed: Mapping[str, float] = self._speeds.get(spec.artifact) or _seen_speed(self._seen.get(name, []))
        prefill, alone = speed.get("prefill_tps") or 0.0, speed.get("decode_1_tps") or 0.0
        base = self._settings
        if prefill <= 0.0 or alone <= 0.0:
            self.notes.append(f"The speed of '{name}' is not known: the settings' is taken.")
            return msgspec.structs.replace(base, step_tokens=max(base.step_tokens, 2 * spec.concurrency))
        # a step with one token takes 1/alone, one that is full is as fast as prompts are read
        step_tokens = max(base.step_tokens, 2 * spec.concurrency, math.ceil(2 * prefill / alone))
        step_s = max(1e-6, (1 / alone - 1 / prefill) / (1 - 1 / step_tokens))
        return msgspec.structs.replace(
            base,
            prefill_tokens_per_s=prefill,
            decode_tokens_per_s=alone,
            step_s=step_s,
            step_tokens=step_tokens,
        )


def _seen_speed(rows: Sequence[_Seen]) -> dict[str, float]:
    """Tokens a second of prompts and of an answer alone, as the quickest fifth of an endpoint's streams had them; empty
    where there are too few. The rest of a first token's time is taken to belong to its prompt."""
    prompts = sorted(row.first_s / row.prompt for row in rows if row.first_s and row.prompt > 0)
    tokens = sorted(row.token_s for row in rows if row.token_s)
    if min(len(prompts), len(tokens)) < LEAST_REQUESTS:
        return {}
    alone = 1 / tokens[len(tokens) // 5]
    # reading takes no longer than writing
    return {"prefill_tps": max(2 * alone, 1 / prompts[len(prompts) // 5]), "decode_1_tps": alone}


def _start_times(starts: Sequence[Json]) -> dict[str, list[float]]:
    """By endpoint, what its starts took that came up, the newest first."""
    times: dict[str, list[float]] = {}
    for start in starts:
        if start["outcome"] == "ready" and start["total_s"] is not None and start["total_s"] > 0:
            times.setdefault(start["endpoint"], []).append(start["total_s"])
    return times


def own_worth(settings: FleetSettings) -> FleetSettings:
    """The settings with what the platform itself takes a second of waiting to be worth."""
    return msgspec.structs.replace(settings, worth=Terms(0.0, 0).worth)
