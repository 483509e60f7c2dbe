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
    slo_wait_s: float
    worth: float
    servegen_requests: int

    def busy_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds that a request of these lengths takes."""
        return prompt_tokens / self.prefill_tokens_per_s + output_tokens / self.decode_tokens_per_s


def read_settings(path: Path | None) -> FleetSettings:
    """The settings in a file, or those that Ebb brings. Raises SimulationError where they cannot be used."""
    name, settings = read_settings_file(path, "scale.toml", FleetSettings, _HOW)
    wrong = [field for field, value in msgspec.structs.asdict(settings).items() if not 0 < value < float("inf")]
    if wrong:
        raise SimulationError(f"The settings {name} have a value that is not positive for {', '.join(wrong)}.")
    return settings


_HOW = f"It needs {', '.join(FleetSettings.__struct_fields__)}."
