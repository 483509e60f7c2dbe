"""`python -m data_plane.bench gateway …`: what `ebb bench gateway` starts. Progress goes to stderr, figures to stdout.

A round gives each target in turn its seconds of each load; the stub behind them is measured directly beside it. So a
machine that is slow for a while is slow for all of them, and the medians of the rounds are compared.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from data_plane.bench.gateway.client import Target, TargetDown, ask_once
from data_plane.bench.gateway.figures import DIRECT, Round, Soak, Summary, percentile, table
from data_plane.bench.gateway.load import Carried, alternate, closed_loop
from data_plane.bench.gateway.loop import run
from data_plane.bench.gateway.processes import Watched, gateway_process, stub_process
from data_plane.bench.gateway.stub import EVENTS, MODEL

SOAK_PARTS = 10


@dataclass(frozen=True)
class Plan:
    """`duration_s` is of each load of each target in each round; `rate` in streams a second."""

    rate: float
    duration_s: float
    rounds: int
    connections: int
    events: int
    soak_requests: int


class Bench:
    """Measures targets by a plan. The first target is the stub itself."""

    def __init__(self, plan: Plan, direct: Target, targets: list[Target]) -> None:
        self._plan = plan
        self._direct = direct
        self._targets = [direct, *targets]
        self._watched = {each.name: Watched.behind(each.address[1]) for each in self._targets}
        self._events: dict[str, int] = {}
        self.summaries = {each.name: Summary(each.name) for each in self._targets}

    async def run(self) -> list[Summary]:
        """All rounds, then the soak. Raises TargetDown where a target does not answer as it should."""
        for target in self._targets:
            await ask_once(target, stream=False)
            # some servers write streams anew, with events of their own: each is held to what it did at first
            self._events[target.name] = (await ask_once(target, stream=True)).events
            if self._events[target.name] < 2:
                raise TargetDown(f"{target.name} did not stream an answer that was asked for as a stream.")
            await self._warm(target)
        for target in self._targets:
            self.summaries[target.name].rss_before_mb = self._rss_mb(target)
        for number in range(self._plan.rounds):
            for target in self._targets:
                _say(f"round {number + 1} of {self._plan.rounds}: {target.name}")
                self.summaries[target.name].rounds.append(await self._round(target))
        for target in self._targets:
            self.summaries[target.name].rss_after_mb = self._rss_mb(target)
        if self._plan.soak_requests:
            for target in self._targets[1:]:
                self.summaries[target.name].soak = await self._soak(target)
        return list(self.summaries.values())

    async def _warm(self, target: Target) -> None:
        for stream in (False, True):
            await closed_loop(target, stream, self._plan.connections, min(1.0, self._plan.duration_s), self._of(target))

    async def _round(self, target: Target) -> Round:
        plan, figures = self._plan, Round()
        if plan.rate > 0:
            pair = [self._direct] if target is self._direct else [self._direct, target]
            taken = await alternate(pair, True, plan.rate, plan.duration_s, [self._of(each) for each in pair])
            figures.errors += taken[-1].errors
            if all(each.seconds for each in taken):
                p50s = [percentile(each.seconds, 0.50) * 1000 for each in taken]
                p99s = [percentile(each.seconds, 0.99) * 1000 for each in taken]
                figures.p50_ms, figures.p99_ms = p50s[-1], p99s[-1]
                if len(taken) > 1:
                    figures.added_p50_ms, figures.added_p99_ms = p50s[1] - p50s[0], p99s[1] - p99s[0]
        whole, figures.cpu_us_per_request = await self._load(target, stream=False)
        streamed, figures.cpu_us_per_stream = await self._load(target, stream=True)
        figures.requests_per_s = whole.answers / whole.seconds
        figures.streams_per_s = streamed.answers / streamed.seconds
        figures.chunks_per_s = streamed.events / streamed.seconds
        figures.errors += whole.errors + streamed.errors
        return figures

    async def _load(self, target: Target, stream: bool) -> tuple[Carried, float | None]:
        watched = self._watched[target.name]
        before = watched.cost()
        carried = await closed_loop(target, stream, self._plan.connections, self._plan.duration_s, self._of(target))
        after = watched.cost()
        if before is None or after is None or not carried.answers:
            return carried, None
        return carried, (after.cpu_s - before.cpu_s) / carried.answers * 1e6

    async def _soak(self, target: Target) -> Soak:
        """Half of them whole answers, half streams, in ten parts."""
        each = max(1, self._plan.soak_requests // SOAK_PARTS // 2)
        soak = Soak(0, 0.0, 0, [self._rss_mb(target) or 0.0])
        for part in range(SOAK_PARTS):
            _say(f"soak of {target.name}: part {part + 1} of {SOAK_PARTS}")
            for stream in (False, True):
                carried = await closed_loop(target, stream, self._plan.connections, 600, self._of(target), each)
                soak.requests += carried.answers
                soak.seconds += carried.seconds
                soak.errors += carried.errors
            soak.rss_mb.append(self._rss_mb(target) or 0.0)
        return soak

    def _of(self, target: Target) -> int:
        return self._events[target.name]

    def _rss_mb(self, target: Target) -> float | None:
        cost = self._watched[target.name].cost()
        return None if cost is None else cost.rss_bytes / 1e6


def _say(words: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def _peer(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals or not name or not url.startswith("http://"):
        raise argparse.ArgumentTypeError(f"'{text}' is no NAME=URL such as other=http://127.0.0.1:30000")
    return name, url


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_plane.bench gateway", description="Measures gateways.")
    parser.add_argument("--url", help="a gateway that runs already; by default one is started")
    parser.add_argument("--stub", help="a stub replica that runs already (python -m data_plane.bench stub)")
    parser.add_argument("--peer", action="append", default=[], type=_peer, metavar="NAME=URL")
    parser.add_argument("--key", default="none", help="the API key for --url and the peers")
    parser.add_argument("--model", default=MODEL, help="the model that requests to --url and the peers name")
    parser.add_argument("--rate", type=float, default=200.0, help="streams a second while latency is measured; 0: none")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of each load of a target in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16, help="requests at once while throughput is measured")
    parser.add_argument("--events", type=int, default=EVENTS, help="events of a stream of the stub that is started")
    parser.add_argument("--event-every-ms", type=float, default=0.0, help="its pause between two events; 0: none")
    parser.add_argument("--soak", type=int, default=0, metavar="REQUESTS", help="then so many, watching the memory")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser.parse_args(arguments)


async def measure(options: argparse.Namespace) -> list[Summary]:
    """Start what is missing, measure all, end what was started."""
    plan = Plan(options.rate, options.duration, options.rounds, options.connections, options.events, options.soak)
    async with AsyncExitStack() as stack:
        if options.stub:
            urls = options.stub.split(",")
        else:
            urls = await stack.enter_async_context(stub_process(options.events, options.event_every_ms))
        if options.url:
            ours = Target("ebb", options.url, options.key, options.model)
        else:
            url, key = await stack.enter_async_context(gateway_process(urls))
            ours = Target("ebb", url, key, MODEL)
        peers = [Target(name, url, options.key, options.model) for name, url in options.peer]
        return await Bench(plan, Target(DIRECT, urls[0], "none", MODEL), [ours, *peers]).run()


def main(arguments: Sequence[str]) -> int:
    """0, or 1 with a sentence on stderr."""
    options = _arguments(arguments)
    try:
        summaries = run(measure(options))
    except (TargetDown, ValueError) as error:
        print(f"The gateway cannot be measured so: {error}", file=sys.stderr)
        return 1
    finally:
        _say("")
    if options.output == "json":
        print(json.dumps({"targets": [each.as_json() for each in summaries]}))
    else:
        print(table(summaries))
    return 0
