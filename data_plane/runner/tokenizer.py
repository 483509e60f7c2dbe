"""Text to token ids and back, from an artifact's tokenizer files. Knows nothing of messages, requests or engines.

What a user wrote never becomes a control token: where a text spells one out, that text is encoded as ordinary letters.
"""

import re
import threading
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import msgspec
from tokenizers import Encoding
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


class _Ends(Sequence[int]):
    """The places where an encoding's tokens end, each asked for alone: a list of all of them takes ten times as long as
    the few that a search looks at."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._length = len(encoding)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[at] for at in range(self._length)[index]]
        if not 0 <= index < self._length:
            raise IndexError(f"token {index} of {self._length}")
        found = self._encoding.token_to_chars(index)
        # None for a token without a text of its own, of which a backend that adds nothing makes none
        return 0 if found is None else found[1]


class Encoded:
    """Token ids, and the text that they were made of. Where in it each token ends is worked out when it is asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.ids: list[int] = []
        self._parts: list[tuple[Encoding | int, int]] = []

    def add(self, part: Encoding, place: int) -> None:
        """The tokens of the text that starts at `place`."""
        self.ids += part.ids
        self._parts.append((part, place))

    def add_at(self, ids: Sequence[int], end: int) -> None:
        """Tokens that all end at one place."""
        self.ids += ids
        self._parts.append((len(ids), end))

    def put_first(self, token_id: int) -> None:
        """A token that stands for no text, before all others."""
        self.ids.insert(0, token_id)
        self._parts.insert(0, (1, 0))

    def ends(self) -> Sequence[int]:
        """For each token the place after its last character; never smaller than the one before."""
        if len(self._parts) == 1:
            part, place = self._parts[0]
            if not isinstance(part, int) and place == 0:
                return _Ends(part)
        ends: list[int] = []
        for part, place in self._parts:
            if isinstance(part, int):
                ends += [place] * part
            else:
                ends += [place + end for _, end in part.offsets]
        return list(accumulate(ends, max))


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
        return self.encode_placed(text, add_special_tokens=add_special_tokens, parse_special=parse_special).ids

    def encode_placed(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> Encoded:
        """The same, with the tokens' places in `text`."""
        encoded = Encoded(text)
        literal = not parse_special and self._control is not None and self._control.search(text) is not None
        if literal:
            self._encode_literally(text, encoded, 0)
        else:
            encoded.add(self._backend.encode(text, add_special_tokens=False), 0)
        if add_special_tokens and self.adds_bos and self.bos_id is not None and encoded.ids[:1] != [self.bos_id]:
            encoded.put_first(self.bos_id)
        return encoded

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
        return self.encode_rendered_placed(text, hidden).ids

    def encode_rendered_placed(self, text: str, hidden: dict[str, str]) -> Encoded:
        """The same, with the tokens' places in the encoding's own text, where placeholders may have gone."""
        text, hidden = self._unhide_harmless(text, hidden)
        encoded = Encoded(text)
        if not hidden:
            encoded.add(self._backend.encode(text, add_special_tokens=False), 0)
            return encoded
        place = 0
        for piece in re.split("(" + "|".join(map(re.escape, hidden)) + ")", text):
            if piece in hidden:
                self._encode_literally(hidden[piece], encoded, place, len(piece))
            elif piece:
                encoded.add(self._backend.encode(piece, add_special_tokens=False), place)
            place += len(piece)
        return encoded

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

    def _encode_literally(self, text: str, encoded: Encoded, place: int, shown_length: int | None = None) -> None:
        """Adds `text`, of which the encoding's own text shows a placeholder of `shown_length`, if that is given."""
        with self._lock:
            if self._literal is None:
                # A second copy, made the first time somebody spells out a control token: the switch is the copy's.
                self._literal = _backend(self._definition)
                self._literal.encode_special_tokens = True
        whole = self._literal.encode(text, add_special_tokens=False)
        if not any(token in self.special for token in whole.ids):
            if shown_length is None:
                encoded.add(whole, place)
            else:
                encoded.add_at(whole.ids, place + shown_length)
            return
        # A vocabulary may hold the same text as an ordinary entry under the same id: then letter by letter.
        for at, letter in enumerate(text, 1):
            ids = self._literal.encode(letter, add_special_tokens=False).ids
            kept = [token for token in ids if token not in self.special]
            encoded.add_at(kept, place + (at if shown_length is None else shown_length))

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self._backend.token_to_id(text)

    def _adds_bos(self) -> bool:
        return self.bos_id is not None and self._backend.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]


def _document(definition: bytes) -> dict[str, Any]:
    """The definition with its model, which is nearly all of it, as it stands there: nobody here looks into it."""
    parts = msgspec.json.decode(definition, type=dict[str, msgspec.Raw])
    document: dict[str, Any] = {
        name: part if name == "model" else msgspec.json.decode(part) for name, part in parts.items()
    }
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
