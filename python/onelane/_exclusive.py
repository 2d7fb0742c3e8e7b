"""One at a time: while a stream of an object is open, or a session, other calls of it wait.

Calls share the object; a stream or a session has it alone. Who has it may call it all the while, so
that a consumer can use the object between two items. First come, first served: a stream that waits
is not overtaken by calls.

Who asks is a thread, or a task, in a context. A thread of a pool that works for one caller after
another is someone else each time, if each caller's work runs in a context of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

_LOG = logging.getLogger("onelane.guard")
_TELL_AFTER_S = 30.0


class _Asker:
    """A thread or task, in a context."""

    def __init__(self, thread: int, task: weakref.ref[Any] | None) -> None:
        self._thread, self._task = thread, task

    def is_here(self, thread: int, task: Any) -> bool:
        mine = None if self._task is None else self._task()
        return self._thread == thread and mine is task and (self._task is None or task is not None)


_ASKER: contextvars.ContextVar[_Asker | None] = contextvars.ContextVar("onelane", default=None)


def here() -> _Asker:
    """Return who asks now."""
    try:
        task: Any = asyncio.current_task()
    except RuntimeError:
        task = None
    thread = threading.get_ident()
    asker = _ASKER.get()
    if asker is None or not asker.is_here(thread, task):
        asker = _Asker(thread, None if task is None else weakref.ref(task))
        _ASKER.set(asker)
    return asker


class Hold:
    """What has the object alone: a stream, or a session."""

    def __init__(self, what: str) -> None:
        self.what = what
        # Who used it last: that one may call the object meanwhile.
        self.asker: _Asker | None = None
        self.depth = 0


class Exclusive:
    """The turns of one object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sharing = 0
        self._hold: Hold | None = None
        self._waiting: deque[tuple[Hold | None, Future[Hold | None]]] = deque()

    def share(self) -> Future[Hold | None] | None:
        """Begin a call. Returns a future to wait for first; None: there is nothing to wait for.

        The future, or this, gives what `leave` wants.
        """
        with self._lock:
            if self._hold is None and not self._waiting:
                self._sharing += 1
                return None
            if self._hold is not None and self._hold.asker is here():
                self._hold.depth += 1
                return _done(self._hold)
            return self._wait(None)

    def take(self, hold: Hold) -> Future[Hold | None]:
        """Have the object alone. Returns a future of the hold, which may be another of one's own."""
        with self._lock:
            if self._hold is not None and self._hold.asker is here():
                self._hold.depth += 1
                return _done(self._hold)
            hold.asker = here()
            if self._hold is None and not self._waiting and not self._sharing:
                hold.depth = 1
                self._hold = hold
                return _done(hold)
            return self._wait(hold)

    def leave(self, hold: Hold | None) -> None:
        """End a call, or a hold."""
        with self._lock:
            if hold is None:
                self._sharing -= 1
            else:
                hold.depth -= 1
                if hold.depth:
                    return
                self._hold = None
            admitted = self._admit()
        for future, given in admitted:
            future.set_result(given)

    def withdraw(self, future: Future[Hold | None]) -> None:
        """Wait no longer."""
        if not future.cancel():
            self.leave(future.result())
            return
        with self._lock:
            admitted = self._admit()
        for other, given in admitted:
            other.set_result(given)

    def _wait(self, hold: Hold | None) -> Future[Hold | None]:
        future: Future[Hold | None] = Future()
        self._waiting.append((hold, future))
        return future

    def _admit(self) -> list[tuple[Future[Hold | None], Hold | None]]:
        admitted: list[tuple[Future[Hold | None], Hold | None]] = []
        while self._waiting and self._hold is None:
            hold, future = self._waiting[0]
            if hold is not None and self._sharing and not future.cancelled():
                break
            self._waiting.popleft()
            # From here on it cannot be cancelled.
            if not future.set_running_or_notify_cancel():
                continue
            if hold is None:
                self._sharing += 1
            else:
                hold.depth = 1
                self._hold = hold
            admitted.append((future, hold))
        return admitted

    # --- Waiting ------------------------------------------------------------------------------

    def wait(self, future: Future[Hold | None] | None) -> Hold | None:
        """Wait on a thread."""
        if future is None:
            return None
        told = False
        try:
            while True:
                try:
                    return future.result(None if told else _TELL_AFTER_S)
                except FutureTimeout:
                    self._tell()
                    told = True
        except BaseException:
            self.withdraw(future)
            raise

    async def wait_async(self, future: Future[Hold | None] | None) -> Hold | None:
        """Wait in an event loop."""
        if future is None:
            return None
        if future.done():
            return future.result()
        loop = asyncio.get_running_loop()
        admitted: asyncio.Future[None] = loop.create_future()

        def wake(_: object) -> None:
            try:
                loop.call_soon_threadsafe(lambda: admitted.done() or admitted.set_result(None))
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                self.withdraw(future)

        future.add_done_callback(wake)
        try:
            await admitted
        except BaseException:
            self.withdraw(future)
            raise
        return future.result()

    def _tell(self) -> None:
        hold = self._hold
        _LOG.warning(
            "a call has waited for %.0f s, because %s is open: exhaust or close it, or, if other "
            "calls cannot disturb it, use guard(..., exclusive=())",
            _TELL_AFTER_S,
            "something else" if hold is None else hold.what,
        )


def _done(hold: Hold) -> Future[Hold | None]:
    future: Future[Hold | None] = Future()
    future.set_result(hold)
    return future


__all__ = ["Exclusive", "Hold", "here"]
