"""How long to wait before something that failed is tried again. Knows nothing of what it is."""

import random


def pause_s(failures: int, first_s: float, most_s: float) -> float:
    """Seconds after `failures` in a row: doubling from `first_s` to `most_s`, each shortened by up to a half by chance,
    so that many who lost the same server do not come back to it in step."""
    full_s = min(most_s, first_s * 2.0 ** min(max(0, failures - 1), 30))
    return full_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
