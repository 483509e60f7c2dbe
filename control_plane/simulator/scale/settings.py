"""The settings file of `ebb simulate scale`: the fleet that is assumed. TOML; Ebb brings one."""

import tomllib
from importlib.resources import files
from pathlib import Path

import msgspec

from control_plane.simulator.errors import SimulationError


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
    name = str(path) if path else "scale.toml"
    try:
        text = (path or files("control_plane.simulator") / "scale.toml").read_text(encoding="utf-8")
        settings = msgspec.convert(tomllib.loads(text), FleetSettings)
    except OSError as error:
        raise SimulationError(f"The settings {name} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SimulationError(f"The settings {name} cannot be used: {error}. {_HOW}") from error
    wrong = [field for field, value in msgspec.structs.asdict(settings).items() if not 0 < value < float("inf")]
    if wrong:
        raise SimulationError(f"The settings {name} have a value that is not positive for {', '.join(wrong)}.")
    return settings


_HOW = f"It needs {', '.join(FleetSettings.__struct_fields__)}."
