"""What becomes of objects that cannot leave their worker: proxies, streams, methods."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator
from typing import Any

from onelane import _worker_loop
from onelane._lane import Home, Lane, Makers
from onelane._leave import Departure
from onelane._method import BatchedMethod, Method
from onelane._proxy import proxy
from onelane._stream import GuardedIterator


def wrap(lane: Lane, departure: Departure, value: Any) -> Any:
    """Return a proxy of an object that cannot leave the worker; made there."""
    if inspect.iscoroutine(value):
        # Inside of the worker's loop, whoever called can await it.
        return value if _worker_loop.is_running() else departure(_worker_loop.run(value))
    if isinstance(value, (Iterator, types.AsyncGeneratorType)):
        return GuardedIterator(lane, value)
    return proxy(lane, value)


def lane_on(
    home: Home,
    methods: Iterable[str] | None = None,
    exclusive: Iterable[str] | bool | None = None,
) -> Lane:
    """Return the lane of an object on a device."""
    return Lane(home, _MAKERS, methods, exclusive)


_MAKERS = Makers(wrap, Method, BatchedMethod)

__all__ = ["lane_on", "wrap"]
