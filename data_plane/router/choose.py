"""Which replica takes a request. Pure: decided by its arguments alone, so that tests and the simulator run it.

Knows nothing of HTTP, clocks or where the numbers come from: what is held comes from PrefixIndex, work from Loads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Candidate:
    """A replica that could take the request; not frozen, because Loads keeps one for each replica and updates it.

    `slots` is how many requests it runs at once, `in_flight` how many it has from this gateway. The rest is of all
    gateways, as last reported: `running` and `waiting` requests (None where it never reported), `pending_tokens` of
    their prompts not computed yet, `kv_usage` from 0 to 1, and measured rates (None before there are any).
    """

    replica_id: str
    slots: int
    in_flight: int
    running: int | None = None
    waiting: int | None = None
    pending_tokens: int = 0
    kv_usage: float = 0.0
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None

    @property
    def has_room(self) -> bool:
        """Whether another request would run at once rather than queue inside the runner."""
        return self.in_flight < max(1, self.slots)


@dataclass(slots=True)
class Want:
    """What is known of a request before it is sent.

    `prompt_tokens` is about how long it is. `session` is the client's own word for requests that belong together
    (a header, `user`, `prompt_cache_key`), `prefix` names the beginning of the prompt; None where there is none.
    `held` is PrefixIndex.match: leading chunks by replica, each of about `chunk_tokens`.
    """

    prompt_tokens: int = 0
    session: str | None = None
    prefix: str | None = None
    held: Mapping[str, int] = field(default_factory=dict[str, int])
    chunk_tokens: float = 64.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The replica taken, why (a word that may be a log field or a header), and what of the prompt it should hold."""

    replica_id: str
    reason: str
    matched_tokens: int = 0


def choose(candidates: Sequence[Candidate], want: Want | None = None, *, with_room: bool = False) -> Choice | None:
    """The replica for a request, or None where there is nobody, or with `with_room` nobody who has room.

    Reasons: `only`, `prefix`, `least_work`, `session`, `ring`, `least_loaded`.
    """
    able = [one for one in candidates if one.has_room] if with_room else candidates
    if not able:
        return None
    best = min(able, key=lambda one: (one.in_flight / max(1, one.slots), one.in_flight, one.replica_id))
    return Choice(best.replica_id, "only" if len(candidates) == 1 else "least_loaded")
