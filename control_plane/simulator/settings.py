"""The settings file of `ebb simulate`: what the simulated replicas are like. TOML; Ebb brings one."""

from pathlib import Path

import msgspec

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.files import read_settings_file


class ReplicaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates of one replica. See replica.toml beside this file for what each is."""

    prefill_tokens_per_s: float
    step_s: float
    step_tokens: int
    batch: int
    report_every_s: float = 0.1

    @property
    def full_step_s(self) -> float:
        """Seconds of a step with all its tokens."""
        return self.step_tokens / self.prefill_tokens_per_s

    @property
    def token_s(self) -> float:
        """Seconds that each token adds to a step."""
        return (self.full_step_s - self.step_s) / self.step_tokens


def read_settings(path: Path | None) -> ReplicaSettings:
    """The settings in a file, or those that Ebb brings. Raises SimulationError where they cannot be used."""
    name, settings = read_settings_file(path, "replica.toml", ReplicaSettings, _HOW)
    if not (settings.prefill_tokens_per_s > 0 and settings.step_s > 0 and settings.report_every_s > 0):
        raise SimulationError(f"The settings {name} have a rate or time that is not positive. {_HOW}")
    if settings.batch < 1 or settings.step_tokens <= settings.batch:
        raise SimulationError(
            f"The settings {name} have a batch of {settings.batch} and steps of {settings.step_tokens} tokens: a step "
            "must have a token for each request of a batch of at least one, and some for a prompt."
        )
    if settings.token_s < 0:
        raise SimulationError(
            f"The settings {name} say that a step takes at least {settings.step_s} s, and that {settings.step_tokens} "
            f"prompt tokens take {settings.full_step_s:.3f} s: raise step_tokens or lower step_s."
        )
    return settings


_HOW = "It needs prefill_tokens_per_s, step_s, step_tokens and batch, and may have report_every_s."
