"""The queue of one guarded object's calls: each runs on the worker by itself.

It is a queue of the core like any other: with a capacity, priorities, deadlines, its share of the
device's time, statistics and an end. What a call is of, or that it is a step of a stream, it does
not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol

from onelane import _aio, _lifecycle, _onelane
from onelane._caller import Caller
from onelane._queues import Queues
from onelane._stats import Health, QueueStats
from onelane._terms import NORMAL, Terms
from onelane.errors import DeadlineExceeded


class Home(Protocol):
    """The executor, as this queue sees it."""

    _core: _onelane.Executor
    _queues: Queues

    @property
    def device(self) -> str:
        """The name of the device."""

    def is_held_here(self) -> bool:
        """Whether the calling thread or task holds the device."""

    def packed(self, fn: Callable[[], Any], caller: Caller | None = None) -> Any:
        """Return a call that runs in the caller's context and modes; default: the present ones."""

    def submit_packed(self, call: Any) -> Future[Any]:
        """Run on the worker what `packed` has returned, and return its future."""

    async def arun(self, call: Any) -> Any:
        """Run on the worker what `packed` has returned, and await its result."""


class CallQueue(_onelane.Front):
    """The calls of one guarded object."""

    def __init__(self, home: Any, name: str, capacity: int, stall_after: float) -> None:
        self._home: Home = home
        self.name = name
        self.capacity = capacity
        self._core = _onelane.Queue(
            self._home._core,
            _build,
            name=name,
            max_batch_size=1,
            max_batch_cost=1,
            capacity=capacity,
            stall_after_s=stall_after,
            idempotent=False,
        )
        self._open(self._core, 1, None)
        self._home._queues.add(self)

    def _prepare(
        self, inputs: tuple[Callable[[], Any], Caller | None], _named: dict[str, Any]
    ) -> tuple[Callable[[], Any], int, int]:
        """Pack a call; called by `_onelane.Front`."""
        return self._home.packed(*inputs), 0, 1

    def _call_held(
        self, inputs: tuple[Callable[[], Any], Caller | None], _named: dict[str, Any] | None
    ) -> Any:
        if not self._home.is_held_here():
            return NotImplemented
        return self._home.submit_packed(self._home.packed(*inputs)).result()

    def call(self, function: Callable[[], Any], terms: Terms = NORMAL) -> Any:
        """Run a call and wait for what it returns; not on the worker."""
        if terms is NORMAL:
            return self(function)
        if terms.wait:
            return self(function, deadline=terms.deadline, priority=terms.priority)
        future = self.submit(function, terms)
        try:
            return future.result(terms.left())
        except FutureTimeout:
            if future.done():
                raise
            future.cancel()
            raise DeadlineExceeded("the deadline passed while the call was running") from None

    def submit(
        self, function: Callable[[], Any], terms: Terms = NORMAL, caller: Caller | None = None
    ) -> Future[Any]:
        """Submit a call and return its future; blocks only for room."""
        if self._home.is_held_here():
            return self._home.submit_packed(self._home.packed(function, caller))
        future: Future[Any] = self._submit(
            (function, caller), {}, None, terms.deadline, terms.priority, terms.wait
        )
        return future

    async def infer(
        self, function: Callable[[], Any], terms: Terms = NORMAL, caller: Caller | None = None
    ) -> Any:
        """Await what a call returns."""
        if self._home.is_held_here():
            return await self._home.arun(self._home.packed(function, caller))
        if not terms.wait:
            future = self.submit(function, terms, caller)
            try:
                return await asyncio.wait_for(asyncio.wrap_future(future), terms.left())
            except asyncio.TimeoutError:
                if future.done() and not future.cancelled():
                    return future.result()
                text = "the deadline passed before there was a response"
                raise DeadlineExceeded(text) from None
        awaited, ticket = self._infer(
            self._read((function, caller), {}, None, terms.deadline, terms.priority)
        )
        return await _aio.answer(awaited, ticket, terms.left())

    def close(self, timeout: float | None) -> bool:
        """Refuse new calls and run those that were accepted; says whether it has ended in time."""
        try:
            return self._core.shutdown(False, timeout)
        except BaseException:
            _lifecycle.give_up(self._core)
            raise

    def begin_close(self) -> None:
        """Refuse new calls from now on."""
        self._core.close()

    def stats(self) -> QueueStats:
        """Return the statistics of the calls."""
        return QueueStats._of(self._core.stats(), self._home.device)

    def health(self) -> Health:
        """Return whether calls are answered."""
        return Health(*self._core.health())


def _build() -> Callable[[list[Callable[[], Any]]], tuple[list[Any], int]]:
    return _run


def _run(calls: list[Callable[[], Any]]) -> tuple[list[Any], int]:
    return [call() for call in calls], len(calls)


__all__ = ["CallQueue"]
