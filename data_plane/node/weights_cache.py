"""From an artifact's digest to its folder on this machine. Knows nothing of what is inside."""

from pathlib import Path

from data_plane.node import quarantine
from data_plane.node.integrity import remedy
from data_plane.wire.names import is_digest


class ArtifactMissing(Exception):
    """The artifact cannot be had here; the message is for people and says what to do."""


def resolve(artifacts: Path, digest: str, model: str) -> Path:
    """The folder of an artifact. Raises ArtifactMissing where the digest is malformed or the folder not there."""
    if not is_digest(digest):
        raise ArtifactMissing(
            f"The model '{model}' names the artifact {digest[:80]!r}, which is not 'sha256:' and 64 hexadecimal digits."
            f" Import the model again with `ebb models add`."
        )
    folder = artifacts / digest.replace(":", "-")
    if not (folder / "manifest.json").is_file():
        aside = quarantine.place(folder)
        if aside.is_dir():
            raise ArtifactMissing(
                f"The weights of the model '{model}' ({digest[:19]}…) were corrupt on this machine and were put aside"
                f" (artifacts/{aside.name}). {remedy(model)}"
            )
        raise ArtifactMissing(
            f"The weights of the model '{model}' ({digest[:19]}…) are not on this machine."
            f" Remove the model with `ebb models rm {model}` and import it again with `ebb models add {model} SOURCE`."
        )
    return folder
