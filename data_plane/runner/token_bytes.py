"""The bytes of each token, so that a stream of tokens becomes text without decoding anything twice.

Knows the three ways vocabularies write bytes: byte-level BPE, SentencePiece with byte fallback, and plain text.
"""

import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer as Backend

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Looks a token's bytes up, and remembers them."""

    def __init__(self, backend: Backend, document: dict[str, Any], special: frozenset[int]) -> None:
        self._backend = backend
        self._special = special
        kinds = set(_kinds(document.get("decoder")))
        self._byte_level = "ByteLevel" in kinds
        self._pieces = not self._byte_level and bool(kinds & {"ByteFallback", "Metaspace", "Replace"})
        self._known: dict[int, bytes] = {}

    def of(self, token_id: int) -> bytes:
        """The bytes that `token_id` adds; empty for an id that the vocabulary lacks."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._make(token_id)
        return found

    def _make(self, token_id: int) -> bytes:
        text = self._backend.id_to_token(token_id) if token_id >= 0 else None
        if text is None:
            return b""
        if self._byte_level:
            if all(letter in _LETTER_BYTES for letter in text):
                return bytes(_LETTER_BYTES[letter] for letter in text)
            return text.encode()
        if token_id in self._special:
            return text.encode()
        if self._pieces:
            byte = _BYTE.fullmatch(text)
            return bytes([int(byte.group(1), 16)]) if byte else text.replace("▁", " ").encode()
        return self._backend.decode([token_id], skip_special_tokens=False).encode()


def _kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder is None:
        return
    yield decoder.get("type", "")
    for part in decoder.get("decoders") or []:
        yield from _kinds(part)


def _letter_bytes() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2's): printable Latin-1 stands for itself, the other bytes for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_LETTER_BYTES = _letter_bytes()
