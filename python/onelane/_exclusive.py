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
import gc
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from onelane.errors import DeadlineExceeded, WouldDeadlock

_LOG = logging.getLogger("onelane.guard")
_COLLECT_AFTER_S = 1.0
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


def adopt(asker: _Asker) -> None:
    """Ask as someone whom `here` has returned on this very thread, in another context."""
    _ASKER.set(asker)


class Hold:
    """What has the object alone: a stream, or a session."""

    def __init__(self, what: str) -> None:
        self.what = what
        # Who used it last: that one may call the object meanwhile.
        self.asker: _Asker | None = None
        self.depth = 0


class Exclusive:
    """The turns of one object.

    holds_device: whether who asks holds the device: then nobody else's stream can end, and waiting
        for one raises `WouldDeadlock`.
    """

    def __init__(self, holds_device: Callable[[], bool]) -> None:
        self._holds_device = holds_device
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
        """Have the object alone. Returns a future of the hold, or of another of one's own."""
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

    def wait(
        self, future: Future[Hold | None] | None, deadline: float | None = None
    ) -> Hold | None:
        """Wait on a thread; `DeadlineExceeded` at an instant of `time.monotonic()`."""
        if future is None:
            return None
        if future.done():
            return future.result()
        self._check(future)
        begun = time.monotonic()
        steps = [(begun + _COLLECT_AFTER_S, _collect), (begun + _TELL_AFTER_S, self._tell)]
        try:
            while True:
                until = min(
                    [at for at, _ in steps] + ([] if deadline is None else [deadline]), default=None
                )
                try:
                    left = None if until is None else max(0.0, until - time.monotonic())
                    return future.result(left)
                except FutureTimeout:
                    if deadline is not None and deadline <= time.monotonic():
                        raise self._late() from None
                    steps.pop(0)[1]()
        except BaseException:
            self.withdraw(future)
            raise

    async def wait_async(
        self, future: Future[Hold | None] | None, deadline: float | None = None
    ) -> Hold | None:
        """Wait in an event loop; as `wait`."""
        if future is None:
            return None
        if future.done():
            return future.result()
        self._check(future)
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(_COLLECT_AFTER_S, _collect)]
        timers.append(loop.call_later(_TELL_AFTER_S, self._tell))
        admitted: asyncio.Future[None] = loop.create_future()

        def wake(_: object) -> None:
            try:
                loop.call_soon_threadsafe(_resolve, admitted)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                self.withdraw(future)

        if deadline is not None:
            late = max(0.0, deadline - time.monotonic())
            timers.append(loop.call_later(late, _fail, admitted, self._late))
        future.add_done_callback(wake)
        try:
            await admitted
        except BaseException:
            self.withdraw(future)
            raise
        finally:
            for timer in timers:
                timer.cancel()
        return future.result()

    def waiting(self) -> int:
        """Return how many wait for their turn."""
        return len(self._waiting)

    def _late(self) -> DeadlineExceeded:
        hold = self._hold
        what = "another call" if hold is None else hold.what
        return DeadlineExceeded(f"the deadline passed while {what} was open")

    def _check(self, future: Future[Hold | None]) -> None:
        if not future.done() and self._holds_device():
            hold = self._hold
            self.withdraw(future)
            raise WouldDeadlock(
                f"{'another call' if hold is None else hold.what} of this object is open elsewhere "
                f"and cannot end while the device is held here: take a session before hold()"
            )

    def _tell(self) -> None:
        hold = self._hold
        _LOG.warning(
            "a call has waited for %.0f s, because %s is open: exhaust or close it, or, if other "
            "calls cannot disturb it, use guard(..., exclusive=())",
            _TELL_AFTER_S,
            "something else" if hold is None else hold.what,
        )


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Callable[[], Exception]) -> None:
    if not future.done():
        future.set_exception(error())


def _collect() -> None:
    # A stream that its consumer has left in a reference cycle has the object until it is collected.
    gc.collect()


def _done(hold: Hold) -> Future[Hold | None]:
    future: Future[Hold | None] = Future()
    future.set_result(hold)
    return future


__all__ = ["Exclusive", "Hold", "adopt", "here"]
