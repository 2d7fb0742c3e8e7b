"""The future of a request in a batch queue."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from onelane import _onelane
from onelane.errors import ForkedProcess

_FORKED = (
    "onelane: this future belongs to the parent process, whose worker thread does not exist "
    "after a fork; submit the request again in the child, to a queue made there"
)


class RequestFuture(Future[Any]):
    """A `concurrent.futures.Future` whose `cancel` takes the request out of its queue."""

    _ticket: _onelane.Ticket | None = None

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
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the model raised, or None."""
        self._check()
        return super().exception(timeout)

    def _check(self) -> None:
        if self._ticket is not None and self._ticket.stale and not self.done():
            raise ForkedProcess(_FORKED)
