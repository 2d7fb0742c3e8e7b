"""Resolving futures of asyncio event loops, on their own threads."""

from __future__ import annotations

import asyncio
from typing import Any


def resolve(resolved: list[tuple[asyncio.Future[Any], bool, Any]]) -> None:
    """Resolve ``(future, failed, value)`` triples; called by the loop, once for a whole batch."""
    for future, failed, value in resolved:
        if future.done():
            continue
        if not failed:
            future.set_result(value)
        elif isinstance(value, StopIteration):
            # A future refuses it: raised in a coroutine it would read as the coroutine's return.
            error = RuntimeError("the model raised StopIteration")
            error.__cause__ = value
            future.set_exception(error)
        else:
            future.set_exception(value)
