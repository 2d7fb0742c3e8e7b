"""A stream: an iterator or generator on the worker, and what its consumer has of it."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from onelane._exclusive import Hold, here
from onelane._lane import END, Lane
from onelane._proxy import Guarded, cell_of, lane_of


class GuardedIterator(Guarded):
    """An iterator or generator on the worker: each item is one visit there.

    `close()`, `await aclose()`, or the end of this proxy, closes a generator on the worker. Also an
    asynchronous iterator; a cancelled `anext` loses no item: the next one returns it.
    """

    __slots__ = ("_onelane_ahead", "_onelane_begun", "_onelane_hold")

    _onelane_ahead: Future[Any] | None
    _onelane_begun: bool
    _onelane_hold: Hold | None

    def __init__(
        self,
        lane: Lane,
        value: Any,
        make: Callable[[], Any] | None = None,
        hold: Hold | None = None,
    ) -> None:
        super().__init__(lane, value, make)
        object.__setattr__(self, "_onelane_ahead", None)
        object.__setattr__(self, "_onelane_begun", False)
        object.__setattr__(self, "_onelane_hold", hold)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return GuardedIterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        lane = lane_of(self)
        if not lane.executor.is_worker:
            hold = self._onelane_begin()
            if hold is not False:
                self._onelane_held(lane.turns.wait(hold))
        ahead = self._onelane_take()
        return self._onelane_item(self._onelane_step() if ahead is None else ahead.result())

    def close(self) -> None:
        """Close the generator on the worker."""
        lane = lane_of(self)
        lane.executor.call(lane.empty, cell_of(self))

    def __aiter__(self) -> GuardedIterator:
        return self

    async def __anext__(self) -> Any:
        lane = lane_of(self)
        hold = self._onelane_begin()
        if hold is not False:
            self._onelane_held(await lane.turns.wait_async(hold))
        ahead = self._onelane_ahead
        if ahead is None or ahead.cancelled():
            ahead = lane.executor.submit(self._onelane_on_worker())
            object.__setattr__(self, "_onelane_ahead", ahead)
        # If this is cancelled, the item stays for the next one who asks.
        item = await asyncio.shield(asyncio.wrap_future(ahead))
        object.__setattr__(self, "_onelane_ahead", None)
        try:
            return self._onelane_item(item)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Close the generator on the worker, from an event loop."""
        lane = lane_of(self)
        await lane.executor.acall(lane.empty, cell_of(self))

    def _onelane_begin(self) -> Any:
        """Return what has to be waited for before the next item; False: nothing."""
        hold, lane = self._onelane_hold, lane_of(self)
        if hold is None:
            return False
        hold.asker = here() if self._onelane_begun else None
        if self._onelane_begun:
            return False
        object.__setattr__(self, "_onelane_begun", True)
        return lane.turns.take(hold)

    def _onelane_held(self, hold: Hold | None) -> None:
        """It has the object alone from now on."""
        object.__setattr__(self, "_onelane_hold", hold)
        lane = lane_of(self)
        cell_of(self).releases.append(lambda: lane.turns.leave(hold))

    def _onelane_take(self) -> Future[Any] | None:
        ahead = self._onelane_ahead
        object.__setattr__(self, "_onelane_ahead", None)
        return None if ahead is None or ahead.cancelled() else ahead

    def _onelane_item(self, item: Any) -> Any:
        if item is END:
            raise StopIteration
        return item

    def _onelane_step(self) -> Any:
        lane, step = lane_of(self), self._onelane_on_worker()
        if self._onelane_hold is not None or lane.executor.is_worker:
            return lane.executor.call(step)
        hold = lane.turns.wait(lane.turns.share())
        try:
            return lane.executor.call(step)
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
                        return lane.leave(lane.run(iterator.__anext__()))
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


__all__ = ["GuardedIterator"]
