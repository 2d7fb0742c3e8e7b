"""The event loop of a worker: async functions of models and guarded objects run there.

They run to their end. Each worker has one, made when it is first wanted and closed when the worker
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any


class _Owned:
    """An event loop that is closed with the thread that owns it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.loop.close()


class _Local(threading.local):
    owned: _Owned | None = None


_local = _Local()


def run(awaitable: Awaitable[Any]) -> Any:
    """Run an awaitable to its end on the calling thread, a worker."""
    if _local.owned is None:
        _local.owned = _Owned()
    return _local.owned.loop.run_until_complete(awaitable)


def is_running() -> bool:
    """Whether a loop runs on the calling thread: then an awaitable can only be awaited."""
    return asyncio._get_running_loop() is not None


def is_async(function: Any) -> bool:
    """Whether calling something gives a coroutine."""
    if inspect.iscoroutinefunction(function):
        return True
    return any(
        inspect.iscoroutinefunction(vars(kind).get("__call__")) for kind in type(function).__mro__
    )


def blocking(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """Return an async function as one that returns when it is done."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return run(function(*args, **kwargs))

    return call


__all__ = ["blocking", "is_async", "is_running", "run"]
