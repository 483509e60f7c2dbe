"""The names of a prompt's beginnings: equal names mean equal prompts up to there, without anybody tokenizing them.

Gateway and runner compute the same chain from the same parsed request, so nothing travels beside it. What is named is
what the client wrote (tools, roles, contents, token ids), never what only steers the answer: neither the model's name
nor sampling. Knows nothing of templates or tokens; pure.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from struct import unpack
from typing import Any

import msgspec

from data_plane.wire.openai import ChatRequest, CompletionRequest, Message

CHUNK_CHARS = 256
"""Characters that one name stands for, on top of all before them."""
CHUNK_IDS = 64
"""The same for a prompt of token ids: about as many tokens."""
MOST_CHUNKS = 2048
CHARS_PER_TOKEN = 4.0
"""Until a runner has measured it. SmolLM2 has 4.4 on the tau-bench conversations, template included."""

_NO_MARKS = b"\0"
"""No msgpack array begins so: a chunk without marks is never taken for one with them."""

_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class Piece:
    """A part of a chat's canonical text: `mark` says whose it is and what it is, and counts no characters.

    Not to be changed; unfrozen because that takes a third of the time, and there is one for each message.

    `message` is its index; None for what stands before all messages. `is_content`: it is the message's text, which a
    template shows as it is. `is_system`: it belongs to a message that templates merge with the tools.
    """

    text: str
    mark: tuple[str, ...]
    message: int | None = None
    is_content: bool = False
    is_system: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """The names of one prompt's beginnings, each of `chunk` more of its `size` characters or token ids."""

    names: tuple[int, ...] = ()
    size: int = 0
    is_ids: bool = False

    @property
    def chunk(self) -> int:
        """Characters or token ids by which one beginning is longer than the one before."""
        return CHUNK_IDS if self.is_ids else CHUNK_CHARS

    def tokens(self, chars_per_token: float) -> int:
        """About how many tokens the prompt has; exact for token ids."""
        return self.size if self.is_ids else round(self.size / chars_per_token)

    def chunk_tokens(self, chars_per_token: float) -> float:
        """About how many tokens one name stands for."""
        return float(CHUNK_IDS) if self.is_ids else CHUNK_CHARS / chars_per_token


NO_CHAIN = Chain()


def chain_of(request: ChatRequest | CompletionRequest, tenant: str) -> Chain:
    """The chain of a request; of several prompts, the first one's."""
    if isinstance(request, ChatRequest):
        return chain_of_pieces(pieces_of(request), tenant, request.cache_salt)
    return chain_of_prompt(request.prompts[0], tenant, request.cache_salt)


def chain_of_prompt(prompt: str | list[int], tenant: str, cache_salt: str | None) -> Chain:
    """The chain of one prompt of a completion."""
    if isinstance(prompt, str):
        return Chain(_names(prompt, [], _seed("text", tenant, cache_salt)), len(prompt))
    raw = array("i", prompt[: CHUNK_IDS * MOST_CHUNKS]).tobytes()
    size = 4 * CHUNK_IDS
    digest, digests = _seed("ids", tenant, cache_salt), list[bytes]()
    for start in range(0, len(raw) - size + 1, size):
        digest = blake2b(digest + raw[start : start + size], digest_size=8).digest()
        digests.append(digest)
    return Chain(_numbers(digests), len(prompt), is_ids=True)


def chain_of_pieces(pieces: Sequence[Piece], tenant: str, cache_salt: str | None) -> Chain:
    """The chain of a chat, given as its canonical text."""
    marks: list[tuple[int, tuple[str, ...]]] = []
    size = 0
    for piece in pieces:
        marks.append((size, piece.mark))
        size += len(piece.text)
    text = "".join([piece.text for piece in pieces])
    return Chain(_names(text, marks, _seed("chat", tenant, cache_salt)), size)


def pieces_of(request: ChatRequest) -> list[Piece]:
    """A chat's canonical text: what a template may put in front, then each message's content and calls in order."""
    pieces: list[Piece] = []
    for name in ("chat_template", "chat_template_kwargs", "tools", "functions"):
        value = getattr(request, name)
        if value:
            pieces.append(Piece(_json(value), (name,)))
    for index, message in enumerate(request.messages):
        # templates write the newer name of the role as the older one
        role = "system" if message.role == "developer" else message.role
        is_system = role == "system"
        mark = (role, message.name or "", message.tool_call_id or "")
        if isinstance(message.content, list) and (others := [part for part in message.content if part.type != "text"]):
            # wherever it stands in the message, all of its text may look different for it
            mark = (*mark, _json(others))
        pieces.append(Piece(message.text, mark, index, True, is_system))
        for name, value in _extras(message):
            pieces.append(Piece(_json(value), (name,), index, False, is_system))
    return pieces


def _extras(message: Message) -> list[tuple[str, Any]]:
    """What a message holds beside its text."""
    extras: list[tuple[str, Any]] = []
    if message.tool_calls:
        extras.append(("tool_calls", message.tool_calls))
    if message.function_call:
        extras.append(("function_call", message.function_call))
    return extras


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


@lru_cache(maxsize=1024)
def _seed(kind: str, tenant: str, cache_salt: str | None) -> bytes:
    packed = _encode((kind, tenant.encode(errors="surrogatepass"), cache_salt or ""))
    return blake2b(packed, digest_size=8).digest()


def _names(text: str, marks: Sequence[tuple[int, tuple[str, ...]]], digest: bytes) -> tuple[int, ...]:
    """Each full chunk's digest is over the one before, the marks in it with their places, and its text.

    A mark at a chunk's end belongs to the next one: a beginning is the same whatever comes after it.
    """
    digests: list[bytes] = []
    most = min(len(text), CHUNK_CHARS * MOST_CHUNKS)
    # slices of bytes are cheaper than slices of text, where both are the same
    raw = text[:most].encode() if text.isascii() else None
    at, upcoming = 0, marks[0][0] if marks else most
    for end in range(CHUNK_CHARS, most + 1, CHUNK_CHARS):
        start, head = end - CHUNK_CHARS, _NO_MARKS
        if upcoming < end:
            first = at
            while at < len(marks) and marks[at][0] < end:
                at += 1
            upcoming = marks[at][0] if at < len(marks) else most
            head = _encode([(place - start, mark) for place, mark in marks[first:at]])
        body = raw[start:end] if raw is not None else text[start:end].encode(errors="surrogatepass")
        digest = blake2b(digest + head + body, digest_size=8).digest()
        digests.append(digest)
    return _numbers(digests)


def _numbers(digests: list[bytes]) -> tuple[int, ...]:
    return unpack(f">{len(digests)}Q", b"".join(digests))
