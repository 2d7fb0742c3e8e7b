"""What all proxies of one guarded object share: its worker, its turns, how values cross over."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import types
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from onelane import _collate, _leave, _responses, _tree
from onelane._exclusive import Exclusive, Hold
from onelane.errors import EngineLost, ForkedProcess, QueueClosed

END = object()


class Home(Protocol):
    """The executor of the worker that an object lives on, as its proxies see it."""

    @property
    def device(self) -> str:
        """The name of the device."""

    @property
    def is_worker(self) -> bool:
        """Whether the calling thread is a worker of it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run something on the worker and return its future."""

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run something on the worker and return what it returns."""

    async def acall(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do what `call` does, from an event loop."""

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

    __slots__ = ("__weakref__", "make", "releases", "value")

    def __init__(self, value: Any, make: Callable[[], Any] | None = None) -> None:
        self.value = value
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

    def empty(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Drop the object, here, on the worker; a generator is closed first."""
        value, self.value, self.make = self.value, None, None
        try:
            if isinstance(value, types.GeneratorType):
                value.close()
            elif isinstance(value, types.AsyncGeneratorType) and loop is not None:
                loop.run_until_complete(value.aclose())
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
        self._loop: asyncio.AbstractEventLoop | None = None
        # What `_collate` asks of its target.
        self.device, self.to_cpu, self.copy_outputs = home.device, True, True
        self.torch_device: Any = None
        self.graphs = None
        self.wrap = functools.partial(make.wrap, self)

    # --- From any thread ----------------------------------------------------------------------

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function` on the worker; what it returns comes back as it may leave the worker."""
        run = self.executor.call
        if self.executor.is_worker:
            return run(lambda: self.leave(function(*args)))
        hold = self.turns.wait(self.turns.share())
        try:
            return run(lambda: self.leave(function(*args)))
        finally:
            self.turns.leave(hold)

    async def acall(self, function: Callable[..., Any], *args: Any) -> Any:
        """Do what `call` does, from an event loop."""
        hold = await self.turns.wait_async(self.turns.share())
        try:
            return await self.executor.acall(lambda: self.leave(function(*args)))
        finally:
            self.turns.leave(hold)

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
        cell.empty(self._loop)

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Run a coroutine of the object's to its end, in an event loop of the worker."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(awaitable)

    def leave(self, value: Any) -> Any:
        """Return host values as they are, tensors as host copies, other objects as proxies."""
        if value is END or type(value) in _leave.EXACT:
            return value
        root = None if self.root is None else self.root()
        return _responses.leave(self, value, known=None if root is None else {self.root_id: root})

    def enter(self, value: Any) -> Any:
        """Return an argument as the object expects it: proxies as what they stand for."""
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
        return function(*(self.enter(a) for a in args), **self.enter(dict(kwargs)))


_parents: list[Any] = []

__all__ = ["END", "Cell", "Home", "Lane", "Makers"]
