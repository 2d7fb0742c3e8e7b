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
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, NamedTuple

from onelane._caller import Caller
from onelane._lane import END, Cell, Lane
from onelane._session import session
from onelane._stats import GuardStats, Health

_UNARY = (
    *("neg", "pos", "abs", "invert", "int", "float", "complex", "index", "round", "trunc", "floor"),
    *("ceil", "len", "bool", "str", "format", "bytes", "reversed", "iter", "enter", "exit"),
    *("contains", "getitem", "setitem", "delitem", "call", "array", "length_hint"),
)
_BINARY = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift"),
    *("rshift", "and", "xor", "or"),
)
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
    _onelane_facts: ClassVar[dict[str, Facts]] = {}
    _onelane_cell: Cell
    _onelane_lane: Lane
    _onelane_kind: type

    def __init__(self, lane: Lane, value: Any, make: Callable[[], Any] | None = None) -> None:
        cell = Cell(value, make)
        object.__setattr__(self, "_onelane_cell", cell)
        object.__setattr__(self, "_onelane_lane", lane)
        object.__setattr__(self, "_onelane_kind", type(value))
        weakref.finalize(self, lane.release, cell)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return kind_of(self)

    @property
    def __signature__(self) -> inspect.Signature:
        call = inspect.getattr_static(kind_of(self), "__call__", None)
        if not callable(call):
            raise AttributeError("__signature__")
        return without_self(call)

    def __getattr__(self, name: str) -> Any:
        found, read = self._onelane_find(name)
        return found if read is None else lane_of(self).call(read)

    def _onelane_find(self, name: str) -> tuple[Any, Callable[[], Any] | None]:
        """Return an attribute, or what reads it on the worker."""
        lane, cell = lane_of(self), cell_of(self)
        batching = lane.batching(self, name)
        if batching is not None:
            return lane.make.batched_method(self, name, batching), None
        if lane.methods is not None and name not in lane.methods:
            return getattr(cell.present(), name), None
        facts = facts_of(self, name)
        if facts.is_method:
            return lane.make.method(self, name), None
        own = OWN.get(name) if facts.static is None else None
        if own is None or not _is_root(self):
            return None, lambda: getattr(cell.present(), name)
        ours = functools.partial(own, self)
        says_itself = hasattr(kind_of(self), "__getattr__")
        if not says_itself and inspect.getattr_static(cell.value, name, _MISSING) is _MISSING:
            # Told without the object's code: this does not wait for the worker.
            return ours, None

        def read() -> Any:
            theirs = getattr(cell.present(), name, _MISSING)
            return _OURS if theirs is _MISSING else theirs

        if lane.closed:
            return ours, None
        found = lane.call(read)
        return ours if found is _OURS else found, None

    def __enter__(self) -> Any:
        _check_root(self)
        return self

    def __exit__(self, *error: object) -> None:
        close(self)

    async def __aenter__(self) -> Any:
        _check_root(self)
        return self

    async def __aexit__(self, *error: object) -> None:
        await aclose(self)

    def __setattr__(self, name: str, value: Any) -> None:
        lane, cell = lane_of(self), cell_of(self)
        lane.call(lambda: setattr(cell.present(), name, lane.enter(value)))

    def __delattr__(self, name: str) -> None:
        cell = cell_of(self)
        lane_of(self).call(lambda: delattr(cell.present(), name))

    def __eq__(self, other: object) -> Any:
        mine = cell_of(self).value
        theirs = cell_of(other).value if issubclass(type(other), Guarded) else other  # type: ignore[arg-type]
        return True if mine is theirs else NotImplemented

    def __hash__(self) -> int:
        return object.__hash__(cell_of(self).value)

    def __repr__(self) -> str:
        kind = kind_of(self)
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
        return list(lane_of(self).call(lambda: dir(cell.present())))


def _applied(proxy: Guarded, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a special method of the object, as Python finds it: on its class."""
    lane, cell = lane_of(proxy), cell_of(proxy)

    def apply() -> Any:
        value = cell.present()
        return lane.invoke(functools.partial(getattr(type(value), name), value), args, kwargs)

    return lane.call(apply)


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: Guarded, *args: Any, **kwargs: Any) -> Any:
        return _applied(self, name, *args, **kwargs)

    method.__name__ = method.__qualname__ = name
    return method


class _Call:
    """`__call__` of a proxy: a method like any other, with `acall` and `options`."""

    def __get__(self, proxy: Guarded | None, kind: type) -> Any:
        if proxy is None:
            return self
        lane = lane_of(proxy)
        batching = lane.batching(proxy, "__call__")
        if batching is not None:
            return lane.make.batched_method(proxy, "__call__", batching)
        return lane.make.method(proxy, "__call__")

    def __call__(self, proxy: Guarded, *args: Any, **kwargs: Any) -> Any:
        return self.__get__(proxy, type(proxy))(*args, **kwargs)


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
        "_onelane_facts": {},
    }
    for name in _FORWARDED:
        theirs = getattr(kind, name, None) if name != "__call__" else _called(kind)
        if theirs is not None and theirs is not getattr(object, name, None):
            members[name] = _forwarded(name)
    if "__eq__" in members:
        members["__hash__"] = None if kind.__hash__ is None else _forwarded("__hash__")
    if "__call__" in members:
        members["__call__"] = _Call()
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


def kind_of(proxy: Guarded) -> type:
    """Return the class of what a proxy stands for."""
    kind: type = object.__getattribute__(proxy, "_onelane_kind")
    return kind


class Facts(NamedTuple):
    """What a class says of one of its attributes."""

    static: Any
    qualname: str
    module: Any
    doc: str | None
    is_method: bool
    is_async: bool
    is_stream: bool


def facts_of(proxy: Guarded, name: str) -> Facts:
    """Return what the class of an object says of an attribute; looked up once for each class."""
    known: dict[str, Facts] = type(proxy)._onelane_facts
    facts = known.get(name)
    if facts is None:
        static = inspect.getattr_static(kind_of(proxy), name, None)
        facts = Facts(
            static,
            getattr(static, "__qualname__", name),
            getattr(static, "__module__", None),
            getattr(static, "__doc__", None),
            isinstance(static, (types.FunctionType, functools.partialmethod)),
            inspect.iscoroutinefunction(static),
            inspect.isgeneratorfunction(static) or inspect.isasyncgenfunction(static),
        )
        # Of a class that is patched with another kind of function later, this is not right.
        if "_onelane_facts" in vars(type(proxy)) and (facts.is_method or name == "__call__"):
            known[name] = facts
    return facts


def without_self(function: Any) -> inspect.Signature:
    """Return the signature of a method as its callers see it."""
    signature = inspect.signature(function)
    if isinstance(function, staticmethod):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])


class _Ours:
    """Says that an object has no attribute of that name, so that it is the proxy's."""

    _onelane_is_proxy = True


_OURS, _MISSING = _Ours(), object()


def _is_root(proxy: Guarded) -> bool:
    root = lane_of(proxy).root
    return root is not None and root() is proxy


def _check_root(proxy: Any) -> Lane:
    if not hasattr(type(proxy), "_onelane_is_proxy") or not _is_root(proxy):
        raise TypeError(f"this is for what guard() returned, and not for {proxy!r}")
    return lane_of(proxy)


def close(proxy: Any, timeout: float | None = None) -> bool:
    """Close what `guard` returned: refuse new calls, run those that wait, drop the object, wait.

    The object is dropped on the worker; parts of it that other proxies stand for live on until
    those go. Later calls, and the next items of its streams, raise `QueueClosed`. `proxy.close()`
    and the end of `with proxy:` are the same, unless the object has a `close`, or an `__enter__`,
    of its own. timeout: seconds to wait. Returns whether it has ended; if not, it goes on.
    """
    return _check_root(proxy).close(timeout, cell_of(proxy))


async def aclose(proxy: Any, timeout: float | None = None) -> bool:
    """Do what `close` does, from an event loop; `async with proxy:`."""
    lane = _check_root(proxy)
    return await asyncio.get_running_loop().run_in_executor(
        None, lane.close, timeout, cell_of(proxy)
    )


def aget(proxy: Any, name: str) -> Coroutine[Any, Any, Any]:
    """Await an attribute of a guarded object; `proxy.name` waits, and an event loop with it."""
    if not hasattr(type(proxy), "_onelane_is_proxy"):
        return _attribute(proxy, name)
    own = getattr(type(proxy), "_onelane_aget", None)
    if own is not None:
        asked: Coroutine[Any, Any, Any] = own(proxy, name)
        return asked
    return _aget(proxy, name, lane_of(proxy).executor.caller())


async def _attribute(value: Any, name: str) -> Any:
    return getattr(value, name)


async def _aget(proxy: Guarded, name: str, caller: Caller) -> Any:
    found, read = proxy._onelane_find(name)
    return found if read is None else await lane_of(proxy).acall(caller, read)


def stats(proxy: Any) -> GuardStats:
    """Return the statistics of a guarded object's calls.

    `proxy.stats()` is the same, unless the object has a `stats` of its own.
    """
    lane = _check_root(proxy)
    assert lane.calls is not None
    batched = {name: batching.queue.stats() for name, batching in lane.batched.items()}
    return GuardStats(lane.calls.stats(), batched)


def health(proxy: Any) -> Health:
    """Return whether a guarded object's calls are answered: its worst health, batches included."""
    lane = _check_root(proxy)
    assert lane.calls is not None
    order = ("closed", "failed", "stalled", "rebuilding", "ready")
    queues = [lane.calls, *(batching.queue for batching in lane.batched.values())]
    found: list[Health] = [queue.health() for queue in queues]
    return min(found, key=lambda one: order.index(one.state))


def _session(proxy: Any) -> Any:
    return session(proxy)


# What a proxy has that its object has not, unless that has one of its own.
OWN: dict[str, Callable[..., Any]] = {
    "session": _session,
    "close": close,
    "aclose": aclose,
    "stats": stats,
}

__all__ = [
    "OWN",
    "Facts",
    "Guarded",
    "aclose",
    "aget",
    "cell_of",
    "close",
    "facts_of",
    "health",
    "kind_of",
    "lane_of",
    "proxy",
    "stats",
    "without_self",
]
