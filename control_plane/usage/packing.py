"""Rows of usage as the database keeps them: field by field, times by their differences, compressed; about 15 bytes a
request. Pure."""

import zlib
from collections.abc import Sequence
from itertools import accumulate, pairwise

import msgspec

from data_plane.wire.usage import UsageRow

LEVEL = 1
MOST_BYTES = 64 << 20
"""Unpacked. No block comes near it: what is larger is not of ours."""
_COLUMNS = msgspec.json.Decoder(tuple[list[int], ...])


def pack(rows: Sequence[UsageRow]) -> bytes:
    """The rows, by their time of arrival."""
    told = sorted(msgspec.structs.astuple(row) for row in rows)
    times, *others = zip(*told, strict=True) if told else ((),)
    gaps = [times[0], *(later - before for before, later in pairwise(times))] if times else []
    columns = (gaps, *([int(value) for value in column] for column in others))
    return zlib.compress(msgspec.json.encode(columns), LEVEL)


def unpack(packed: bytes) -> list[UsageRow]:
    """The rows again. Raises ValueError for bytes that `pack` did not make."""
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"This is no block of usage: {error}.") from error
    if not unpacker.eof:
        raise ValueError(f"A block of usage is cut off, or has more than {MOST_BYTES} bytes.")
    gaps, *others = _COLUMNS.decode(raw)
    rows = zip(accumulate(gaps), *others, strict=True)
    return [UsageRow(at, ending, bool(cold), *rest) for at, ending, cold, *rest in rows]
