"""The future of a request in a batch queue."""

from __future__ import annotations

import threading
from concurrent.futures import Future, _base
from typing import Any

from onelane import _onelane
from onelane.errors import ForkedProcess

_FORKED = (
    "onelane: this future belongs to the parent process, whose worker thread does not exist "
    "after a fork; submit the request again in the child, to a queue made there"
)

_MADE_WHEN_NEEDED: dict[str, Any] = {
    "_condition": threading.Condition,
    "_waiters": list,
    "_done_callbacks": list,
}


class RequestFuture(Future[Any]):
    """A `concurrent.futures.Future` whose `cancel` takes the request out of its queue.

    What somebody needs to look at it from outside (a condition, lists of waiters and callbacks) is
    made when somebody does; for most futures nobody does before the result is there.

    INVARIANT: who looks sets `_watched` before reading `_state`; who resolves sets `_state` before
    reading `_watched`. So either the one sees the result, or the other sees that it must tell.
    """

    _state: str = _base.PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _watched = False
    _ticket: _onelane.Ticket | None = None

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        make = _MADE_WHEN_NEEDED.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._watched = True
        # Two threads may come here: both get the first one's.
        return self.__dict__.setdefault(name, make())

    def _tell(self) -> None:
        """Tell those who look that there is a result."""
        with self._condition:
            for waiter in self._waiters:
                if self._exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._condition.notify_all()
        self._invoke_callbacks()

    def _fail(self, error: BaseException) -> None:
        self._exception = error
        self._state = _base.FINISHED
        if self._watched:
            self._tell()

    def cancel(self) -> bool:
        """Cancel the request if it has not started; it leaves the queue at once."""
        ticket = self._ticket
        if ticket is None:
            return super().cancel()
        if not ticket.cancel():
            return self.cancelled()
        super().cancel()
        # Those who wait for it hear of it now: no worker will pick it up to tell them.
        self.set_running_or_notify_cancel()
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Return the response, or raise what the model raised."""
        if self._state == _base.FINISHED and self._exception is None:
            return self._result
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the model raised, or None."""
        self._check()
        return super().exception(timeout)

    def _check(self) -> None:
        if self._ticket is not None and self._ticket.stale and not self.done():
            raise ForkedProcess(_FORKED)
