"""What this gateway knows of an endpoint's replicas: what they hold of prompts, and how much work they have.

Runners report both (`followers`); what was just sent to one counts as held there until it has had time to say so. Knows
nothing of HTTP; time is an argument, in seconds of the loop's clock.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from data_plane.router.choose import Candidate, Choice, Want, choose
from data_plane.router.lease import Lease
from data_plane.router.loads import Loads, Report
from data_plane.router.prefixes import PrefixIndex
from data_plane.wire.prefix_chain import CHARS_PER_TOKEN, NO_CHAIN, Chain
from data_plane.wire.prefixes import PrefixReport, unpack_names
from data_plane.wire.routes import ReplicaRoute

RoutePolicy = Literal["ebb", "round-robin", "least-load"]
ROUTE_POLICIES: tuple[RoutePolicy, ...] = get_args(RoutePolicy)

EXPECT_S = 30.0
"""How long what was sent somewhere counts as held there without a report: it may wait, and long prompts take long."""
PREFIX_CHUNKS = 16
"""Requests that begin alike for so long (4,096 characters) belong together, while nothing was reported."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request counts for where it goes: its prompt's beginnings, and the client's word for its session."""

    chain: Chain = NO_CHAIN
    session: str | None = None

    @property
    def prefix(self) -> str | None:
        """A name for the beginning of the prompt; None for a short one."""
        names = self.chain.names
        return str(names[min(len(names), PREFIX_CHUNKS) - 1]) if names else None


NOTHING_ASKED = Asked()


@dataclass(frozen=True, slots=True)
class Times:
    """Of one request on one replica, in seconds: until a place comes free there, what the prompts take that are before
    its own, and its own."""

    place_s: float
    before_s: float
    own_s: float

    @property
    def answer_s(self) -> float:
        """Until its first token."""
        return self.place_s + self.before_s + self.own_s


@dataclass(eq=False, slots=True)
class _Endpoint:
    index: PrefixIndex = field(default_factory=PrefixIndex)
    loads: Loads = field(default_factory=Loads)
    chars_per_token: dict[str, float] = field(default_factory=dict[str, float])
    turn: int = 0

    def ratio(self) -> float:
        known = self.chars_per_token
        return sum(known.values()) / len(known) if known else CHARS_PER_TOKEN

    def want(self, asked: Asked, now: float) -> Want:
        ratio, chain = self.ratio(), asked.chain
        held = self.index.match(chain.names, now) if chain.names else {}
        return Want(chain.tokens(ratio), asked.session, asked.prefix, held, chain.chunk_tokens(ratio))


class Knowledge:
    """Of all endpoints. `policy` other than `ebb` is for comparing: it chooses as simpler gateways do."""

    def __init__(self, policy: RoutePolicy = "ebb") -> None:
        self._policy: RoutePolicy = policy
        self._endpoints: dict[str, _Endpoint] = {}

    def choose(self, endpoint_id: str, replicas: Sequence[ReplicaRoute], asked: Asked, now: float) -> Choice | None:
        """The replica for a request among those its caller sees room in; None where there is none."""
        known = self._endpoint(endpoint_id)
        candidates = [known.loads.candidate(one.id, one.slots) for one in replicas]
        if not candidates:
            return None
        want = known.want(asked, now)
        if self._policy == "ebb":
            return choose(candidates, want)
        one = _in_turn(known, candidates) if self._policy == "round-robin" else min(candidates, key=_load)
        matched = min(want.prompt_tokens, int(want.held.get(one.replica_id, 0) * want.chunk_tokens))
        return Choice(one.replica_id, self._policy.replace("-", "_"), matched)

    def home(self, endpoint_id: str, replicas: Sequence[ReplicaRoute], asked: Asked, now: float) -> Choice | None:
        """The replica that holds what this request begins with, where it is best off there whether there is room or
        not; None where there is none, or the policy does not care."""
        if self._policy != "ebb":
            return None
        choice = self.choose(endpoint_id, replicas, asked, now)
        return choice if choice and choice.reason in ("prefix", "session") else None

    def times(self, endpoint_id: str, replicas: Sequence[ReplicaRoute], asked: Asked, now: float) -> "list[Times]":
        """How soon each of these replicas would answer the request, in their order."""
        known = self._endpoint(endpoint_id)
        want = known.want(asked, now)
        found: list[Times] = []
        for one in replicas:
            candidate = known.loads.candidate(one.id, one.slots)
            own_tokens = max(0.0, want.prompt_tokens - want.held.get(one.id, 0) * want.chunk_tokens)
            before_s = candidate.pending_tokens * candidate.token_s
            found.append(Times(candidate.place_s, before_s, own_tokens * candidate.token_s))
        return found

    def sent(self, lease: Lease, asked: Asked, matched_tokens: int, now: float) -> None:
        """The request of this lease goes to its replica, where so much of its prompt should be held."""
        known = self._endpoint(lease.endpoint_id)
        replica_id = lease.replica.id
        lease.prompt_tokens, lease.matched_tokens = asked.chain.tokens(known.ratio()), matched_tokens
        known.loads.sent(replica_id, lease, max(1, lease.prompt_tokens - matched_tokens), now)
        known.index.expect(replica_id, asked.chain.names, now + EXPECT_S)
        lease.on_answer = lambda: known.loads.answered(replica_id, lease, time.monotonic())
        lease.on_end = lambda: known.loads.ended(replica_id, lease, time.monotonic())

    def reported(self, endpoint_id: str, replica_id: str, report: PrefixReport, now: float) -> None:
        """The replica told what it holds and does."""
        known = self._endpoint(endpoint_id)
        if report.full:
            known.index.replace(replica_id, unpack_names(report.stored))
        else:
            known.index.evict(replica_id, unpack_names(report.evicted))
            known.index.store(replica_id, unpack_names(report.stored))
        if report.chars_per_token:
            known.chars_per_token[replica_id] = report.chars_per_token
        load = Report(
            report.running,
            report.waiting,
            report.pending_tokens,
            report.kv_usage,
            report.prefill_tokens_per_s,
            report.decode_tokens_per_s,
        )
        known.loads.reported(replica_id, load, now)

    def silent(self, endpoint_id: str, replica_id: str) -> None:
        """Its reports stopped: what it holds is believed on, of its work only this gateway's part is known."""
        self._endpoint(endpoint_id).loads.silent(replica_id)

    def forget(self, endpoint_id: str, replica_id: str) -> None:
        """The replica is gone."""
        known = self._endpoints.get(endpoint_id)
        if known is not None:
            known.index.forget(replica_id)
            known.loads.forget(replica_id)
            known.chars_per_token.pop(replica_id, None)

    def forget_endpoint(self, endpoint_id: str) -> None:
        """The endpoint was deleted."""
        self._endpoints.pop(endpoint_id, None)

    def known_chunks(self, endpoint_id: str, replica_id: str) -> int:
        """How many chunks the replica is known to hold."""
        return self._endpoint(endpoint_id).index.known(replica_id)

    def candidate(self, endpoint_id: str, replica: ReplicaRoute) -> Candidate:
        """The replica's load as it is known."""
        return self._endpoint(endpoint_id).loads.candidate(replica.id, replica.slots)

    def _endpoint(self, endpoint_id: str) -> _Endpoint:
        known = self._endpoints.get(endpoint_id)
        if known is None:
            known = self._endpoints[endpoint_id] = _Endpoint()
        return known


def _in_turn(known: _Endpoint, candidates: Sequence[Candidate]) -> Candidate:
    known.turn += 1
    return sorted(candidates, key=lambda one: one.replica_id)[known.turn % len(candidates)]


def _load(one: Candidate) -> tuple[float, str]:
    requests = one.in_flight if one.running is None else max(one.in_flight, one.running + (one.waiting or 0))
    return requests / max(1, one.slots), one.replica_id
