"""How long an endpoint is kept without work, as people say it: seconds, or `auto`. Pure; knows no rows."""

import math

IDLE_AUTO = "auto"
LEAST_S, MOST_S = 1.0, 86_400.0
FALLBACK_S = 300.0
"""What `auto` keeps an endpoint for while it knows too few of its idle times."""
UNPLANNED = f"No idle time has begun yet: kept for the constant {FALLBACK_S:g} s until its idle times are known."


def idle_of(given: float | str, param: str = "idle_s") -> tuple[bool, float]:
    """(whether it is auto, seconds). Raises ValueError with a sentence for what is neither."""
    if given == IDLE_AUTO:
        return True, FALLBACK_S
    if isinstance(given, str) or not math.isfinite(given) or not LEAST_S <= given <= MOST_S:
        shown = "".join(c if c.isprintable() else "?" for c in str(given))[:40]
        raise ValueError(
            f"{param} is '{shown}': it is 'auto' (by the endpoint's own idle times) or seconds from {LEAST_S:g} to "
            f"{MOST_S:.0f}."
        )
    return False, float(given)
