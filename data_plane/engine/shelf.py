"""Blocks that lie outside of the KV cache, to be copied in when a request begins like them; and which are worth that.

Names are those of `prefix_cache`, so what is found there is found by the same rules. Knows nothing of where they lie.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

HALF_LIFE = 256
"""Requests after which a use counts half."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One block: its name, the name of the one before it (empty: it is the first), its labels, how much it is used."""

    name: bytes
    before: bytes
    labels: tuple[int, ...]
    uses: float


class Shelf(Protocol):
    """Where such blocks lie. With each of them lie all that come before it. They are named under `secret`."""

    @property
    def secret(self) -> bytes: ...

    @property
    def kept(self) -> Sequence[Kept]: ...

    def read(self, name: bytes) -> bytes | None:
        """What a block holds; None where it is not to be trusted, nor then is any other."""
        ...


@runtime_checkable
class CopyingExecutor(Protocol):
    """One whose blocks can be copied out of the KV cache and in again, bit by bit."""

    @property
    def block_bytes(self) -> int:
        """Of one block over all layers; 0: it cannot copy after all."""
        ...

    @property
    def kv_form(self) -> str:
        """All that the values of equal tokens depend on besides the artifact. Equal: they are the same bits."""
        ...

    def copy_out(self, block: int) -> bytes: ...

    def copy_in(self, block: int, content: bytes) -> None: ...


class Uses:
    """How much each block is used: 1 for each request that it was good for, halved after HALF_LIFE requests."""

    def __init__(self) -> None:
        self._of: dict[int, float] = {}
        self._requests = 0

    def count_request(self) -> None:
        """One more request found what there is for it."""
        self._requests += 1
        if self._requests % HALF_LIFE == 0:
            self._of = {block: uses / 2 for block, uses in self._of.items()}

    def add(self, block: int, uses: float = 1.0) -> None:
        """It was of use, and again."""
        self._of[block] = self._of.get(block, 0.0) + uses

    def of(self, block: int) -> float:
        """0 for one that is not known."""
        return self._of.get(block, 0.0)

    def drop(self, block: int) -> None:
        """It holds something else from now on."""
        self._of.pop(block, None)


def hottest(kept: Iterable[Kept], most: int) -> list[Kept]:
    """At most `most` of them, none without all that come before it, each after these; those used most, and among equals
    those that come last in `kept`."""
    known: Mapping[bytes, Kept] = {one.name: one for one in kept}
    places = {name: at for at, name in enumerate(known)}
    chosen: dict[bytes, Kept] = {}
    for one in sorted(known.values(), key=lambda one: (-one.uses, -places[one.name])):
        line: list[Kept] = []
        at: Kept | None = one
        while at is not None and at.name not in chosen:
            line.append(at)
            at = known.get(at.before)
        if len(chosen) + len(line) <= most:
            chosen |= {each.name: each for each in reversed(line)}
    return list(chosen.values())
