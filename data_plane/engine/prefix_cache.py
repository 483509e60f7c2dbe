"""Finds blocks of the KV cache whose content a new request would compute again. Knows tokens and blocks, no requests.

A block's name is a hash over the block before it and its own tokens, so equal names mean equal texts from the start
on. The first of a chain is salted by the tenant under a secret of this process: nobody finds, or finds out about,
another's text. Only full blocks whose tokens were really computed are entered, of prompts and answers alike.

What is held is closed towards the beginning: with a block go all that come after it, which nobody could find any more.
A request may bring labels (opaque ints) for its blocks. A label is held while some block that has it is, and `changed`
says which ones have come and gone.

Blocks may also lie on a shelf, out of the pool: they are found once `bring_back` has loaded them for a request.
"""

import hmac
from array import array
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

from data_plane.engine.blocks import BlockPool
from data_plane.engine.shelf import Kept, Uses, hottest

DIGEST_BYTES = 16
"""Two equal names by chance: 2^-64 after 2^32 blocks. Looking for them on purpose would need the secret."""

Labels = Mapping[int, tuple[int, ...]]
"""By the number of a block in its chain: what to call it outside."""
_NO_LABELS: Labels = {}


class Chain:
    """The names of the full blocks of one growing list of tokens, each made when it is first asked for."""

    __slots__ = ("_block_size", "_names", "_salt", "labels", "num_entered", "tokens")

    def __init__(self, tokens: list[int], block_size: int, salt: bytes, labels: Labels = _NO_LABELS) -> None:
        self.tokens = tokens
        self.labels = labels
        self.num_entered = 0
        """Blocks that are in the cache already, or were found there."""
        self._block_size = block_size
        self._salt = salt
        self._names: list[bytes] = []

    def name(self, at: int) -> bytes:
        """The name of block `at`, all of whose tokens must be known."""
        names, size = self._names, self._block_size
        while len(names) <= at:
            start = len(names) * size
            hashed = blake2b(names[-1] if names else self._salt, digest_size=DIGEST_BYTES)
            hashed.update(array("q", self.tokens[start : start + size]).tobytes())
            names.append(hashed.digest())
        return names[at]


class PrefixCache:
    """Names to blocks of `pool`, whose blocks it keeps until they are handed out for something else.

    `num_queried` and `num_hit` count the prompt tokens that were looked up and found.
    """

    def __init__(self, pool: BlockPool, secret: bytes, *, is_enabled: bool = True) -> None:
        self._pool = pool
        self.secret = secret
        self._is_enabled = is_enabled
        self._blocks: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._before: dict[int, bytes] = {}
        """By block: the name of the one before it in its chain; empty for the first."""
        self._after: dict[bytes, list[int]] = {}
        """By name: the blocks that come after it, each one of another text."""
        self._labels: dict[int, tuple[int, ...]] = {}
        self._holders: dict[int, int] = {}
        """By label: how many blocks have it."""
        self._changed: dict[int, bool] = {}
        self._uses = Uses()
        self._shelf: dict[bytes, Kept] = {}
        self.num_queried = 0
        self.num_hit = 0
        pool.on_reuse = self._forget

    def chain(self, prompt: Sequence[int], tenant: str, salt: str = "", labels: Labels = _NO_LABELS) -> Chain:
        """The chain of a request that begins with `prompt`. `salt` parts a tenant's own requests from each other."""
        # a name from a header may hold what is no text; whatever it is, it must have its own salt
        message = f"{len(tenant)}:{tenant}{salt}".encode(errors="surrogatepass")
        return Chain(list(prompt), self._pool.block_size, hmac.digest(self.secret, message, "sha256"), labels)

    def match(self, chain: Chain) -> list[int]:
        """The blocks that hold the beginning of the chain's tokens; never the last token, whose logits are wanted."""
        found: list[int] = []
        if self._is_enabled:
            for at in range((len(chain.tokens) - 1) // self._pool.block_size):
                block = self._blocks.get(chain.name(at))
                if block is None:
                    break
                found.append(block)
        return found

    def adopt(self, chain: Chain, blocks: Sequence[int]) -> None:
        """The request of `chain` goes on from these, which `match` found: they get the labels that it brings too."""
        chain.num_entered = len(blocks)
        self._uses.count_request()
        for block in blocks:
            self._uses.add(block)
        if chain.labels:
            for at, block in enumerate(blocks):
                self._label(block, chain.labels.get(at))

    def enter(self, chain: Chain, blocks: Sequence[int], num_computed: int) -> None:
        """From now on the full ones among `blocks` can be found; their first `num_computed` tokens are computed."""
        full = num_computed // self._pool.block_size
        if full <= chain.num_entered or not self._is_enabled:
            return
        for at in range(chain.num_entered, full):
            name = chain.name(at)
            before = chain.name(at - 1) if at else b""
            if before and before not in self._blocks:
                break  # it was withdrawn meanwhile, and nobody would find what comes after it
            # another request may have computed the same at the same time: one copy is enough
            if name not in self._blocks:
                self._put(blocks[at], name, before)
            self._uses.add(self._blocks[name])
            if chain.labels:
                self._label(self._blocks[name], chain.labels.get(at))
        chain.num_entered = full

    def take_changed(self) -> dict[int, bool]:
        """Labels that came (True) or went since this was last asked."""
        changed, self._changed = self._changed, {}
        return changed

    def _put(self, block: int, name: bytes, before: bytes) -> None:
        self._blocks[name] = block
        self._names[block] = name
        self._before[block] = before
        self._after.setdefault(before, []).append(block)
        self._pool.keep(block)
        if name in self._shelf:
            self._uses.add(block, self._shelf[name].uses)

    def _label(self, block: int, labels: tuple[int, ...] | None) -> None:
        if labels is None:
            return
        known = self._labels.get(block, ())
        new = [label for label in labels if label not in known]
        if not new:
            return
        self._labels[block] = (*known, *new)
        self._hold(new)

    def _hold(self, labels: Sequence[int]) -> None:
        for label in labels:
            holders = self._holders.get(label, 0)
            self._holders[label] = holders + 1
            if not holders:
                self._changed[label] = True

    def _let_go(self, labels: Sequence[int]) -> None:
        for label in labels:
            holders = self._holders.pop(label) - 1
            if holders:
                self._holders[label] = holders
            else:
                self._changed[label] = False

    def shelve(self, kept: Sequence[Kept]) -> None:
        """From now on these are what lies on the shelf. Their labels are held: whoever asks for them gets them."""
        if not self._is_enabled:
            return
        before, self._shelf = self._shelf, {one.name: one for one in kept}
        for one in self._shelf.values():
            self._hold(one.labels)
        for one in before.values():
            self._let_go(one.labels)

    @property
    def has_shelf(self) -> bool:
        """Whether anything lies there."""
        return bool(self._shelf)

    def bring_back(self, chain: Chain, load: Callable[[Kept, int], bool]) -> int:
        """Loads what the shelf has of the chain, beyond what `match` finds, into free blocks; how many it were.

        Not while a batch runs: a block that has just become free may still be written to. `load` copies one into a
        block, and says whether it could.
        """
        held = self.match(chain)
        found = len(held)
        self._pool.share(held)
        for at in range(found, (len(chain.tokens) - 1) // self._pool.block_size):
            kept = self._shelf.get(chain.name(at))
            if kept is None or not self._pool.num_free:
                break
            held += self._pool.allocate(1)
            if not load(kept, held[-1]):
                break
            self._put(held[-1], kept.name, kept.before)
            self._label(held[-1], kept.labels)
        self._pool.free(held)
        return sum(block in self._names for block in held) - found

    def hottest(self, most: int) -> list[tuple[Kept, int | None]]:
        """What is worth most to keep, in the pool or on the shelf: at most so many, and the block where one is in the
        pool. See `shelf.hottest`."""
        known = dict(self._shelf)
        for name, block in self._blocks.items():
            known.pop(name, None)
            known[name] = Kept(name, self._before[block], self._labels.get(block, ()), self._uses.of(block))
        return [(one, self._blocks.get(one.name)) for one in hottest(known.values(), most)]

    def withdraw(self, blocks: Sequence[int]) -> None:
        """What these blocks hold is not to be trusted."""
        for block in blocks:
            if block in self._names:
                self._forget(block)
                self._pool.drop(block)

    def _forget(self, block: int) -> None:
        """Takes `block` out, and all that come after it, which the pool need not keep any longer."""
        after = self._remove(block)
        while after:
            block = after.pop()
            after += self._remove(block)
            self._pool.drop(block)

    def _remove(self, block: int) -> list[int]:
        """Takes one block out; those that come after it."""
        name, before = self._names.pop(block), self._before.pop(block)
        del self._blocks[name]
        beside = self._after.get(before)
        # where it is missing, the one before has just been taken out
        if beside is not None:
            beside.remove(block)
            if not beside:
                del self._after[before]
        self._uses.drop(block)
        self._let_go(self._labels.pop(block, ()))
        return self._after.pop(name, [])

    def check(self) -> None:
        """Names and blocks go together one by one, and the pool keeps just these; AssertionError where not."""
        assert {name: block for block, name in self._names.items()} == self._blocks, "names and blocks do not agree"
        kept = self._pool.kept
        assert kept == set(self._names), f"{len(self._names)} blocks have names and {len(kept)} are kept"
        after = {(before, block) for before, blocks in self._after.items() for block in blocks}
        assert after == {(before, block) for block, before in self._before.items()}, "chains do not agree"
        assert self._before.keys() == self._names.keys(), "a block is in a chain and has no name"
        lost = [before for before in self._after if before and before not in self._blocks]
        assert not lost, f"{len(lost)} blocks come after one that nobody can find"
        holders: dict[int, int] = {}
        for block, labels in self._labels.items():
            assert block in self._names and len(set(labels)) == len(labels), f"block {block} is labelled {labels}"
            for label in labels:
                holders[label] = holders.get(label, 0) + 1
        for one in self._shelf.values():
            for label in one.labels:
                holders[label] = holders.get(label, 0) + 1
        assert holders == self._holders, f"labels by their blocks {holders}, by the books {self._holders}"

    @property
    def held(self) -> set[int]:
        """All labels that are held."""
        return set(self._holders)
