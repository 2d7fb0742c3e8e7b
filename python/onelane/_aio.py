"""asyncio: resolving the futures of loops on their own threads, and loops that stand still."""

from __future__ import annotations

import asyncio
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from onelane import _onelane
from onelane.errors import DeadlineExceeded

T = TypeVar("T")

# As asyncio's `slow_callback_duration`.
_SLOW_S = 0.1


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


async def answer(future: asyncio.Future[T], ticket: _onelane.Ticket, left: float | None) -> T:
    """Await what a request of the core's comes to, for so many seconds at most."""
    timer = None
    if left is not None:
        timer = asyncio.get_running_loop().call_later(left, _expire, ticket, future)
    try:
        return await future
    finally:
        if timer is not None:
            timer.cancel()
        if not future.done() or future.cancelled():
            ticket.abandon()


def _expire(ticket: _onelane.Ticket, future: asyncio.Future[Any]) -> None:
    # If it has not started this takes it out of the queue, and the core says that it has expired.
    ticket.advance()
    if not future.done():
        ticket.abandon()
        future.set_exception(DeadlineExceeded("the deadline passed before there was a response"))


def watched(wait: Callable[[], T], cure: str) -> T:
    """Wait on a thread; if that is an event loop's, warn when it has stood still for long."""
    if asyncio._get_running_loop() is None:
        return wait()
    begun = time.monotonic()
    try:
        return wait()
    finally:
        took = time.monotonic() - begun
        if took > _SLOW_S:
            warnings.warn(
                f"the event loop stood still for {took:.2f} s, waiting for a worker: {cure}",
                RuntimeWarning,
                stacklevel=_users_frame(),
            )


def _users_frame() -> int:
    """Return the stack level, for `watched`, of the first frame outside of this package."""
    here, level = str(Path(__file__).parent), 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame, level = frame.f_back, level + 1
    return level


__all__ = ["answer", "resolve", "watched"]
