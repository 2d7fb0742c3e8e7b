"""What all proxies of one guarded object share: its worker, its turns, how values cross over."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, NamedTuple, Protocol

from onelane import _aio, _collate, _leave, _modes, _responses, _tree, _worker_loop
from onelane._call_queue import CallQueue
from onelane._caller import Caller
from onelane._exclusive import Exclusive, Hold
from onelane._terms import NORMAL, Terms
from onelane.errors import EngineLost, ForkedProcess, QueueClosed, QueueFull

END = object()


class Home(Protocol):
    """The executor of the worker that an object lives on, as its proxies see it."""

    @property
    def device(self) -> str:
        """The name of the device."""

    @property
    def is_worker(self) -> bool:
        """Whether the calling thread is a worker of it."""

    def caller(self) -> Caller:
        """Return the context variables and modes of the calling thread."""

    def packed(self, fn: Callable[[], Any], caller: Caller | None = None) -> Any:
        """Return a call that runs in the caller's context and modes; default: the present ones."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run something on the worker and return its future."""

    def submit_packed(self, call: Any) -> Future[Any]:
        """Run on the worker what `packed` has returned, and return its future."""

    async def arun(self, call: Any) -> Any:
        """Run on the worker what `packed` has returned, and await its result."""

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run something on the worker and return what it returns."""

    def is_held_here(self) -> bool:
        """Whether the calling thread or task holds the device."""


class Makers(NamedTuple):
    """Makes the faces of what lives on a worker.

    wrap: of an object that cannot leave, given the lane and the departure. method, batched_method:
    of a method, given the proxy, its name and, if its calls are batched, how.
    """

    wrap: Callable[[Lane, _leave.Departure, Any], Any]
    method: Callable[[Any, str], Any]
    batched_method: Callable[[Any, str, Any], Any]


class Cell:
    """Holds an object of the worker's. Made, read and emptied on the worker alone."""

    __slots__ = ("__weakref__", "emptied", "make", "releases", "value")

    def __init__(self, value: Any, make: Callable[[], Any] | None = None) -> None:
        self.value, self.emptied = value, False
        # Makes the value when it is first wanted.
        self.make = make
        # What has to be called when the object is gone.
        self.releases: list[Callable[[], None]] = []

    def get(self) -> Any:
        """Return the object."""
        if self.make is not None:
            make, self.make = self.make, None
            self.value = make()
        return self.value

    def present(self) -> Any:
        """Return the object; `QueueClosed` if it has been closed."""
        if self.value is None and self.emptied:
            raise QueueClosed("the guarded object has been closed")
        return self.value

    def empty(self) -> None:
        """Drop the object, here, on the worker; a generator is closed first."""
        value, self.value, self.make = self.value, None, None
        self.emptied = True
        try:
            if isinstance(value, types.GeneratorType):
                value.close()
            elif isinstance(value, types.AsyncGeneratorType) and not _worker_loop.is_running():
                _worker_loop.run(value.aclose())
        finally:
            del value
            self.release()

    def release(self) -> None:
        """Let others have their turn."""
        with contextlib.suppress(IndexError):
            self.releases.pop()()


class Lane:
    """What all proxies of one guarded object share."""

    def __init__(
        self,
        home: Home,
        make: Makers,
        methods: Iterable[str] | None = None,
        exclusive: Iterable[str] | bool | None = None,
    ) -> None:
        self.executor, self.make = home, make
        self.methods = None if methods is None else frozenset(methods)
        self.batched: dict[str, Any] = {}
        self.root: weakref.ref[Any] | None = None
        self.root_id = 0
        self.moves_inputs = False
        self.turns = Exclusive(home.is_held_here)
        # None: every generator has the object alone; else the methods that do.
        self.exclusive = None if exclusive in (None, True) else frozenset(exclusive or ())  # type: ignore[arg-type]
        # The queue of the object's calls; None: they are the executor's.
        self.calls: CallQueue | None = None
        self.closed = False
        # What `_collate` asks of its target.
        self.device, self.to_cpu, self.copy_outputs = home.device, True, True
        self.torch_device: Any = None
        self.graphs = None
        self.wrap = functools.partial(make.wrap, self)

    # --- From any thread ----------------------------------------------------------------------

    def call(self, function: Callable[[], Any], terms: Terms = NORMAL) -> Any:
        """Run `function` on the worker; what it returns comes back as it may leave the worker."""
        if self.executor.is_worker:
            return self.leave(function())
        if asyncio._get_running_loop() is None:
            return self._call(function, terms)
        return _aio.watched(lambda: self._call(function, terms), _CURE)

    def _call(self, function: Callable[[], Any], terms: Terms) -> Any:
        hold = self.turn(terms)
        try:
            return self.visit(function, terms)
        finally:
            self.turns.leave(hold)

    async def acall(
        self, caller: Caller, function: Callable[[], Any], terms: Terms = NORMAL
    ) -> Any:
        """Do what `call` does, from an event loop, for a caller whose state has been read."""
        if self.executor.is_worker:
            called = _modes.call(caller.modes, function, (), {})
            return self.leave(await called if inspect.iscoroutine(called) else called)
        hold = await self.aturn(terms)
        try:
            return await self.avisit(caller, function, terms)
        finally:
            self.turns.leave(hold)

    def turn(self, terms: Terms, hold: Hold | None = None) -> Hold | None:
        """Wait until the object may be called; with a hold, until it is had alone."""
        return self.turns.wait(self._asked(terms, hold), terms.deadline)

    async def aturn(self, terms: Terms, hold: Hold | None = None) -> Hold | None:
        """Do what `turn` does, from an event loop."""
        return await self.turns.wait_async(self._asked(terms, hold), terms.deadline)

    def _asked(self, terms: Terms, hold: Hold | None) -> Future[Hold | None] | None:
        calls = self.calls
        if not terms.wait and calls is not None and self.turns.waiting() >= calls.capacity:
            raise QueueFull(f"{calls.capacity} calls of the object wait already")
        return self.turns.share() if hold is None else self.turns.take(hold)

    def visit(self, function: Callable[[], Any], terms: Terms = NORMAL) -> Any:
        """Run `function` on the worker, whoever's turn it is."""

        def run() -> Any:
            return self.leave(function())

        if self.calls is None:
            return self.executor.call(run)
        return self.calls.call(run, terms)

    async def avisit(
        self, caller: Caller, function: Callable[[], Any], terms: Terms = NORMAL
    ) -> Any:
        """Do what `visit` does, from an event loop."""

        def run() -> Any:
            return self.leave(function())

        if self.calls is None:
            return await self.executor.arun(self.executor.packed(run, caller))
        return await self.calls.infer(run, terms, caller)

    def submit(
        self, function: Callable[[], Any], terms: Terms = NORMAL, caller: Caller | None = None
    ) -> Future[Any]:
        """Run `function` on the worker some time; on the worker itself now."""
        if self.calls is None or self.executor.is_worker:
            return self.executor.submit_packed(self.executor.packed(function, caller))
        return self.calls.submit(function, terms, caller)

    def close(self, timeout: float | None, cell: Cell) -> bool:
        """Refuse new calls, run those that were accepted, and drop the object on the worker.

        Says whether that has ended in time; it goes on if not.
        """
        end = None if timeout is None else time.monotonic() + timeout
        queues = [batching.queue for batching in self.batched.values()]
        if self.calls is not None:
            self.calls.begin_close()
        ended = True
        for queue in queues:
            ended = queue.shutdown(timeout=_left(end)) and ended
        if self.calls is not None:
            ended = self.calls.close(_left(end)) and ended
        if self.closed:
            return ended
        self.closed = True
        try:
            dropped = self.executor.submit(self.empty, cell)
        except QueueClosed:
            cell.empty()
            return ended
        if self.executor.is_worker:
            return ended
        try:
            dropped.result(_left(end))
        except FutureTimeout:
            return False
        return ended

    def hold_of(self, name: str, generator: bool) -> Hold | None:
        """Return what has the object alone while a stream of a method is open; None: nothing."""
        alone = generator if self.exclusive is None else name in self.exclusive
        return Hold(f"a stream of {name}()") if alone else None

    def batching(self, proxy: Any, name: str) -> Any:
        """Return how calls of a method are batched; those of the guarded object itself alone."""
        batching = self.batched.get(name)
        if batching is None or self.root is None or self.root() is not proxy:
            return None
        return batching

    def release(self, cell: Cell) -> None:
        """Drop a proxy's object on the worker."""
        try:
            self.executor.submit(self.empty, cell)
        except (QueueClosed, EngineLost):
            # The worker has ended, or its device has; there is no better place left.
            cell.empty()
        except ForkedProcess:
            # The object is the parent's: it may not even be freed here.
            _parents.append(cell.value)

    # --- On the worker ------------------------------------------------------------------------

    def empty(self, cell: Cell) -> None:
        """Drop a proxy's object."""
        cell.empty()

    def leave(self, value: Any) -> Any:
        """Return host values as they are, tensors as host copies, other objects as proxies."""
        if value is END or type(value) in _leave.EXACT:
            return value
        root = None if self.root is None else self.root()
        return _responses.leave(self, value, known=None if root is None else {self.root_id: root})

    def enter(self, value: Any) -> Any:
        """Return an argument as the object expects it: proxies as what they stand for."""
        if type(value) in _leave.EXACT:
            return value
        if hasattr(type(value), "_onelane_is_proxy"):
            cell: Cell = object.__getattribute__(value, "_onelane_cell")
            return cell.get()
        if type(value) in (tuple, list):
            return type(value)([self.enter(part) for part in value])
        if type(value) is dict:
            return {key: self.enter(part) for key, part in value.items()}
        if self.moves_inputs and _tree.is_tensor(value):
            return _collate.place(self, value)
        return value

    def invoke(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call `function` with arguments as they came from another thread."""
        if not kwargs:
            return function(*[self.enter(arg) for arg in args])
        return function(*[self.enter(arg) for arg in args], **self.enter(dict(kwargs)))


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


_CURE = (
    "use `await proxy.method.acall(...)` for a call, `await onelane.aget(proxy, name)` for an "
    "attribute and `async for` for a stream"
)
_parents: list[Any] = []

__all__ = ["END", "Cell", "Home", "Lane", "Makers"]
