"""The gateway's refusals, in full sentences with their values. Knows nothing of when they are raised."""

from data_plane.wire.errors import ApiError, ErrorBody, not_found, unavailable
from data_plane.wire.routes import EndpointRoute

DEFAULT_RETRY_AFTER_S = 10


def endpoint_not_found(name: str) -> ApiError:
    """404 for an endpoint that is unknown, deleted, or another tenant's."""
    return not_found("endpoint", name)


def model_not_found(name: str, hint: str) -> ApiError:
    """404 for a `model` in the body that names nothing here."""
    return ApiError(404, f"There is no model '{name}' here. {hint}", param="model", code="model_not_found")


def endpoint_asleep(route: EndpointRoute) -> ApiError:
    """503 for what is only answered by a running replica and must not start one."""
    return unavailable(
        f"Endpoint '{route.name}' is asleep (state {route.state}) and this request does not wake it. "
        "Send a completion first.",
        code="endpoint_asleep",
        retry_after_s=DEFAULT_RETRY_AFTER_S,
    )


def model_loading(route: EndpointRoute, held_s: float, eta_s: float | None, retry_after_s: int) -> ApiError:
    """503 when the time to hold a request has passed."""
    expected = "" if eta_s is None else f", expected in {eta_s:.0f} s"
    phase = route.phase or route.state
    why = f"{route.reason} " if route.reason else ""
    return unavailable(
        f"Endpoint '{route.name}' is not ready yet ({phase}{expected}); this request was held for {held_s:.0f} s. "
        f"{why}Try again, or allow a longer hold with 'x-ebb-hold-timeout'.",
        code="model_loading",
        retry_after_s=retry_after_s,
    )


def saturated(route: EndpointRoute, running: int, waiting: int, held_s: float, retry_after_s: int) -> ApiError:
    """503 when the time to hold a request has passed and every replica is still full."""
    return unavailable(
        f"Endpoint '{route.name}' is busy: {running} requests run on {len(route.replicas)} replicas and {waiting} more "
        f"wait; this one waited for {held_s:.0f} s. Try again, or allow a longer wait with 'x-ebb-hold-timeout'.",
        code="endpoint_saturated",
        retry_after_s=retry_after_s,
    )


def model_failed(name: str, reason: str | None) -> ApiError:
    """503 at once: the endpoint's model cannot start, and asking again now will not help."""
    return unavailable(
        f"Endpoint '{name}' cannot start: {(reason or 'no reason was recorded').rstrip('.')}. "
        f"See 'ebb events' and 'ebb logs {name}'.",
        code="model_failed",
        should_retry=False,
    )


def queue_full(
    route: EndpointRoute, waiting: int, waiting_bytes: int, mine: int | None, retry_after_s: int
) -> ApiError:
    """503: too many requests wait for this endpoint already, or (`mine`) too many of them are this key's."""
    whose = "" if mine is None else f", {mine} of them of this key: the rest is kept for others"
    return unavailable(
        f"Endpoint '{route.name}' has no free place, and {waiting} requests ({waiting_bytes / (1 << 20):.0f} MiB) wait "
        f"for one already{whose}. Try again later.",
        code="queue_full",
        retry_after_s=retry_after_s,
    )


def shutting_down() -> ApiError:
    """503: this gateway is leaving."""
    refusal = unavailable("This gateway is shutting down. Try again.", code="shutting_down", retry_after_s=1)
    refusal.headers["Connection"] = "close"
    return refusal


def not_ready() -> ApiError:
    """503: no routes and keys were received from the control plane yet."""
    return unavailable(
        "This gateway has not heard from its control plane yet. Try again.", code="not_ready", retry_after_s=1
    )


def upstream_failed(name: str, tries: int, why: str) -> ApiError:
    """502 after the last try."""
    return ApiError(
        502,
        f"{tries} replicas of endpoint '{name}' were lost with this request (the last: {why}). Try again.",
        type="server_error",
        code="upstream_failed",
    )


def too_many_retries(name: str, why: str) -> ApiError:
    """503: the replica was lost, and so many requests were sent once more already that another would do harm."""
    return ApiError(
        503,
        f"A replica of endpoint '{name}' was lost with this request ({why}), and too many requests are being repeated "
        "already. Try again a little later.",
        type="server_error",
        code="upstream_failed",
        headers={"retry-after": "2"},
    )


def poisonous(name: str) -> ApiError:
    """500: two replicas died with this request in hand."""
    return ApiError(
        500,
        f"Two replicas of endpoint '{name}' died while they answered this request, so it is not tried on a third, and "
        "is refused for some minutes. See 'ebb logs' for what they said.",
        type="server_error",
        code="request_poisonous",
        headers={"x-should-retry": "false"},
    )


def stream_interrupted(why: str) -> ErrorBody:
    """The event that ends a stream whose runner was lost, where no other one can go on with it."""
    return ErrorBody(
        f"The stream was interrupted: the replica was lost ({why}). What came before is not the whole answer.",
        type="server_error",
        code="stream_interrupted",
    )
