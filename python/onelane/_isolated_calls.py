"""The calls of an isolated executor: functions that run in a child process of their own.

A function goes by reference, if the child can import it, else by cloudpickle; what it returns comes
back as host values. It is never run twice: who asks for it alone knows whether it may be.
"""

from __future__ import annotations

import contextvars
import functools
import pickle
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from onelane import _aio, _isolation, _model, _modes, _onelane
from onelane._collate import Collator, Defaults, Input, Target
from onelane._keys import Keys
from onelane._responses import leave
from onelane._stats import QueueStats


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
class Functions(Defaults):
    """What the requests of an isolated executor are; see `_requests.Requests`."""

    shared = False

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


class Home(Protocol):
    """The executor whose calls these are."""

    _core: _onelane.Executor
    _isolation: _isolation.Isolation | None
    _autocast: tuple[str, ...]

    @property
    def device(self) -> str:
        """The name of the device."""


class FunctionQueue(_onelane.Front):
    """The queue of the calls: each goes to the child by itself."""

    def __init__(self, home: Home) -> None:
        assert home._isolation is not None
        self._home, self._keys, self._collator = home, Keys(), FunctionCollator()
        settings = {"to_cpu": True, "copy_outputs": True, "cuda_graphs": False, "costed": False}
        spec = _isolation.Spec(apply, False, home.device, Functions(), settings, False)
        self._supervisor = _isolation.supervisor(home._isolation, spec)
        self._core = _onelane.Queue(
            home._core,
            self._supervisor,
            name=f"calls of {home.device}",
            max_batch_size=1,
            max_batch_cost=1,
            capacity=16384,
            idempotent=False,
        )
        self._open(self._core, 1, None)

    def _prepare(self, args: tuple[Any, ...], _: dict[str, Any]) -> tuple[Any, int, int]:
        """Read a call; called by `_onelane.Front`."""
        request, key = self._collator.prepare(args, {})
        modes = _modes.capture(self._home._autocast)
        payload = _model.Payload(request, modes, contextvars.copy_context())
        return payload, self._keys.number((key, modes)), 1

    def _call_held(self, _inputs: tuple[Any, ...], _named: Any) -> Any:
        # An isolated executor is never held.
        return NotImplemented

    def stats(self) -> QueueStats:
        """Return the statistics of the calls."""
        stats = QueueStats._of(self._core.stats(), self._home.device)
        return _isolation.with_children(stats, self._supervisor)


class Calls:
    """The calls of one isolated executor; the child is started by the first."""

    def __init__(self, home: Any) -> None:
        self._home: Home = home
        self._queue: FunctionQueue | None = None
        self._lock = threading.Lock()

    def queue(self) -> FunctionQueue:
        """Return the queue of the calls."""
        with self._lock:
            if self._queue is None:
                self._queue = FunctionQueue(self._home)
            return self._queue

    def present(self) -> FunctionQueue | None:
        """Return the queue of the calls, if there has been one."""
        return self._queue

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wait: bool = True,
    ) -> Future[Any]:
        """Return the future of a call; `wait`: for room, if there is none."""
        call = (_packed(function), args, kwargs)
        future: Future[Any] = self.queue()._submit(call, {}, None, None, "normal", wait)
        return future

    def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make a call, and return its result."""
        return self.queue()(_packed(function), args, kwargs)

    def acall(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Return what is awaited for the result of a call; it is read here, at the call."""
        queue = self.queue()
        call = (_packed(function), args, kwargs)
        return _answer(queue, queue._read(call, {}, None, None, "normal"))


async def _answer(queue: FunctionQueue, reading: _onelane.Reading) -> Any:
    awaited, ticket = queue._infer(reading)
    return await _aio.answer(awaited, ticket, None)


def _packed(function: Callable[..., Any]) -> bytes:
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return _isolation.packed(function, name)


__all__ = ["Calls", "Functions", "apply"]
