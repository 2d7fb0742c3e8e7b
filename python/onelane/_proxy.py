"""A proxy: stands for an object on the worker.

INVARIANT: no code of the object's runs anywhere but on the worker; what a proxy says of itself
(class, signature, docs) it reads off the class.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

from onelane._lane import END, Cell, Lane
from onelane._session import session

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
        lane, cell = lane_of(self), cell_of(self)
        batching = lane.batching(self, name)
        if batching is not None:
            return lane.make.batched_method(self, name, batching)
        if lane.methods is not None and name not in lane.methods:
            return getattr(cell.value, name)
        static = inspect.getattr_static(kind_of(self), name, None)
        if isinstance(static, (types.FunctionType, functools.partialmethod)):
            return lane.make.method(self, name)
        if name == "session" and static is None:
            return self._onelane_session()
        return lane.call(lambda: getattr(cell.value, name))

    def _onelane_session(self) -> Any:
        """Return the object's own `session`, or what begins one of the proxy."""
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
    lane, cell = lane_of(self), cell_of(self)
    batching = lane.batching(self, "__call__")
    if batching is not None:
        return lane.make.batched_method(self, "__call__", batching)(*args, **kwargs)
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


def kind_of(proxy: Guarded) -> type:
    """Return the class of what a proxy stands for."""
    kind: type = object.__getattribute__(proxy, "_onelane_kind")
    return kind


def without_self(function: Any) -> inspect.Signature:
    """Return the signature of a method as its callers see it."""
    signature = inspect.signature(function)
    if isinstance(function, staticmethod):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])


__all__ = ["Guarded", "cell_of", "kind_of", "lane_of", "proxy", "without_self"]
