"""Which replica takes a request. Pure: decided by its arguments alone, so that tests and the simulator run it.

Knows nothing of HTTP, clocks or where the numbers come from: what is held comes from PrefixIndex, work from Loads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from data_plane.router.ring import ring_of

AFFINITY = 1.0
"""A prefix is left only for a start that is earlier by this many times what the prefix saves. Computing it again also
takes the time of those who come after, and cache from those who were there: 0 would count neither."""
USUAL_ANSWER_TOKENS = 256
USUAL_PREFILL_TOKENS_PER_S = 4000.0
USUAL_DECODE_TOKENS_PER_S = 400.0
"""Stand in for what no replica has reported. Where none has, only their ratio matters, and that little."""


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

    Reasons: `only` there was no other; `prefix` it holds more of the prompt than others, and waiting there costs less
    than computing elsewhere; `least_work` it has the least to do; where nothing was reported and nothing is held,
    `session` and `ring` for the first on the ring under the bound, and `least_loaded` without a key.
    """
    want = want or Want()
    able = [one for one in candidates if one.has_room] if with_room else candidates
    if not able:
        return None
    if len(able) == 1:
        return Choice(able[0].replica_id, "only", _matched(able[0], want))
    if want.held or any(one.running is not None for one in able):
        return _by_work(able, want)
    key = want.session or want.prefix
    if key is not None:
        return _by_ring(able, key, "ring" if want.session is None else "session")
    best = min(able, key=lambda one: (one.in_flight / max(1, one.slots), one.in_flight, one.replica_id))
    return Choice(best.replica_id, "least_loaded")


def _by_work(able: Sequence[Candidate], want: Want) -> Choice:
    prompt, held, chunk = want.prompt_tokens, want.held, want.chunk_tokens
    usual = _usual_rate(able)
    nearest = least = able[0]
    nearest_s = least_work = inf
    nearest_new = least_new = 0.0
    for one in able:
        new = max(1.0, prompt - held.get(one.replica_id, 0) * chunk)
        rate = one.prefill_tokens_per_s or usual
        batch = one.in_flight if one.running is None else max(one.in_flight, one.running + (one.waiting or 0))
        cost_s = (one.pending_tokens + (1.0 + AFFINITY) * new) / rate
        if batch >= one.slots:
            cost_s += _place_s(one, batch)
        work = (one.pending_tokens + new) / rate * (batch + 1)
        if cost_s < nearest_s:
            nearest, nearest_s, nearest_new = one, cost_s, new
        if work < least_work:
            least, least_work, least_new = one, work, new
    if nearest_new < least_new:
        return Choice(nearest.replica_id, "prefix", _matched(nearest, want))
    return Choice(least.replica_id, "least_work", _matched(least, want))


def _place_s(one: Candidate, batch: int) -> float:
    """Seconds until a replica without a free place has one: it ends an answer of usual length after the other."""
    rate = one.decode_tokens_per_s or USUAL_DECODE_TOKENS_PER_S
    return (batch - one.slots + 1) * USUAL_ANSWER_TOKENS / rate


def _usual_rate(able: Sequence[Candidate]) -> float:
    known = [one.prefill_tokens_per_s for one in able if one.prefill_tokens_per_s]
    return sum(known) / len(known) if known else USUAL_PREFILL_TOKENS_PER_S


def _matched(one: Candidate, want: Want) -> int:
    return min(want.prompt_tokens, int(want.held.get(one.replica_id, 0) * want.chunk_tokens))


def _by_ring(able: Sequence[Candidate], key: str, reason: str) -> Choice:
    loads = {one.replica_id: one.in_flight for one in able}
    return Choice(ring_of(tuple(sorted(loads))).pick(key, loads), reason)
