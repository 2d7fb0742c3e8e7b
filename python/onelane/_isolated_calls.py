"""The calls of an isolated executor: functions that run in a child process of their own.

A function goes by reference, if the child can import it, else by cloudpickle; what it returns comes
back as host values. It is never run twice: who asks for it alone knows whether it may be.
"""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onelane import _isolation
from onelane._collate import Collator, Input, Target
from onelane._responses import leave

if TYPE_CHECKING:
    from onelane._batch_queue import BatchQueue
    from onelane._executor import DeviceExecutor


class FunctionCollator:
    """A request is a packed function with its arguments; each runs by itself."""

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        return Input(args, kwargs), None

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`."""
        responses = [
            leave(target, target.call(*request.args, **request.kwargs)) for request in inputs
        ]
        return responses, len(inputs)


@dataclass(frozen=True)
class Functions:
    """What the requests of an isolated executor are; see `_requests.Requests`."""

    output: Literal["cpu"] = "cpu"
    copy: bool = True
    cuda_graphs: bool = False
    pad: None = None
    cost: None = None
    shared: bool = False

    def collator(self) -> Collator:
        """See `_requests.Requests`."""
        return FunctionCollator()


def apply(packed: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a packed function; the model of such a queue."""
    return _unpacked(packed)(*args, **kwargs)


@functools.lru_cache(maxsize=256)
def _unpacked(packed: bytes) -> Callable[..., Any]:
    function: Callable[..., Any] = pickle.loads(packed)
    return function


class Calls:
    """The calls of one isolated executor; the child is started by the first."""

    def __init__(self, home: DeviceExecutor) -> None:
        self._home = home
        self._queue: BatchQueue | None = None
        self._lock = threading.Lock()

    def queue(self) -> BatchQueue:
        """Return the queue of the calls."""
        with self._lock:
            if self._queue is None:
                from onelane._batch_queue import BatchQueue

                self._queue = BatchQueue(
                    apply,
                    self._home,
                    Functions(),
                    max_batch_size=1,
                    capacity=16384,
                    factory=False,
                    idempotent=False,
                    name=f"calls of {self._home.device}",
                )
            return self._queue

    def present(self) -> BatchQueue | None:
        """Return the queue of the calls, if there has been one."""
        return self._queue

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        """Return the future of a call."""
        return self.queue().submit(_packed(function), args, kwargs)

    def try_submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        """Return the future of a call, if there is room for it now."""
        return self.queue().try_submit(_packed(function), args, kwargs)

    def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make a call, and return its result."""
        return self.queue()(_packed(function), args, kwargs)

    async def acall(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make a call, and await its result."""
        return await self.queue().infer(_packed(function), args, kwargs)


def _packed(function: Callable[..., Any]) -> bytes:
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return _isolation.packed(function, name)


__all__ = ["Calls", "Functions", "apply"]
