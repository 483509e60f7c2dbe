"""Which replica takes a request. Pure: decided by its arguments alone, so that tests and the simulator run it.

Knows nothing of HTTP, clocks or where the numbers come from: what is held comes from PrefixIndex, work from Loads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from data_plane.router.prefixes import Held
from data_plane.router.ring import ring_of

AFFINITY = 25.0
"""A conversation is kept to the replica that holds it unless another would begin with it earlier by this many times
what holding it saves, on top of the once that it saves this request: computing it again also takes the time of those
who come after, and the blocks of those who were there.

Replaying windows of a conversation trace on 16 replicas, 10, 15, 20 and 30 found 93.4, 95.1, 95.6 and 96.2 % of what
an ideal router finds, at 1.45, 1.47, 1.48 and 1.53 s to the first token. Replaying 24 sessions of coding agents on 4,
10 for what many begin with as well found 81 %, and 0 for it 90 %."""
SHARED_AFFINITY = 1.0
"""The same for what many prompts begin with: wherever it is computed again, it is there for the next as well. On a
whole conversation trace with 8 replicas 0, 1 and 3 find 95.0, 97.0 and 98.1 % of the ideal hits."""
LOTS = 8
"""Beside those who hold its beginning, a request looks at this many replicas, drawn by its prompt: gateways that have
not heard of each other's last choices then do not all send to the one that looks idle. The least of 8 is hardly more
than the least of all (the same windows: 1.50 s to the first token either way; with four gateways and reports 0.5 s late
2.25 instead of 2.5 s), and it is found sooner."""
COMES_BACK = 0.1
"""Of what a replica was given to compute in the last minutes, this share counts as if it waited there again: its
conversations will go on. Without it they gather where it happened to be quiet when they began (replaying thrice 20
sessions of coding agents on 4 replicas: 90 % of the ideal hits, with it 95 %; with 0.01 90 %, with 0.4 96 %)."""
FULL = 0.95
"""A KV cache that full takes no further prompt before an answer ends."""
FULL_CROWD = 2.0
"""Every slot is taken. Affinity is worth a wait among prompts, but nobody waits for others' answers to end where
another replica with a free slot would have computed all of it by then. (With the batches of 64 that are replayed it
hardly happens; with two slots each, one replica had six requests for a minute while the other had none.)"""
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
    `recent_tokens` is what this gateway gave it to compute in the last minutes: who had least of it is next among
    equals, because what a replica was given before comes back for more. `answer_s` is what answers took lately from
    their first token to their end, None before one has ended. Whoever changes a field calls `weigh`.
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
    recent_tokens: float = 0.0
    answer_s: float | None = None
    place_s: float = field(init=False, repr=False, compare=False)
    """Seconds until a place comes free: 0 while there is one."""
    wait_s: float = field(init=False, repr=False, compare=False)
    """Seconds until it would begin with another prompt."""
    token_s: float = field(init=False, repr=False, compare=False)
    """Seconds that each token of a prompt takes."""
    crowd: float = field(init=False, repr=False, compare=False)
    """How full its batch is: 1 while nothing runs, 2 where every slot is taken."""

    def __post_init__(self) -> None:
        self.weigh()

    def weigh(self) -> None:
        """Work out what `choose` compares: once for each change, rather than for each replica of each request."""
        batch = self.in_flight
        if self.running is not None:
            batch = max(batch, self.running + (self.waiting or 0))
        self.crowd = 1.0 + batch / max(1, self.slots)
        self.token_s = 1.0 / (self.prefill_tokens_per_s or USUAL_PREFILL_TOKENS_PER_S)
        self.place_s = 0.0
        if batch >= max(1, self.slots) or self.kv_usage > FULL:
            # one comes free whenever one of the answers under way ends, or one of usual length would
            each_s = USUAL_ANSWER_TOKENS / (self.decode_tokens_per_s or USUAL_DECODE_TOKENS_PER_S)
            if self.answer_s is not None:
                each_s = self.answer_s / max(1, min(batch, self.slots))
            self.place_s = max(1, batch + 1 - self.slots) * each_s
        self.wait_s = (self.pending_tokens + COMES_BACK * self.recent_tokens) * self.token_s + self.place_s


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
    held: Mapping[str, int] = field(default_factory=Held)
    chunk_tokens: float = 64.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The replica taken, why (a word that may be a log field or a header), and what of the prompt it should hold."""

    replica_id: str
    reason: str
    matched_tokens: int = 0


def choose(candidates: Sequence[Candidate], want: Want | None = None) -> Choice | None:
    """The replica for a request, or None where there is nobody.

    Reasons: `only` there was no other; `prefix` it holds more of the prompt than others, and waiting there costs less
    than computing elsewhere; `least_work` it has the least to do; `session` the prompt is too
    short to be found again by what it says, or nothing was reported, and this is where the session's ring points;
    `ring` nothing was reported, and this is where that of the prompt's beginning points; `least_loaded` nothing was
    reported, and there is no key.
    """
    want = want or Want()
    if not candidates:
        return None
    if len(candidates) == 1:
        return Choice(candidates[0].replica_id, "only", _matched(candidates[0], want))
    if want.held or any(one.running is not None for one in candidates):
        return _by_work(candidates, want)
    key = want.session or want.prefix
    if key is not None:
        return Choice(_home(candidates, key).replica_id, "ring" if want.session is None else "session")
    best = min(candidates, key=lambda one: (one.in_flight / max(1, one.slots), one.in_flight, one.replica_id))
    return Choice(best.replica_id, "least_loaded")


def _by_work(able: Sequence[Candidate], want: Want) -> Choice:
    prompt, chunk, weight = want.prompt_tokens, want.chunk_tokens, 1.0 + AFFINITY
    held = want.held if isinstance(want.held, Held) else Held([(frozenset([one]), n) for one, n in want.held.items()])
    if held.lot:
        weight = 1.0 + SHARED_AFFINITY if held.is_shared else weight
        able = _drawn(able, held) if len(able) > LOTS else able
    nearest = least = able[0]
    lowest_cost = lowest_work = inf
    for one in able:
        own_s = one.token_s * (prompt - held.of(one.replica_id) * chunk)
        wait_s = one.wait_s
        cost = wait_s + weight * own_s
        if cost <= lowest_cost and (cost < lowest_cost or _is_before(one, nearest)):
            nearest, lowest_cost = one, cost
        work = (wait_s + own_s) * one.crowd
        if work <= lowest_work and (work < lowest_work or _is_before(one, least)):
            least, lowest_work = one, work
    if want.session is not None and not held.lot:
        # too short to be found again by what it says
        home = _home(able, want.session)
        if home.wait_s <= least.wait_s + prompt * home.token_s:
            return Choice(home.replica_id, "session")
    # the least work decides, unless a replica that holds more is the nearest all the same
    more, less = held.of(nearest.replica_id), held.of(least.replica_id)
    if more > less and not _is_sooner(least, nearest, want, held):
        return Choice(nearest.replica_id, "prefix", _matched(nearest, want))
    is_kept = more == less > min(held.of(one.replica_id) for one in able)
    return Choice(least.replica_id, "prefix" if is_kept else "least_work", _matched(least, want))


def _is_sooner(one: Candidate, home: Candidate, want: Want, held: Held) -> bool:
    """Whether `one` has a place free while those at `home` wait for one, and would begin to answer before it."""
    if one.crowd >= FULL_CROWD or home.crowd < FULL_CROWD:
        return False
    one_s, home_s = (
        each.wait_s + each.token_s * (want.prompt_tokens - held.of(each.replica_id) * want.chunk_tokens)
        for each in (one, home)
    )
    return one_s < home_s


def _drawn(able: Sequence[Candidate], held: Held) -> list[Candidate]:
    """Those who hold most, and some of all, whom the prompt draws."""
    start, longest = held.lot % len(able), held.longest
    drawn = [*able[start : start + LOTS], *able[: max(0, start + LOTS - len(able))]]
    if 0 < len(longest) <= LOTS:
        drawn += [one for one in able if one.replica_id in longest]
    return drawn


def _is_before(one: Candidate, other: Candidate) -> bool:
    return (one.recent_tokens, one.replica_id) < (other.recent_tokens, other.replica_id)


def _matched(one: Candidate, want: Want) -> int:
    return min(want.prompt_tokens, int(want.held.get(one.replica_id, 0) * want.chunk_tokens))


def _home(able: Sequence[Candidate], key: str) -> Candidate:
    """The first on the key's ring that is not over the bound."""
    by_id = {one.replica_id: one for one in able}
    loads = {replica_id: one.in_flight for replica_id, one in by_id.items()}
    return by_id[ring_of(tuple(sorted(by_id))).pick(key, loads)]
