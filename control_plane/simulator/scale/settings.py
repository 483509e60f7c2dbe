"""The settings file of `ebb simulate scale`: the fleet that is assumed. TOML; Ebb brings one."""

from pathlib import Path

import msgspec

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.files import read_settings_file


class FleetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times, sizes and prices. See scale.toml, one folder up, for what each is."""

    start_s: float
    memory_gb: float
    concurrency: int
    max_replicas: int
    node_devices: int
    device_gb: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    step_s: float
    step_tokens: int
    slo_wait_s: float
    slo_ttft_s: float
    slo_itl_s: float
    worth: float
    servegen_requests: int

    def busy_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds that a request of these lengths takes."""
        return prompt_tokens / self.prefill_tokens_per_s + output_tokens / self.decode_tokens_per_s

    @property
    def token_s(self) -> float:
        """Seconds that each token adds to a step: a full one is as fast as prompts are read."""
        return 1.0 / self.prefill_tokens_per_s - self.step_s / self.step_tokens

    def decode_per_s(self, rows: int) -> float:
        """Tokens a second that a replica writes with so many rows and no prompt."""
        return rows / (self.step_s + rows * self.token_s)


def read_settings(path: Path | None) -> FleetSettings:
    """The settings in a file, or those that Ebb brings. Raises SimulationError where they cannot be used."""
    name, settings = read_settings_file(path, "scale.toml", FleetSettings, _HOW)
    wrong = [field for field, value in msgspec.structs.asdict(settings).items() if not 0 < value < float("inf")]
    if wrong:
        raise SimulationError(f"The settings {name} have a value that is not positive for {', '.join(wrong)}.")
    if settings.token_s <= 0 or settings.step_tokens <= settings.concurrency:
        raise SimulationError(
            f"The settings {name} say that a step takes at least {settings.step_s:g} s and has {settings.step_tokens} "
            f"tokens, and that {settings.prefill_tokens_per_s:g} are read a second, with {settings.concurrency} "
            "requests at once: raise step_tokens or lower step_s."
        )
    return settings


_HOW = f"It needs {', '.join(FleetSettings.__struct_fields__)}."
