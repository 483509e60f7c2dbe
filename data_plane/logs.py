"""Structured logs: one JSON object a line on stderr, from structlog and from the standard library alike.

Knows nothing of what is logged. Contents of requests and secrets never belong in a log line.
"""

import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger


def configure_logging(process: str, level: int = logging.INFO) -> None:
    """Send every log line of this process to stderr as JSON with `at`, `level`, `process` and `event`."""

    def name_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        name_process,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
    ]
    render = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_is_no_departure)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    # Libraries speak from warnings up: their INFO is one line per request or poll, which ours already are.
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def _is_no_departure(record: logging.LogRecord) -> bool:
    """aiohttp logs each client that hangs up in the middle of its answer as an error, with a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name == "aiohttp.server" and isinstance(error, ConnectionError))
