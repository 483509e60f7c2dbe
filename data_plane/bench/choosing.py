"""`python -m data_plane.bench.choosing`: how long a gateway takes to match a long prompt and to choose a replica.

Every replica holds conversations of `--chunks` chunks that begin with the same 200, and reports some work; each request
goes on with one of the conversations. Times are of this process alone, in microseconds.
"""

import argparse
import random
import resource
import sys
import time

from data_plane.router.choose import Candidate, Want, choose
from data_plane.router.prefixes import PrefixIndex

_SHARED = 200
_CHUNK_TOKENS = 64.0


def main() -> int:
    """Prints p50 and p99 of matching, choosing and both."""
    parser = argparse.ArgumentParser(prog="python -m data_plane.bench.choosing", description=__doc__)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--known", type=int, default=100_000, help="chunks that each replica holds")
    parser.add_argument("--chunks", type=int, default=2_048, help="of one prompt")
    parser.add_argument("--requests", type=int, default=5_000)
    asked = parser.parse_args()
    draw = random.Random(1)  # noqa: S311 # nothing here is a secret
    ids = [f"replica-{number:02}" for number in range(asked.replicas)]
    index, chains = _fill(ids, asked.known, asked.chunks, draw)
    candidates = [Candidate(one, 32, 3, 3, 0, draw.randrange(9_000), 0.3, 8_000.0, 300.0) for one in ids]
    matching: list[float] = []
    choosing: list[float] = []
    for _ in range(asked.requests):
        old = draw.choice(chains)
        chain = [*old[: draw.randrange(len(old))], *(draw.getrandbits(64) for _ in range(8))]
        began = time.perf_counter()
        held = index.match(chain, 0.0)
        matched = time.perf_counter()
        choose(candidates, Want(int(len(chain) * _CHUNK_TOKENS), None, None, held, _CHUNK_TOKENS))
        matching.append(matched - began)
        choosing.append(time.perf_counter() - matched)
    both = [match + choice for match, choice in zip(matching, choosing, strict=True)]
    for name, times in (("match", matching), ("choose", choosing), ("both", both)):
        times.sort()
        p50, p99 = (1e6 * times[int(len(times) * share)] for share in (0.5, 0.99))
        print(f"{name:7} p50 {p50:5.1f} us   p99 {p99:5.1f} us")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{asked.replicas} replicas, {asked.known:,} chunks each, prompts of {asked.chunks:,}; {memory:,.0f} MiB")
    return 0


def _fill(ids: list[str], known: int, chunks: int, draw: random.Random) -> tuple[PrefixIndex, list[list[int]]]:
    index = PrefixIndex()
    shared = [draw.getrandbits(64) for _ in range(min(_SHARED, chunks - 1))]
    chains: list[list[int]] = []
    for replica_id in ids:
        while (held := index.known(replica_id)) < known:
            chain = [*shared, *(draw.getrandbits(64) for _ in range(chunks - len(shared)))]
            index.store(replica_id, chain[: known - held + (len(shared) if held else 0)])
            if len(chains) < 1_000:
                chains.append(chain)
    return index, chains


if __name__ == "__main__":
    sys.exit(main())
