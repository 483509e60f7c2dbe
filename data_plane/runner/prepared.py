"""Tokenizers and templates that were opened before it was known which model is served. Found by what is in their files,
so that whichever artifact of a model is started finds them. Knows nothing of who guesses which will be needed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from data_plane.runner.chat_template import ChatTemplate
from data_plane.runner.loading import template_of
from data_plane.runner.tokenizer import Tokenizer, TokenizerError

FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Text:
    """What turns messages into tokens and back."""

    tokenizer: Tokenizer
    template: ChatTemplate | None


class Prepared:
    """Holds a few of them."""

    def __init__(self) -> None:
        self._texts: dict[str, Text] = {}

    def open(self, folder: Path) -> None:
        """Opens an artifact's. One that cannot be opened is left to the start that needs it, which says why."""
        try:
            key = _content(folder)
            if key not in self._texts:
                tokenizer = Tokenizer.open(folder)
                self._texts[key] = Text(tokenizer, template_of(tokenizer))
        except (OSError, TokenizerError):
            return

    def take(self, folder: Path) -> Text | None:
        """The artifact's, if it was prepared; the others are let go."""
        try:
            found = self._texts.get(_content(folder)) if self._texts else None
        except OSError:
            found = None  # the start finds the same, and tells it
        self._texts = {}
        return found


def _content(folder: Path) -> str:
    found = hashlib.sha256()
    for name in FILES:
        content = (folder / name).read_bytes()
        found.update(b"%d:" % len(content))
        found.update(content)
    return found.hexdigest()
