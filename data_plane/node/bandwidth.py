"""How fast this machine reads its memory: the bound of every start whose weights are cached there.

Knows nothing of artifacts.
"""

import time

SAMPLE_BYTES = 64 << 20
"""More than the caches of a processor keep, and read in a few hundredths of a second."""
TIMES = 3


def read_bytes_per_s(sample_bytes: int = SAMPLE_BYTES) -> float:
    """Bytes per second of one thread; 0.0 where there is no memory to try it with.

    What is timed is the C library's search for a byte that is not there, which waits for nothing but the memory.
    """
    try:
        sample = bytearray(b"\x01") * sample_bytes
    except MemoryError:
        return 0.0
    return max(_once(sample) for _ in range(TIMES))


def _once(sample: bytearray) -> float:
    began = time.perf_counter()
    sample.find(b"\x00")
    return len(sample) / max(time.perf_counter() - began, 1e-9)
