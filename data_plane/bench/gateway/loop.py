"""Runs a coroutine on the fastest event loop there is. Knows nothing of what runs on it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:  # not on every platform: the figures are then bounded by asyncio's own loop
        return asyncio.run(main)
    return uvloop.run(main)
