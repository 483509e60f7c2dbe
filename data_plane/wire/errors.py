"""The one error shape every port answers with, and the exception that carries it. Knows nothing of HTTP servers."""

import msgspec


class ErrorBody(msgspec.Struct, frozen=True):
    """What stands under `error` in an answer, or in an SSE event of a stream that failed."""

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """`{"error": {...}}`."""

    error: ErrorBody


class ApiError(Exception):
    """An answer that is an error: a status, a body and perhaps headers (`retry-after`, `x-should-retry`)."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(message=message, type=type, param=param, code=code)
        self.headers = headers or {}

    def encode(self) -> bytes:
        """The JSON of the answer's body."""
        return msgspec.json.encode(ErrorEnvelope(self.body))


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is at fault; `param` names the field."""
    return ApiError(400, message, param=param, code=code)


def unauthenticated(message: str = "Missing or invalid API key. Send it as 'Authorization: Bearer KEY'.") -> ApiError:
    """401, the same words for an unknown, a revoked and a malformed key."""
    return ApiError(
        401, message, type="authentication_error", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
    )


def forbidden(scope: str) -> ApiError:
    """403: the key is good, its scopes are not enough."""
    return ApiError(403, f"This key lacks the scope '{scope}'.", type="permission_error", code="insufficient_scope")


def not_found(what: str, name: str) -> ApiError:
    """404 with the usual code for models and endpoints."""
    return ApiError(404, f"There is no {what} '{name}'.", code=f"{what}_not_found")


def unavailable(message: str, *, code: str, retry_after_s: int | None = None, should_retry: bool = True) -> ApiError:
    """503. `retry_after_s` is whole seconds (at most 120); `should_retry=False` sends `x-should-retry: false`."""
    headers = {} if retry_after_s is None else {"retry-after": str(min(120, max(1, retry_after_s)))}
    if not should_retry:
        headers["x-should-retry"] = "false"
    kind = "overloaded_error" if should_retry else "server_error"
    return ApiError(503, message, type=kind, code=code, headers=headers)
