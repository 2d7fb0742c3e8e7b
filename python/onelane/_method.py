"""A method of a guarded object, called from other threads and from event loops."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from onelane import _aio
from onelane._caller import Caller
from onelane._exclusive import Hold
from onelane._proxy import Guarded, cell_of, facts_of, lane_of, without_self
from onelane._stream import GuardedIterator
from onelane._terms import NORMAL, Options, Priority, Terms, options


class Method:
    """A method of a guarded object: looked up and called in one visit to the worker."""

    _options: Options | None = None

    def __init__(self, proxy: Guarded, name: str) -> None:
        self._proxy, self._name = proxy, name
        self._facts = facts = facts_of(proxy, name)
        self.__name__, self.__qualname__ = name, facts.qualname
        self.__module__, self.__doc__ = facts.module, facts.doc

    @property
    def __signature__(self) -> inspect.Signature:
        return without_self(self._facts.static)

    def options(
        self,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        wait: bool = True,
    ) -> Method:
        """Return this method with terms for its calls; they are no arguments of the method's.

        ::

            g.encode.options(timeout=2, priority="interactive")("a text")
            await g.encode.options(timeout=2).acall("a text")

        timeout: seconds from each call until `DeadlineExceeded`, a `TimeoutError`, is raised; a
        call that has not started by then is not run. For a stream: from each request for an item;
        the item is not lost, the next request gets it. deadline: the same as an instant of
        `time.monotonic()`. priority: `"interactive"`, `"normal"` or `"bulk"`. wait: False raises
        `QueueFull` at once if as many calls wait as the guard's `capacity` says.
        """
        if lane_of(self._proxy).calls is None:
            raise TypeError(f"options() is for methods of what guard() returned, not for {self!r}")
        other = copy.copy(self)
        other._options = options(timeout, deadline, priority, wait)
        return other

    def _terms(self) -> Terms:
        return NORMAL if self._options is None else self._options.begin()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        facts = self._facts
        if facts.is_async:
            return self.acall(*args, **kwargs)
        if facts.is_stream:
            return self._stream(args, kwargs)
        lane, function = lane_of(self._proxy), self._on_worker(args, kwargs)
        hold = self._own_hold()
        if hold is None or lane.executor.is_worker:
            return lane.call(function, self._terms())
        return _aio.watched(lambda: self._alone(function, hold), "use `await method.acall(...)`")

    def _alone(self, function: Callable[[], Any], hold: Hold) -> Any:
        lane, terms = lane_of(self._proxy), self._terms()
        held = lane.turn(terms, hold)
        try:
            result = lane.visit(function, terms)
        except BaseException:
            lane.turns.leave(held)
            raise
        return self._begun(result, held)

    def acall(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Return what is awaited for a call of the method; of an async method, too.

        The caller's context variables and modes are read here, and a timeout counts from here.
        """
        return self._acall(lane_of(self._proxy).executor.caller(), self._terms(), args, kwargs)

    async def _acall(
        self, caller: Caller, terms: Terms, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._facts.is_stream:
            return self._stream(args, kwargs)
        lane, function = lane_of(self._proxy), self._on_worker(args, kwargs)
        hold = self._own_hold()
        if hold is None or lane.executor.is_worker:
            return await lane.acall(caller, function, terms)
        held = await lane.aturn(terms, hold)
        try:
            result = await lane.avisit(caller, function, terms)
        except BaseException:
            lane.turns.leave(held)
            raise
        return self._begun(result, held)

    def _on_worker(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        lane, cell, name = lane_of(self._proxy), cell_of(self._proxy), self._name
        return lambda: lane.invoke(getattr(cell.present(), name), args, kwargs)

    def _stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GuardedIterator:
        """Return the stream of a generator function: nothing of it runs before the first item."""
        without_self(self._facts.static).bind(*args, **kwargs)
        lane = lane_of(self._proxy)
        hold = lane.hold_of(self._name, generator=True)
        # The stream keeps the object's proxy, and with it the object.
        proxy, function = self._proxy, self._on_worker(args, kwargs)

        def make(_proxy: Guarded = proxy) -> Any:
            return function()

        return GuardedIterator(lane, None, make, hold, self._options)

    def _own_hold(self) -> Hold | None:
        """Return the hold of a method that was said to be exclusive."""
        return lane_of(self._proxy).hold_of(self._name, generator=False)

    def _begun(self, result: Any, held: Hold | None) -> Any:
        """A stream that an exclusive method has returned keeps the object to itself."""
        if type(result) is GuardedIterator:
            result._onelane_begun_as(held, self._options)
        else:
            lane_of(self._proxy).turns.leave(held)
        return result

    def __repr__(self) -> str:
        return f"<method {self._name!r} of {self._proxy!r}>"


class BatchedMethod(Method):
    """A method whose calls from many threads become one call."""

    def __init__(self, proxy: Guarded, name: str, batching: Any) -> None:
        super().__init__(proxy, name)
        self._batching = batching

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lane, terms = lane_of(self._proxy), self._terms()
        call = super().__call__
        if lane.executor.is_worker:
            return self._batching.call(call, args, kwargs, None, terms)
        return _aio.watched(
            lambda: self._batching.call(call, args, kwargs, lane, terms),
            "use `await method.acall(...)`",
        )

    async def _acall(
        self, caller: Caller, terms: Terms, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        lane, alone = lane_of(self._proxy), super()._acall

        def call(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            return alone(caller, terms, args, kwargs)

        return await self._batching.acall(call, args, kwargs, lane, terms, caller)


__all__ = ["BatchedMethod", "Method"]
