"""Lets a request in: its key's limits, its rank, its party, and the books that are put right when its answer has ended.

Knows nothing of bodies beyond what they ask for, and nothing of replicas.
"""

import asyncio
from dataclasses import dataclass

from data_plane.gateway.activation import Activation
from data_plane.gateway.exchange import Exchange
from data_plane.gateway.fairness import Claim
from data_plane.gateway.limits import Limiter, Permit
from data_plane.gateway.meter import Meter
from data_plane.wire.keys import KeyRecord
from data_plane.wire.openai import ChatRequest, CompletionRequest
from data_plane.wire.routes import EndpointRoute


@dataclass(eq=False, slots=True)
class Admitted:
    """What a request carries along: its claim to a place, and the meter of its answer. Its books are put right when it
    is left; a context manager of its own, because contextlib's costs 4 us a request."""

    claim: Claim
    meter: Meter
    _permit: Permit
    _activation: Activation
    _endpoint_id: str

    def __enter__(self) -> "Admitted":
        return self

    def __exit__(self, *_: object) -> None:
        claim, meter = self.claim, self.meter
        # one that had a place was worked on, whatever came of it
        used = meter.used or (meter.prompt if claim.is_charged else 0)
        claim.settle(used)
        self._activation.disclaim(self._endpoint_id, claim)
        self._permit.end(used, asyncio.get_running_loop().time())


class Admission:
    """Limits of keys before anything else is done; then a claim on the endpoint, in the name of the key."""

    def __init__(self, limiter: Limiter, activation: Activation) -> None:
        self._limiter = limiter
        self._activation = activation

    def waiting(self, endpoint_id: str) -> int:
        """How many requests wait for a place on the endpoint."""
        return self._activation.waiting(endpoint_id)[0]

    def wait_s(self, endpoint_id: str) -> float | None:
        """How long the next is likely to wait; None where nothing is known of it."""
        return self._activation.wait_s(endpoint_id)

    def rank(self, exchange: Exchange, request: ChatRequest | CompletionRequest) -> int:
        """The priority it is forwarded with: its key's class, in which its own wish may only put it further behind."""
        return _key(exchange).rank(request.priority)

    def enter(
        self,
        exchange: Exchange,
        route: EndpointRoute,
        request: ChatRequest | CompletionRequest,
        rank: int,
        body_bytes: int,
    ) -> Admitted:
        """Enter the answer for as long as the request is in hand. ApiError 429 where its key has what it may have."""
        key = _key(exchange)
        meter = exchange.meter = Meter.of(request, body_bytes, route.max_model_len)
        now = asyncio.get_running_loop().time()
        permit = self._limiter.admit(key, meter.estimate, now)
        if permit.key is not None:
            exchange.headers.update(self._limiter.headers(key, now))
        claim = self._activation.claim(route.id, key.id, rank, meter.estimate)
        return Admitted(claim, meter, permit, self._activation, route.id)


def _key(exchange: Exchange) -> KeyRecord:
    assert exchange.key is not None, "a route with scopes is not reached without a key"
    return exchange.key
