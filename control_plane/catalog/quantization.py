"""The words for how weights are stored, which devices run them, and which artifact `auto` means. Pure; knows nothing of
rows, jobs or nodes.

People write bf16, int8, int4, fp8 and auto. Artifacts, and the process that makes them, say "none" for bf16: weights as
they came. `stored_name` and `word` are the only two places where one becomes the other.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

DeviceKind = Literal["cpu", "cuda"]

AUTO = "auto"
BF16 = "bf16"
PLAIN = "none"
_STORED = {BF16: PLAIN, "int8": "int8", "int4": "int4", "fp8": "fp8"}
_WORDS = {stored: word for word, stored in _STORED.items()}
WORDS = (AUTO, *_STORED)
RUNS_ON: Mapping[str, tuple[DeviceKind, ...]] = {
    PLAIN: ("cpu", "cuda"),
    "int8": ("cpu",),
    "int4": ("cpu",),
    "fp8": ("cuda",),
}
"""By stored name. The tiles of int8 and int4 are laid out for CPUs, and only GPUs multiply fp8."""
MOST_PERPLEXITY_RATIO: Mapping[str, float] = {"int8": 1.02, "int4": 1.06, "fp8": 1.02}
"""`auto` passes over an artifact that is worse: it exists because somebody forced it, and is theirs to name."""
SCORE = "score"
"""Of an artifact's measured speeds the one to compare by: their weighted mean, tokens per second."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One artifact, as far as choosing goes."""

    quantization: str
    digest: str
    quality: Mapping[str, float] = field(default_factory=dict[str, float])
    speed: Mapping[str, float] = field(default_factory=dict[str, float])


def is_word(text: str) -> bool:
    """Whether people may write it."""
    return text in WORDS


def unknown(text: str) -> str:
    """The sentence about a word that is none."""
    shown = "".join(c if c.isprintable() else "?" for c in text)[:40]
    return f"'{shown}' is no quantization. Choose one of {', '.join(WORDS[1:])}, or auto."


def stored_name(word: str) -> str:
    """`none` for `bf16`; the others, auto too, are the same. ValueError for a word that is none."""
    if not is_word(word):
        raise ValueError(unknown(word))
    return _STORED.get(word, word)


def word(stored: str) -> str:
    """`bf16` for `none`; what a later version may store is told as it is."""
    return _WORDS.get(stored, stored)


def words(stored: Iterable[str]) -> str:
    """Several, for a sentence or a cell: `bf16, int8`."""
    order = list(_WORDS)
    return ", ".join(word(each) for each in sorted(stored, key=lambda s: (order.index(s) if s in order else 99, s)))


def choose(candidates: Sequence[Candidate], kinds: Sequence[DeviceKind]) -> Candidate | None:
    """What `auto` means on the first of `kinds` that has a candidate: the fastest that was measured and is good enough,
    else the plain one, else whichever there is. None where no candidate runs on any of them."""
    for kind in kinds:
        able = [each for each in candidates if kind in RUNS_ON.get(each.quantization, ())]
        good = [each for each in able if _is_good(each)]
        if chosen := _fastest(good) or _first(good) or _first(able):
            return chosen
    return None


def _is_good(candidate: Candidate) -> bool:
    most = MOST_PERPLEXITY_RATIO.get(candidate.quantization, math.inf)
    return candidate.quality.get("perplexity_ratio", 1.0) <= most


def _fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    scores = {each: each.speed.get(SCORE, 0.0) for each in candidates}
    measured = [each for each in candidates if 0 < scores[each] < math.inf]
    return max(measured, key=lambda each: (scores[each], each.quantization), default=None)


def _first(candidates: Sequence[Candidate]) -> Candidate | None:
    plain = [each for each in candidates if each.quantization == PLAIN]
    return next(iter([*plain, *candidates]), None)
