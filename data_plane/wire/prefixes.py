"""What a runner tells gateways of its prefix cache and its load: GET /prefixes, in msgpack. No I/O.

Names are those of `prefix_chain`. A report is either everything (`full`) or what changed since the one asked for.
"""

from collections.abc import Collection, Sequence
from struct import pack, unpack

import msgspec

MOST_WAIT_MS = 30_000


class PrefixReport(msgspec.Struct, frozen=True):
    """`epoch` names this runner process, `seq` this state of it: send both back to hear of what comes after.

    `stored` and `evicted` are names, 8 bytes each, big-endian. `pending_tokens` of prompts are not computed yet;
    `kv_usage` is 0 to 1; rates are None until measured, as is `chars_per_token` of the prompts that came.
    """

    epoch: str
    seq: int
    full: bool
    stored: bytes = b""
    evicted: bytes = b""
    running: int = 0
    waiting: int = 0
    pending_tokens: int = 0
    kv_usage: float = 0.0
    slots: int = 0
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    chars_per_token: float | None = None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(PrefixReport)


def encode_report(report: PrefixReport) -> bytes:
    """The body of an answer."""
    return _ENCODER.encode(report)


def decode_report(body: bytes) -> PrefixReport:
    """The report in a body. msgspec.DecodeError where it is none."""
    report = _DECODER.decode(body)
    for name in ("stored", "evicted"):
        if len(getattr(report, name)) % 8:
            raise msgspec.ValidationError(f"'{name}' is no whole number of 8-byte names.")
    return report


def pack_names(names: Collection[int]) -> bytes:
    """Names as a report carries them."""
    return pack(f">{len(names)}Q", *names)


def unpack_names(packed: bytes) -> Sequence[int]:
    """The names in a report's field."""
    return unpack(f">{len(packed) // 8}Q", packed)
