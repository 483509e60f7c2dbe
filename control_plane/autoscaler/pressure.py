"""How much others want the memory that an idle replica holds. Pure; knows no nodes or rows."""

LEAST = 0.5
MOST = 8.0


def pressure(promised_bytes: int, usable_bytes: int, wanting: int) -> float:
    """The price of a byte, for keepalive.Terms: 1 where half of what replicas may have is taken, twice that where three
    quarters are, and so on as 1 ÷ (2 × what is free), within 0.5 and 8. Where an endpoint waits for room, `wanting`, it
    is the most: somebody waits for just these bytes. Where no node is known there is nothing to compare: 1.
    """
    if usable_bytes <= 0:
        return 1.0
    if wanting > 0:
        return MOST
    free = max(0.0, 1.0 - promised_bytes / usable_bytes)
    return min(MOST, max(LEAST, 1.0 / (2.0 * max(free, 1e-9))))
