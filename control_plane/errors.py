"""What can go wrong in the control plane, drawn as a tree. Knows nothing of HTTP servers or tables.

    ApiError (data_plane.wire.errors: a status and the body of the answer)
    └── EbbError
        ├── Invalid               400  a field's value is at fault; `param` names it
        ├── Missing               404  there is no such model, job, endpoint, node, key …
        ├── Conflict              409  the request is sound, the state of things does not allow it
        │   ├── AlreadyExists          the name is taken
        │   ├── InUse                  something else still needs it
        │   └── StaleEpoch             the writer was replaced by a newer one
        ├── DatabaseUnavailable   503  PostgreSQL does not answer
        └── DatabaseBusy          503  PostgreSQL is slow, and what it can do is kept for agents and gateways

Each carries one full sentence with the values at fault, and what to do next. `answer_for` turns any exception into
one of these, so one handler can render them all.
"""

import re

import psycopg
import structlog
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from data_plane.wire.errors import ApiError

_FIELD = re.compile(r"(?:required|unknown) field `([^`]{1,100})`")

log = structlog.get_logger("control_plane.errors")


class EbbError(ApiError):
    """Root of what the control plane raises by itself."""


class Invalid(EbbError):
    """400: the value of `param` is at fault."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, param=param, code=code)


class Missing(EbbError):
    """404: there is no `what` called `name`; `listing` is the command that shows which there are."""

    def __init__(self, what: str, name: str, listing: str = "") -> None:
        hint = f" See '{listing}'." if listing else ""
        super().__init__(404, f"There is no {what} '{name[:100]}'.{hint}", code=f"{what.replace(' ', '_')}_not_found")


class Conflict(EbbError):
    """409: the state of things does not allow it now."""

    def __init__(self, message: str, code: str = "conflict", param: str | None = None) -> None:
        super().__init__(409, message, type="conflict_error", code=code, param=param)


class AlreadyExists(Conflict):
    """409: the name is taken."""

    def __init__(self, what: str, name: str, remedy: str) -> None:
        super().__init__(f"There is already a {what} '{name}'. {remedy}", code="already_exists", param="name")


class InUse(Conflict):
    """409: something else still needs it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="in_use")


class StaleEpoch(Conflict):
    """409: a writer with an older epoch than the one on record; it was replaced and must stop or start over."""

    def __init__(self, what: str, epoch: int) -> None:
        super().__init__(f"Epoch {epoch} of {what} is over: a newer one has begun.", code="stale_epoch")


class DatabaseUnavailable(EbbError):
    """503: PostgreSQL does not answer; nothing was changed."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "The database does not answer, so nothing was changed. Try again; 'ebb doctor' shows what is wrong.",
            type="server_error",
            code="database_unavailable",
            headers={"retry-after": "2"},
        )


class DatabaseBusy(EbbError):
    """503: too many calls wait for PostgreSQL already; nothing was changed."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "The database is slow, and as many calls as may wait for it do so already. Nothing was changed. Try again; "
            "endpoints go on serving meanwhile.",
            type="server_error",
            code="database_busy",
            headers={"retry-after": "2"},
        )


def answer_for(error: BaseException) -> ApiError:
    """The answer to give for any exception; what is not the caller's fault is logged here, never told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return answer_for(error.exceptions[0])
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return _from_framework(error, status)
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.DataError):
        # NUL characters, lone surrogates and numbers beyond a column's range: PostgreSQL is the last to look
        log.warning("value_refused_by_database", error=type(cause).__name__)
        return Invalid("A value contains a character or a number that cannot be stored. Remove NUL characters.")
    if isinstance(cause, RecursionError):
        return Invalid("The body is nested too deeply. Send JSON with fewer levels.")
    if isinstance(cause, UnicodeDecodeError):
        return Invalid("The body is not valid UTF-8. Send JSON encoded as UTF-8.")
    if isinstance(cause, UnicodeEncodeError):
        return Invalid("A text contains a lone surrogate, which is not a character. Send valid Unicode.")
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout | psycopg.OperationalError | ConnectionError):
        log.error("database_unavailable", error=str(cause).splitlines()[:1])
        return DatabaseUnavailable()
    log.error("unexpected_error", error=type(error).__name__, exc_info=error)
    return ApiError(
        500,
        "The control plane failed at this request. The reason stands in its log under this answer's x-request-id.",
        type="server_error",
        code="internal_error",
    )


def _from_framework(error: BaseException, status: int) -> ApiError:
    """Litestar's own HTTPException: its `extra` lists the fields that did not validate."""
    detail = str(getattr(error, "detail", "")) or "The request is not valid."
    extra = getattr(error, "extra", None)
    param = None
    if isinstance(extra, list) and extra and isinstance(extra[0], dict):
        detail, param = _field_at_fault(extra[0])
    if status == 404:
        return ApiError(404, "There is nothing at this address. GET /schema lists what there is.", code="not_found")
    if status == 405:
        return ApiError(405, "This address does not take that method. GET /schema lists those it takes.", code="method")
    if status == 413:
        return ApiError(413, "The body is larger than this address accepts.", code="body_too_large")
    return ApiError(status, _one_line(detail), param=param)


def _field_at_fault(first: dict[str, object]) -> tuple[str, str | None]:
    """A sentence and the field's path from one entry of Litestar's list, which calls the whole body `data`."""
    key, message = str(first.get("key", "")), str(first.get("message", ""))
    if message == "'data'":
        return "The body is empty; send a JSON object.", None
    named = _FIELD.search(message)
    path = "" if key == "data" else key
    param = f"{path}.{named[1]}" if named and path else named[1] if named else path
    where = f" (in '{param}')" if param else " (in the body)"
    return f"{message}{where}. GET /schema describes what this address takes.", param or None


def _one_line(text: str) -> str:
    """Framework messages may quote the input: bounded, and without characters that JSON logs would have to escape."""
    return "".join(c if c.isprintable() else " " for c in text)[:400]
