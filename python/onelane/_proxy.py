"""A proxy: stands for an object on the worker.

INVARIANT: no code of the object's runs anywhere but on the worker; what a proxy says of itself
(class, signature, docs) it reads off the class.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from onelane._exclusive import Hold, here
from onelane._lane import END, Cell, Lane
from onelane._leave import Departure

if TYPE_CHECKING:
    from onelane._executor import DeviceExecutor

_UNARY = [
    "neg",
    "pos",
    "abs",
    "invert",
    "int",
    "float",
    "complex",
    "index",
    "round",
    "trunc",
    "floor",
    "ceil",
    "len",
    "bool",
    "str",
    "format",
    "bytes",
    "reversed",
    "iter",
    "enter",
    "exit",
    "contains",
    "getitem",
    "setitem",
    "delitem",
    "call",
    "array",
    "length_hint",
]
_BINARY = ["add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "xor", "or"]  # fmt: skip
_COMPARED = ("lt", "le", "gt", "ge", "eq", "ne")
_FORWARDED = (
    *(f"__{name}__" for name in (*_UNARY, *_COMPARED, *_BINARY)),
    *(f"__{prefix}{name}__" for prefix in "ri" for name in _BINARY),
)


class Guarded:
    """Stands for an object on the worker. Made by `guard`.

    Reading an attribute, calling, indexing, iterating and so on happen on the worker. Plain values
    come back as they are, tensors as host copies, everything else as another such proxy. The object
    is dropped on the worker when its proxy goes.
    """

    __slots__ = ("__weakref__", "_onelane_cell", "_onelane_kind", "_onelane_lane")

    _onelane_is_proxy = True
    _onelane_cell: Cell
    _onelane_lane: Lane
    _onelane_kind: type

    def __init__(self, lane: Lane, value: Any, make: Callable[[], Any] | None = None) -> None:
        cell = Cell(value, make)
        object.__setattr__(self, "_onelane_cell", cell)
        object.__setattr__(self, "_onelane_lane", lane)
        object.__setattr__(self, "_onelane_kind", type(value))
        weakref.finalize(self, lane.release, cell)

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return _kind(self)

    @property
    def __signature__(self) -> inspect.Signature:
        call = inspect.getattr_static(_kind(self), "__call__", None)
        if not callable(call):
            raise AttributeError("__signature__")
        return _without_self(call)

    def __getattr__(self, name: str) -> Any:
        lane, cell = lane_of(self), cell_of(self)
        batching = lane.batching(self, name)
        if batching is not None:
            return BatchedMethod(self, name, batching)
        if lane.methods is not None and name not in lane.methods:
            return getattr(cell.value, name)
        static = inspect.getattr_static(_kind(self), name, None)
        if isinstance(static, (types.FunctionType, functools.partialmethod)):
            return Method(self, name)
        if name == "session" and static is None:
            return self._onelane_session()
        return lane.call(lambda: getattr(cell.value, name))

    def _onelane_session(self) -> Any:
        """Return the object's own `session`, or what begins one of the proxy."""
        from onelane._session import session

        cell, missing = cell_of(self), object()
        found = lane_of(self).executor.call(lambda: getattr(cell.value, "session", missing))
        if found is missing:
            return functools.partial(session, self)
        return lane_of(self).call(lambda: cell.value.session)

    def __setattr__(self, name: str, value: Any) -> None:
        lane, cell = lane_of(self), cell_of(self)
        lane.call(lambda: setattr(cell.value, name, lane.enter(value)))

    def __delattr__(self, name: str) -> None:
        cell = cell_of(self)
        lane_of(self).call(lambda: delattr(cell.value, name))

    def __eq__(self, other: object) -> Any:
        mine = cell_of(self).value
        theirs = cell_of(other).value if issubclass(type(other), Guarded) else other  # type: ignore[arg-type]
        return True if mine is theirs else NotImplemented

    def __hash__(self) -> int:
        return object.__hash__(cell_of(self).value)

    def __repr__(self) -> str:
        kind = _kind(self)
        device = lane_of(self).executor.device
        return f"<guarded {kind.__module__}.{kind.__qualname__} on {device!r}>"

    def __str__(self) -> str:
        return str(_applied(self, "__str__"))

    def __copy__(self) -> Any:
        import copy

        cell = cell_of(self)
        return lane_of(self).call(lambda: copy.copy(cell.value))

    def __deepcopy__(self, memo: Any) -> Any:
        import copy

        cell = cell_of(self)
        return lane_of(self).call(lambda: copy.deepcopy(cell.value))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a guarded object cannot be pickled: it belongs to a worker thread")

    def __dir__(self) -> list[str]:
        cell = cell_of(self)
        return list(lane_of(self).call(lambda: dir(cell.value)))


def _applied(proxy: Guarded, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a special method of the object, as Python finds it: on its class."""
    lane, cell = lane_of(proxy), cell_of(proxy)

    def apply() -> Any:
        value = cell.value
        return lane.invoke(functools.partial(getattr(type(value), name), value), args, kwargs)

    return lane.call(apply)


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: Guarded, *args: Any, **kwargs: Any) -> Any:
        return _applied(self, name, *args, **kwargs)

    method.__name__ = method.__qualname__ = name
    return method


def _call(self: Guarded, *args: Any, **kwargs: Any) -> Any:
    batching = lane_of(self).batching(self, "__call__")
    if batching is not None:
        return BatchedMethod(self, "__call__", batching)(*args, **kwargs)
    lane, cell = lane_of(self), cell_of(self)
    return lane.call(lambda: lane.invoke(cell.value, args, kwargs))


def _next(self: Guarded) -> Any:
    cell = cell_of(self)
    item = lane_of(self).call(lambda: next(cell.value, END))
    if item is END:
        raise StopIteration
    return item


_kinds: weakref.WeakKeyDictionary[type, type[Guarded]] = weakref.WeakKeyDictionary()
_kinds_lock = threading.Lock()


def proxy(lane: Lane, value: Any) -> Guarded:
    """Return a proxy of an object that lives on the worker; made there."""
    kind = type(value)
    with _kinds_lock:
        made = _kinds.get(kind)
        if made is None:
            made = _kinds[kind] = _made_for(kind)
    return made(lane, value)


def _made_for(kind: type) -> type[Guarded]:
    """Make the class of the proxies of a class: it has the special methods that this one has."""
    members: dict[str, Any] = {
        "__slots__": (),
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
    }
    for name in _FORWARDED:
        theirs = getattr(kind, name, None) if name != "__call__" else _called(kind)
        if theirs is not None and theirs is not getattr(object, name, None):
            members[name] = _forwarded(name)
    if "__eq__" in members:
        members["__hash__"] = None if kind.__hash__ is None else _forwarded("__hash__")
    if "__call__" in members:
        members["__call__"] = _call
    if getattr(kind, "__next__", None) is not None:
        members["__next__"] = _next
    made = type(kind.__name__, (Guarded,), members)
    made.__qualname__ = kind.__qualname__
    return made


def _called(kind: type) -> Any:
    return next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)


def cell_of(proxy: Guarded) -> Cell:
    """Return the cell of a proxy."""
    cell: Cell = object.__getattribute__(proxy, "_onelane_cell")
    return cell


def lane_of(proxy: Guarded) -> Lane:
    """Return the lane of a proxy."""
    lane: Lane = object.__getattribute__(proxy, "_onelane_lane")
    return lane


def _kind(proxy: Guarded) -> type:
    kind: type = object.__getattribute__(proxy, "_onelane_kind")
    return kind


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

    @property
    def __class__(self) -> type:  # type: ignore[override]
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


class Method:
    """A method of a guarded object: looked up and called in one visit to the worker."""

    def __init__(self, proxy: Guarded, name: str) -> None:
        self._proxy, self._name = proxy, name
        self._static: Any = inspect.getattr_static(_kind(proxy), name, None)
        self.__name__ = name
        self.__qualname__ = getattr(self._static, "__qualname__", name)
        self.__module__ = getattr(self._static, "__module__", None)  # type: ignore[assignment]
        self.__doc__ = getattr(self._static, "__doc__", None)

    @property
    def __signature__(self) -> inspect.Signature:
        return _without_self(self._static)

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
        _without_self(static).bind(*args, **kwargs)
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


def wrap(lane: Lane, departure: Departure, value: Any) -> Any:
    """Return a proxy of an object that cannot leave the worker; made there."""
    if inspect.iscoroutine(value):
        return departure(lane.run(value))
    if isinstance(value, (Iterator, types.AsyncGeneratorType)):
        return GuardedIterator(lane, value)
    return proxy(lane, value)


def lane_on(
    home: DeviceExecutor,
    methods: Iterable[str] | None = None,
    exclusive: Iterable[str] | bool | None = None,
) -> Lane:
    """Return the lane of an object on a device."""
    return Lane(home, wrap, methods, exclusive)


def _without_self(function: Any) -> inspect.Signature:
    signature = inspect.signature(function)
    if isinstance(function, staticmethod):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])


__all__ = [
    "BatchedMethod",
    "Guarded",
    "GuardedIterator",
    "Method",
    "cell_of",
    "lane_of",
    "lane_on",
    "proxy",
    "wrap",
]
