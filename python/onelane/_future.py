"""The futures of a request in a batch queue, and of a call on an executor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, _base
from typing import Any, cast

from onelane import _onelane
from onelane.errors import ForkedProcess, WouldDeadlock

_FORKED = (
    "onelane: this future belongs to the parent process, whose worker thread does not exist "
    "after a fork; submit the request again in the child, to a queue made there"
)

_CANCELLED = (_base.CANCELLED, _base.CANCELLED_AND_NOTIFIED)
_DONE = (*_CANCELLED, _base.FINISHED)

_MADE_WHEN_NEEDED: dict[str, Any] = {
    "_waiters": list,
    "_done_callbacks": list,
}


class _Unique(Future[Any]):
    """A future that stands for one request: a copy of it is itself."""

    def __copy__(self) -> _Unique:
        return self

    def __deepcopy__(self, memo: Any) -> _Unique:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a future cannot be pickled: it belongs to this process's worker thread")


class RequestFuture(_Unique):
    """A `concurrent.futures.Future` whose `cancel` takes the request out of its queue.

    What somebody needs to look at it from outside (a condition, lists of waiters and callbacks) is
    made when somebody does; for most futures nobody does before the result is there.

    INVARIANT: `_lock` is set once, in one step: to a condition by who looks first, or to "resolved"
    by the native module, which then sets `_state` without a condition. A future that somebody looks
    at is resolved under its condition: who holds it either sees the result or is told of it.
    """

    _state: str = _base.PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _ticket: _onelane.Ticket | None = None

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        make = _MADE_WHEN_NEEDED.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        # Two threads may come here: both get the first one's.
        return self.__dict__.setdefault(name, make())

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        lock = self.__dict__.get("_lock")
        if lock is None:
            lock = self.__dict__.setdefault("_lock", threading.Condition())
        if isinstance(lock, threading.Condition):
            return lock
        while self._state != _base.FINISHED:
            # It is about to be, by a thread that has nothing else to do first.
            time.sleep(0)
        # Nobody is told of anything any more. The same one each time: it is taken and given back.
        return cast(threading.Condition, self.__dict__.setdefault("_spare", threading.Condition()))

    def _finish(self, result: Any, error: BaseException | None) -> None:
        """Set the result or the exception, and tell those who look."""
        with self._condition:
            self._result, self._exception = result, error
            self._state = _base.FINISHED
            for waiter in self._waiters:
                if self._exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._condition.notify_all()
        self._invoke_callbacks()

    def _fail(self, error: BaseException) -> None:
        self._finish(None, error)

    def cancel(self) -> bool:
        """Cancel the request if it has not started; it leaves the queue at once."""
        ticket = self._ticket
        if ticket is None:
            return super().cancel()
        if not ticket.cancel():
            return self.cancelled()
        _onelane.resolving(super().cancel)
        # Those who wait for it hear of it now: no worker will pick it up to tell them.
        self.set_running_or_notify_cancel()
        return True

    # Looking at the state takes no lock: in the child of a fork one may be found taken.

    def cancelled(self) -> bool:
        """Return whether the request was cancelled."""
        return self._state in _CANCELLED

    def running(self) -> bool:
        """Return whether the request runs now."""
        return self._state == _base.RUNNING

    def done(self) -> bool:
        """Return whether there is a response, an exception or a cancellation."""
        return self._state in _DONE

    def result(self, timeout: float | None = None) -> Any:
        """Return the response, or raise what the model raised.

        On a worker it is run inline, or raises `WouldDeadlock`.
        """
        self._await(timeout)
        if self._state == _base.FINISHED:
            if self._exception is None:
                return self._result
            try:
                raise self._exception
            finally:
                # The exception refers to this frame.
                self = None  # type: ignore[assignment]
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the model raised, or None."""
        self._await(timeout)
        return self._exception if self._state == _base.FINISHED else super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Have `fn(future)` called when it is done; now, if it is.

        `fn` is called on the worker, or for a deadline on the thread that sees to all of them: it
        must not block. What it submits to the worker that it is called on waits its turn; on that
        worker ask such a future for its `result()`, which runs it, and not `wait` or
        `as_completed`, which would never return.
        """
        self._check()
        _onelane.resolving(super().add_done_callback, fn)

    def _check(self) -> None:
        if self._ticket is not None and self._ticket.stale and not self.done():
            raise ForkedProcess(_FORKED)

    def _await(self, timeout: float | None) -> None:
        """On a worker, do what it takes."""
        if self._state in _DONE:
            return
        self._check()
        if self._ticket is not None:
            self._ticket.help(timeout)


class CallFuture(_Unique):
    """The future of a call on an executor; on the worker itself, who waits for it runs it."""

    # What runs the call; whoever takes it out runs it.
    _item: Callable[[], object] | None = None

    def __init__(self, core: _onelane.Executor) -> None:
        super().__init__()
        self._core = core

    def take(self) -> bool:
        """Take the call, to run it or to give it up. Says whether it was still there."""
        return self.__dict__.pop("_item", None) is not None

    def result(self, timeout: float | None = None) -> Any:
        """Return what the call returned, or raise what it raised."""
        self._await()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, or None."""
        self._await()
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Have `fn(future)` called when it is done; now, if it is.

        What `fn` submits to the worker that it is called on waits its turn.
        """
        self._check()
        _onelane.resolving(super().add_done_callback, fn)

    def _check(self) -> None:
        # Before any lock: in the child of a fork it may be found taken.
        if self._core.stale and self._state not in _DONE:
            raise ForkedProcess(_FORKED)

    def _await(self) -> None:
        self._check()
        if self._state in _DONE or not self._core.is_worker():
            return
        item = self._item
        if item is not None:
            item()
        elif self._state == _base.RUNNING and self._core.workers == 1:
            raise WouldDeadlock("waiting on the worker for a call that runs further up its stack")


__all__ = ["CallFuture", "RequestFuture"]
