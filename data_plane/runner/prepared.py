"""What was opened before it was known which model is served: tokenizers and templates, found by what is in their files,
so that whichever artifact of a model is started finds them; and artifacts, found by their folders. Knows nothing of who
guesses which will be needed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_plane.execution import Opened, open_ahead
from data_plane.runner.chat_template import ChatTemplate
from data_plane.runner.loading import template_of
from data_plane.runner.tokenizer import Tokenizer, TokenizerError
from data_plane.weights.errors import ArtifactError

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
        self._artifacts: dict[Path, Opened] = {}

    def only(self, folders: Sequence[Path]) -> None:
        """Opens those of these artifacts, and lets others go; what is open already stays so. One that cannot be opened
        is left to the start that needs it, which says why."""
        texts, artifacts = self._texts, self._artifacts
        self._texts, self._artifacts = {}, {}
        for folder in folders:
            self._open(folder, texts, artifacts)

    def _open(self, folder: Path, texts: dict[str, Text], artifacts: dict[Path, Opened]) -> None:
        """`texts` and `artifacts`: those that are open."""
        try:
            key = _content(folder)
            if (text := texts.get(key)) is None:
                tokenizer = Tokenizer.open(folder)
                text = Text(tokenizer, template_of(tokenizer))
            self._texts[key] = text
            if (opened := artifacts.get(folder) or open_ahead(folder)) is not None:
                self._artifacts[folder] = opened
        except (OSError, TokenizerError, ArtifactError):
            return

    def take_artifact(self, folder: Path) -> Opened | None:
        """The artifact, if it was opened; the others are let go."""
        found = self._artifacts.pop(folder, None)
        self._artifacts = {}
        return found

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
