"""Text to token ids and back, from an artifact's tokenizer files. Knows nothing of messages, requests or engines.

What a user wrote never becomes a control token: where a text spells one out, that text is encoded as ordinary letters.
"""

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer as Backend

from data_plane.runner.token_bytes import TokenBytes


class TokenizerConfig(msgspec.Struct, frozen=True):
    """What tokenizer_config.json of an artifact says."""

    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    add_bos_token: bool | None = None
    chat_template: str | None = None
    eos_token_ids: list[int] = []


class TokenizerError(ValueError):
    """The artifact's tokenizer files cannot be used; the sentence says why."""


class Tokenizer:
    """Encodes and decodes. Safe to use from several threads."""

    def __init__(self, definition: bytes, config: TokenizerConfig) -> None:
        document = _document(definition)
        self.config = config
        self._definition = msgspec.json.encode(document).decode()
        self._backend = _backend(self._definition)
        self._lock = threading.Lock()
        self._literal: Backend | None = None
        added: list[dict[str, Any]] = [token for token in document.get("added_tokens") or [] if token.get("special")]
        self.special = {int(token["id"]): str(token["content"]) for token in added}
        texts = sorted({text for text in self.special.values() if text}, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._control_length = len(texts[0]) if texts else 0
        self._control_start = _ends_like_a_start_of(texts)
        self._bytes = TokenBytes(self._backend, document, frozenset(self.special))
        self.bos_id = self._id(config.bos_token)
        self.adds_bos = config.add_bos_token if config.add_bos_token is not None else self._adds_bos()

    @classmethod
    def open(cls, folder: Path) -> "Tokenizer":
        """From `tokenizer.json` and `tokenizer_config.json`; TokenizerError where they cannot be read."""
        try:
            config = msgspec.json.decode((folder / "tokenizer_config.json").read_bytes(), type=TokenizerConfig)
            return cls((folder / "tokenizer.json").read_bytes(), config)
        except (OSError, msgspec.DecodeError) as error:
            raise TokenizerError(
                f"The tokenizer of the artifact in {folder.name} cannot be read: {error}. Import the model again."
            ) from error

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """A user's text. `add_special_tokens` puts the BOS in front where the model wants one.

        Control tokens that the text spells out stay text unless `parse_special`.
        """
        literal = not parse_special and self._control is not None and self._control.search(text) is not None
        ids = self._encode_literally(text) if literal else self._backend.encode(text, add_special_tokens=False).ids
        if add_special_tokens and self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def protect(self, text: str, mark: str) -> tuple[str, dict[str, str]]:
        """`text` with placeholders for every control token it spells out, or starts to at its end, and their texts.

        `mark` must be unknown to whoever wrote the text, or they could write placeholders too.
        """
        if self._control is None or self._control_start is None:
            return text, {}
        hidden: dict[str, str] = {}

        def hide(match: re.Match[str]) -> str:
            name = f"\ue000{mark}{len(hidden)}\ue001"
            hidden[name] = match.group()
            return name

        text = self._control.sub(hide, text)
        return self._control_start.sub(hide, text, count=1), hidden

    def encode_rendered(self, text: str, hidden: dict[str, str]) -> list[int]:
        """A rendered chat template: its control tokens are real, what `hidden` stands for stays text.

        Without placeholders the text is encoded whole, so ordinary chats give what any other tool gives for them.
        """
        text, hidden = self._unhide_harmless(text, hidden)
        if not hidden:
            return self._backend.encode(text, add_special_tokens=False).ids
        ids: list[int] = []
        for piece in re.split("(" + "|".join(map(re.escape, hidden)) + ")", text):
            if piece in hidden:
                ids += self._encode_literally(hidden[piece])
            elif piece:
                ids += self._backend.encode(piece, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of a whole sequence."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to a text; nothing for an id that the vocabulary lacks."""
        return self._bytes.of(token_id)

    @property
    def vocab_size(self) -> int:
        """Ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def _unhide_harmless(self, text: str, hidden: dict[str, str]) -> tuple[str, dict[str, str]]:
        """Puts back the ends of texts that did not become a control token with what the template put after them."""
        left = dict(hidden)
        for name in reversed(hidden):
            end = hidden[name]
            follows = (piece[: self._control_length] for piece in text.split(name)[1:])
            if not any(self._begins_control(end, following) for following in follows):
                text = text.replace(name, end)
                del left[name]
        return text, left

    def _begins_control(self, end: str, following: str) -> bool:
        found = self._control.search(end + following) if self._control else None
        return found is not None and found.start() < len(end)

    def _encode_literally(self, text: str) -> list[int]:
        with self._lock:
            if self._literal is None:
                # A second copy, made the first time somebody spells out a control token: the switch is the copy's.
                self._literal = _backend(self._definition)
                self._literal.encode_special_tokens = True
        ids = self._literal.encode(text, add_special_tokens=False).ids
        if not any(token in self.special for token in ids):
            return ids
        # A vocabulary may hold the same text as an ordinary entry under the same id: then letter by letter.
        letters = (self._literal.encode(letter, add_special_tokens=False).ids for letter in text)
        return [token for part in letters for token in part if token not in self.special]

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self._backend.token_to_id(text)

    def _adds_bos(self) -> bool:
        return self.bos_id is not None and self._backend.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]


def _document(definition: bytes) -> dict[str, Any]:
    document = msgspec.json.decode(definition, type=dict[str, Any])
    for token in document.get("added_tokens") or []:
        if token.get("special"):
            # matched as written: else full-width letters in a user's text could be normalized into a control token
            token["normalized"] = False
    # both would cut or fill prompts silently
    document["truncation"] = document["padding"] = None
    return document


def _backend(definition: str) -> Backend:
    try:
        return Backend.from_str(definition)
    except Exception as error:  # the library raises bare Exception for every fault of a file
        raise TokenizerError(f"tokenizer.json is not usable: {error}. Import the model again.") from error


def _ends_like_a_start_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    """Matches, at the end of a text, what could become a control token together with what follows it."""
    starts = sorted({text[:size] for text in texts for size in range(1, len(text))}, key=len, reverse=True)
    return re.compile("(?:" + "|".join(map(re.escape, starts)) + r")\Z") if starts else None
