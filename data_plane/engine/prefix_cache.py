"""Finds blocks of the KV cache whose content a new request would compute again. Knows tokens and blocks, no requests.

A block's name is a hash over the block before it and its own tokens, so equal names mean equal texts from the start
on. The first of a chain is salted by the tenant under a secret of this process: nobody finds, or finds out about,
another's text. Only full blocks whose tokens were really computed are entered, of prompts and answers alike.

What is held is closed towards the beginning: with a block go all that come after it, which nobody could find any more.
A request may bring labels (opaque ints) for its blocks. A label is held while some block that has it is, and `changed`
says which ones have come and gone.
"""

import hmac
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from data_plane.engine.blocks import BlockPool

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
        self._secret = secret
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
        self.num_queried = 0
        self.num_hit = 0
        pool.on_reuse = self._forget

    def chain(self, prompt: Sequence[int], tenant: str, salt: str = "", labels: Labels = _NO_LABELS) -> Chain:
        """The chain of a request that begins with `prompt`. `salt` parts a tenant's own requests from each other."""
        # a name from a header may hold what is no text; whatever it is, it must have its own salt
        message = f"{len(tenant)}:{tenant}{salt}".encode(errors="surrogatepass")
        return Chain(list(prompt), self._pool.block_size, hmac.digest(self._secret, message, "sha256"), labels)

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

    def _label(self, block: int, labels: tuple[int, ...] | None) -> None:
        if labels is None:
            return
        known = self._labels.get(block, ())
        new = [label for label in labels if label not in known]
        if not new:
            return
        self._labels[block] = (*known, *new)
        for label in new:
            holders = self._holders.get(label, 0)
            self._holders[label] = holders + 1
            if not holders:
                self._changed[label] = True

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
        for label in self._labels.pop(block, ()):
            holders = self._holders.pop(label) - 1
            if holders:
                self._holders[label] = holders
            else:
                self._changed[label] = False
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
        assert holders == self._holders, f"labels by their blocks {holders}, by the books {self._holders}"

    @property
    def held(self) -> set[int]:
        """All labels that are held."""
        return set(self._holders)
