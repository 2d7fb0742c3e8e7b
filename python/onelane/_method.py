"""A method of a guarded object, called from other threads and from event loops."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from onelane._exclusive import Hold
from onelane._proxy import Guarded, cell_of, kind_of, lane_of, without_self
from onelane._stream import GuardedIterator


class Method:
    """A method of a guarded object: looked up and called in one visit to the worker."""

    def __init__(self, proxy: Guarded, name: str) -> None:
        self._proxy, self._name = proxy, name
        self._static: Any = inspect.getattr_static(kind_of(proxy), name, None)
        self.__name__ = name
        self.__qualname__ = getattr(self._static, "__qualname__", name)
        self.__module__ = getattr(self._static, "__module__", None)  # type: ignore[assignment]
        self.__doc__ = getattr(self._static, "__doc__", None)

    @property
    def __signature__(self) -> inspect.Signature:
        return without_self(self._static)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if inspect.iscoroutinefunction(self._static):
            return self.acall(*args, **kwargs)
        stream = self._stream(args, kwargs)
        if stream is not None:
            return stream
        lane, function = lane_of(self._proxy), self._on_worker(args, kwargs)
        hold = self._own_hold()
        if hold is None or lane.executor.is_worker:
            return lane.call(function)
        held = lane.turns.wait(lane.turns.take(hold))
        try:
            result = lane.executor.call(lambda: lane.leave(function()))
        except BaseException:
            lane.turns.leave(held)
            raise
        return self._begun(result, held)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method from an event loop."""
        stream = self._stream(args, kwargs)
        if stream is not None:
            return stream
        lane, function = lane_of(self._proxy), self._on_worker(args, kwargs)
        hold = self._own_hold()
        if hold is None:
            return await lane.acall(function)
        held = await lane.turns.wait_async(lane.turns.take(hold))
        try:
            result = await lane.executor.acall(lambda: lane.leave(function()))
        except BaseException:
            lane.turns.leave(held)
            raise
        return self._begun(result, held)

    def _on_worker(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        lane, cell, name = lane_of(self._proxy), cell_of(self._proxy), self._name
        return lambda: lane.invoke(getattr(cell.value, name), args, kwargs)

    def _stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the stream of a generator function: nothing of it runs before the first item."""
        static = self._static
        if not (inspect.isgeneratorfunction(static) or inspect.isasyncgenfunction(static)):
            return None
        without_self(static).bind(*args, **kwargs)
        lane = lane_of(self._proxy)
        hold = lane.hold_of(self._name, generator=True)
        # The stream keeps the object's proxy, and with it the object.
        proxy, function = self._proxy, self._on_worker(args, kwargs)

        def make(_proxy: Guarded = proxy) -> Any:
            return function()

        return GuardedIterator(lane, None, make, hold)

    def _own_hold(self) -> Hold | None:
        """Return the hold of a method that was said to be exclusive."""
        return lane_of(self._proxy).hold_of(self._name, generator=False)

    def _begun(self, result: Any, held: Hold | None) -> Any:
        """A stream that an exclusive method has returned keeps the object to itself."""
        if type(result) is GuardedIterator:
            object.__setattr__(result, "_onelane_begun", True)
            result._onelane_held(held)
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
        lane = lane_of(self._proxy)
        if lane.executor.is_worker:
            return self._batching.call(super().__call__, args, kwargs)
        return self._batching.call(super().__call__, args, kwargs, lane.turns)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method from an event loop."""
        lane = lane_of(self._proxy)
        return await self._batching.acall(super().acall, args, kwargs, lane.turns)


__all__ = ["BatchedMethod", "Method"]
