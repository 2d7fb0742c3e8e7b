"""A stream: an iterator or generator on the worker, and what its consumer has of it."""

from __future__ import annotations

import asyncio
import functools
import types
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from onelane import _aio, _worker_loop
from onelane._caller import Caller
from onelane._exclusive import Hold, here
from onelane._lane import END, Lane
from onelane._proxy import Guarded, cell_of, lane_of
from onelane._terms import NORMAL, Options, Terms
from onelane.errors import DeadlineExceeded

_set = object.__setattr__


class GuardedIterator(Guarded):
    """An iterator or generator on the worker: each item is one visit there.

    `close()`, `await aclose()`, or the end of this proxy, closes a generator on the worker. Also an
    asynchronous iterator. A cancelled `anext`, or one that is late, loses no item: the next one
    returns it. A task that has read items and ends in a cancelled `anext` has left: then the
    generator is closed, too.
    """

    __slots__ = (
        "_onelane_ahead",
        "_onelane_asked",
        "_onelane_begun",
        "_onelane_hold",
        "_onelane_options",
        "_onelane_reader",
    )

    # The item that was asked for and not given out yet.
    _onelane_ahead: Future[Any] | None
    # Whether a task awaits it.
    _onelane_asked: bool
    _onelane_begun: bool
    _onelane_hold: Hold | None
    _onelane_options: Options | None
    # The task that asked last.
    _onelane_reader: weakref.ref[Any] | None

    def __init__(
        self,
        lane: Lane,
        value: Any,
        make: Callable[[], Any] | None = None,
        hold: Hold | None = None,
        options: Options | None = None,
    ) -> None:
        super().__init__(lane, value, make)
        _set(self, "_onelane_ahead", None)
        _set(self, "_onelane_asked", False)
        _set(self, "_onelane_begun", False)
        _set(self, "_onelane_hold", hold)
        _set(self, "_onelane_options", options)
        _set(self, "_onelane_reader", None)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return GuardedIterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        lane, options = lane_of(self), self._onelane_options
        terms = NORMAL if options is None else options.begin()
        if lane.executor.is_worker:
            return self._onelane_item(self._onelane_step(terms))
        return _aio.watched(lambda: self._onelane_wait(terms), "use `async for`")

    def _onelane_wait(self, terms: Terms) -> Any:
        lane = lane_of(self)
        hold = self._onelane_begin()
        if hold is not False:
            self._onelane_held(lane.turns.wait(hold, terms.deadline))
        ahead = self._onelane_ahead
        if terms.deadline is None and (ahead is None or ahead.cancelled()):
            _set(self, "_onelane_ahead", None)
            return self._onelane_item(self._onelane_step(terms))
        ahead = self._onelane_ask(terms)
        try:
            item = ahead.result(terms.left())
        except FutureTimeout:
            if ahead.done():
                self._onelane_take(ahead)
                raise
            raise _late() from None
        except BaseException:
            if ahead.done():
                self._onelane_take(ahead)
            raise
        self._onelane_take(ahead)
        return self._onelane_item(item)

    def close(self) -> None:
        """Close the generator on the worker."""
        lane = lane_of(self)
        lane.executor.call(lane.empty, cell_of(self))

    def __aiter__(self) -> GuardedIterator:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        # What belongs to the call is read at the call.
        options = self._onelane_options
        terms = NORMAL if options is None else options.begin()
        return self._onelane_anext(lane_of(self).executor.caller(), terms)

    async def _onelane_anext(self, caller: Caller, terms: Terms) -> Any:
        if self._onelane_asked:
            raise RuntimeError("anext(): another task awaits the next item of this stream")
        task = asyncio.current_task()
        reader = None if self._onelane_reader is None else self._onelane_reader()
        has_read = reader is not None and reader is task
        _set(self, "_onelane_reader", None if task is None else weakref.ref(task))
        _set(self, "_onelane_asked", True)
        try:
            return await self._onelane_await(caller, terms)
        except asyncio.CancelledError:
            if task is not None and has_read:
                task.add_done_callback(functools.partial(_left, weakref.ref(self)))
            raise
        finally:
            _set(self, "_onelane_asked", False)

    async def _onelane_await(self, caller: Caller, terms: Terms) -> Any:
        hold = self._onelane_begin()
        if hold is not False:
            self._onelane_held(await lane_of(self).turns.wait_async(hold, terms.deadline))
        ahead = self._onelane_ask(terms, caller)
        # Cancelling this cancels what has not started; what has stays for the next one who asks.
        awaited, left = asyncio.wrap_future(ahead), terms.left()
        try:
            item = await (awaited if left is None else asyncio.wait_for(awaited, left))
        except asyncio.CancelledError:
            raise
        except asyncio.TimeoutError:
            if awaited.cancelled():
                raise _late() from None
            self._onelane_take(ahead)
            raise
        except BaseException:
            self._onelane_take(ahead)
            raise
        self._onelane_take(ahead)
        try:
            return self._onelane_item(item)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Close the generator on the worker, from an event loop."""
        lane = lane_of(self)
        close = functools.partial(lane.empty, cell_of(self))
        await lane.executor.arun(lane.executor.packed(close))

    def _onelane_begin(self) -> Any:
        """Return what has to be waited for before the next item; False: nothing."""
        hold, lane = self._onelane_hold, lane_of(self)
        if hold is None:
            return False
        hold.asker = here() if self._onelane_begun else None
        if self._onelane_begun:
            return False
        return lane.turns.take(hold)

    def _onelane_begun_as(self, hold: Hold | None, options: Options | None) -> None:
        """It has begun already, in the turn of the method that returned it."""
        _set(self, "_onelane_options", options)
        self._onelane_held(hold)

    def _onelane_held(self, hold: Hold | None) -> None:
        """It has the object alone from now on."""
        _set(self, "_onelane_begun", True)
        _set(self, "_onelane_hold", hold)
        lane = lane_of(self)
        cell_of(self).releases.append(lambda: lane.turns.leave(hold))

    def _onelane_ask(self, terms: Terms, caller: Caller | None = None) -> Future[Any]:
        """Have the next item made, unless it has been asked for already."""
        ahead = self._onelane_ahead
        if ahead is None or ahead.cancelled():
            # The deadline is the consumer's: an item that is made late is not lost.
            step, terms = self._onelane_on_worker(), terms._replace(deadline=None)
            ahead = lane_of(self).submit(step, terms, caller)
            _set(self, "_onelane_ahead", ahead)
        return ahead

    def _onelane_take(self, ahead: Future[Any]) -> None:
        if self._onelane_ahead is ahead:
            _set(self, "_onelane_ahead", None)

    def _onelane_item(self, item: Any) -> Any:
        if item is END:
            raise StopIteration
        return item

    def _onelane_step(self, terms: Terms) -> Any:
        lane, step = lane_of(self), self._onelane_on_worker()
        if lane.executor.is_worker:
            return step()
        if self._onelane_hold is not None:
            return lane.visit(step, terms)
        hold = lane.turn(terms)
        try:
            return lane.visit(step, terms)
        finally:
            lane.turns.leave(hold)

    def _onelane_on_worker(self) -> Callable[[], Any]:
        # Not a method: what waits on the worker must not keep the proxy from being dropped.
        lane, cell = lane_of(self), cell_of(self)

        def step() -> Any:
            try:
                iterator = cell.get()
                if isinstance(iterator, types.AsyncGeneratorType):
                    try:
                        return lane.leave(_worker_loop.run(iterator.__anext__()))
                    except StopAsyncIteration:
                        item = END
                else:
                    item = END if iterator is None else next(iterator, END)
            except BaseException:
                cell.release()
                raise
            if item is END:
                cell.release()
            return lane.leave(item)

        return step


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the next item was there; it is not lost")


def _left(stream: weakref.ref[GuardedIterator], task: asyncio.Task[Any]) -> None:
    """The task that was reading has ended: unless another has asked since, nobody reads on."""
    left = stream()
    if left is None or left._onelane_reader is None or left._onelane_reader() is not task:
        return
    lane_of(left).release(cell_of(left))


__all__ = ["GuardedIterator"]
