"""The latency that an endpoint is to hold, and whether an artifact's measured speed allows it at all. Pure; knows
nothing of rows, devices or load."""

import math
from collections.abc import Mapping
from typing import Annotated

import msgspec

Milliseconds = Annotated[float, msgspec.Meta(ge=0.1, le=600_000)]
WAIT_SHARE = 0.8
"""A prompt may wait so much of the time that its first token may take; the rest is for the prompt itself."""


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """95th percentiles in milliseconds, of the time to the first token (with all waiting) and between tokens; None: any
    will do."""

    ttft_p95_ms: Milliseconds | None = None
    itl_p95_ms: Milliseconds | None = None

    @property
    def is_any(self) -> bool:
        """Nothing is asked for."""
        return self.ttft_p95_ms is None and self.itl_p95_ms is None

    @property
    def wait_s(self) -> float | None:
        """How long a prompt may wait for its turn; None: as long as it likes."""
        return None if self.ttft_p95_ms is None else self.ttft_p95_ms / 1000 * WAIT_SHARE

    @property
    def word(self) -> str:
        """The same for the same latency: `ttft=500 itl=50`, `ttft=500`."""
        parts = (("ttft", self.ttft_p95_ms), ("itl", self.itl_p95_ms))
        return " ".join(f"{name}={value:g}" for name, value in parts if value is not None)


def unmet(speed: Mapping[str, float], slo: Slo) -> tuple[str, str] | None:
    """The field that not even one request alone is served within, and why in numbers; None where there is no such, or
    nobody measured it. `speed` is an artifact's, tokens a second; a first token takes at least one step too."""
    alone = speed.get("decode_1_tps", 0.0)
    if alone <= 0.0:
        return None
    step_ms = 1000 / alone
    for name, wanted_ms in (("ttft_p95_ms", slo.ttft_p95_ms), ("itl_p95_ms", slo.itl_p95_ms)):
        if wanted_ms is not None and wanted_ms < step_ms:
            return name, (
                f"{name} is {wanted_ms:g}, and one token of one request alone takes {step_ms:.1f} ms: {alone:.0f} "
                f"tokens/s were measured. Ask for {math.ceil(step_ms * 1.2)} or more"
            )
    return None
