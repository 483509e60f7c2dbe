"""Finds blocks of the KV cache whose content a new request would compute again. Knows tokens and blocks, no requests.

A block's name is a hash over the block before it and its own tokens, so equal names mean equal texts from the start
on. The first of a chain is salted by the tenant under a secret of this process: nobody finds, or finds out about,
another's text. Only full blocks whose tokens were really computed are entered, of prompts and answers alike.
"""

import hmac
from array import array
from collections.abc import Sequence
from hashlib import blake2b

from data_plane.engine.blocks import BlockPool

DIGEST_BYTES = 16
"""Two equal names by chance: 2^-64 after 2^32 blocks. Looking for them on purpose would need the secret."""


class Chain:
    """The names of the full blocks of one growing list of tokens, each made when it is first asked for."""

    __slots__ = ("_block_size", "_names", "_salt", "num_entered", "tokens")

    def __init__(self, tokens: list[int], block_size: int, salt: bytes) -> None:
        self.tokens = tokens
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
        self.num_queried = 0
        self.num_hit = 0
        pool.on_reuse = self._forget

    def chain(self, prompt: Sequence[int], tenant: str, salt: str = "") -> Chain:
        """The chain of a request that begins with `prompt`. `salt` parts a tenant's own requests from each other."""
        # a name from a header may hold what is no text; whatever it is, it must have its own salt
        message = f"{len(tenant)}:{tenant}{salt}".encode(errors="surrogatepass")
        return Chain(list(prompt), self._pool.block_size, hmac.digest(self._secret, message, "sha256"))

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

    def enter(self, chain: Chain, blocks: Sequence[int], num_computed: int) -> None:
        """From now on the full ones among `blocks` can be found; their first `num_computed` tokens are computed."""
        full = num_computed // self._pool.block_size
        if full <= chain.num_entered or not self._is_enabled:
            return
        for at in range(chain.num_entered, full):
            name = chain.name(at)
            # another request may have computed the same at the same time: one copy is enough
            if name not in self._blocks:
                self._blocks[name] = blocks[at]
                self._names[blocks[at]] = name
                self._pool.keep(blocks[at])
        chain.num_entered = full

    def withdraw(self, blocks: Sequence[int]) -> None:
        """What these blocks hold is not to be trusted."""
        for block in blocks:
            if block in self._names:
                self._forget(block)
                self._pool.drop(block)

    def _forget(self, block: int) -> None:
        del self._blocks[self._names.pop(block)]

    def check(self) -> None:
        """Names and blocks go together one by one, and the pool keeps just these; AssertionError where not."""
        assert {name: block for block, name in self._names.items()} == self._blocks, "names and blocks do not agree"
        kept = self._pool.kept
        assert kept == set(self._names), f"{len(self._names)} blocks have names and {len(kept)} are kept"
