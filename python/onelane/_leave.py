"""Results on their way from the worker to a caller.

INVARIANT: what has left shares no memory with the model, at any depth, and holds nothing of the
device: tensors are host copies, arrays and buffers copies; what can be neither is a proxy.
"""

from __future__ import annotations

import array
import copy
import datetime
import decimal
import enum
import fractions
import ipaddress
import re
import types
import uuid
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from pathlib import PurePath
from typing import Any

from onelane import _failure, _tree
from onelane._modules import imported

EXACT = frozenset((type(None), bool, int, float, complex, str, bytes))
# Nothing of these can change or belong to a device, but for what a subclass adds.
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(...),
    type(NotImplemented), enum.Enum, type, types.ModuleType, types.GenericAlias, PurePath,
    datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal,
    fractions.Fraction, uuid.UUID, re.Pattern, re.Match, ipaddress.IPv4Address,
    ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
)  # fmt: skip
_SHARED = (enum.Enum, type, types.ModuleType)
_TORCH_PLAIN = frozenset(("dtype", "device", "layout", "memory_format", "finfo", "iinfo"))
_VIEWS = (KeysView, ValuesView, ItemsView)


def is_plain(value: Any) -> bool:
    """Whether a value may leave as it is."""
    if type(value) in EXACT:
        return True
    if isinstance(value, _PLAIN):
        state = getattr(value, "__dict__", None)
        # A subclass may add anything: a text with its embedding.
        return not state or isinstance(value, _SHARED) or all(map(is_plain, state.values()))
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    module, name = type(value).__module__, type(value).__name__
    if module == "torch":
        return name in _TORCH_PLAIN
    numpy = imported("numpy")
    return numpy is not None and isinstance(value, (numpy.generic, numpy.dtype))


class Departure:
    """Makes one result fit to leave.

    tensor: makes the host copy of a tensor.
    other: what becomes of objects that are neither plain, tensors, nor containers of such.
    known: what becomes of objects, by address, that live as long as this.
    """

    def __init__(
        self,
        tensor: Callable[[Any], Any],
        other: Callable[[Departure, Any], Any],
        known: dict[int, Any] | None = None,
    ) -> None:
        self.tensor, self._other = tensor, other
        self._done: dict[int, Any] = dict(known or {})
        # What has an entry must live as long as that: an address may be used again.
        self._kept: list[Any] = []

    def __call__(self, value: Any) -> Any:
        if type(value) in EXACT or hasattr(type(value), "_onelane_is_proxy") or is_plain(value):
            return value
        done = self._done.get(id(value), self)
        if done is not self:
            return done
        left = self._leave(value)
        self._note(value, left)
        return left

    def _note(self, value: Any, left: Any) -> None:
        self._done[id(value)] = left
        self._kept.append(value)

    def _leave(self, value: Any) -> Any:
        if _tree.is_tensor(value):
            return self.tensor(value)
        if _tree.is_array(value):
            return self._array(value)
        if isinstance(value, BaseException):
            _failure.leave(value)
            return value
        if isinstance(value, (bytearray, array.array)):
            return copy.copy(value)
        if isinstance(value, memoryview):
            return _memoryview(value)
        if is_image(value):
            return _image(value)
        if isinstance(value, tuple):
            return self._with_state(
                value, _tree.rebuild_sequence(type(value), [self(part) for part in value])
            )
        if isinstance(value, list):
            return self._list(value)
        if isinstance(value, (set, frozenset)):
            return self._with_state(value, type(value)(self(part) for part in value))
        if isinstance(value, deque):
            return deque((self(part) for part in value), value.maxlen)
        if isinstance(value, _VIEWS):
            return self._view(value)
        if isinstance(value, types.MappingProxyType):
            return types.MappingProxyType({key: self(part) for key, part in value.items()})
        if isinstance(value, Mapping):
            return self._mapping(value)
        if _is_record(value):
            return self.rebuilt(value)
        return self._other(self, value)

    def _array(self, value: Any) -> Any:
        owned = value.copy(order="K")
        if owned.dtype == object:
            flat = owned.reshape(-1)
            for index, part in enumerate(flat):
                flat[index] = self(part)
            return flat.reshape(owned.shape)
        return owned

    def _list(self, value: list[Any]) -> Any:
        if type(value) is list:
            left: list[Any] = []
            self._note(value, left)
            left.extend(self(part) for part in value)
            return left
        return self._with_state(
            value, _tree.rebuild_sequence(type(value), [self(part) for part in value])
        )

    def _mapping(self, value: Mapping[Any, Any]) -> Any:
        if type(value) is dict:
            left: dict[Any, Any] = {}
            self._note(value, left)
            for key, part in value.items():
                left[self(key)] = self(part)
            return left
        parts = {key: self(part) for key, part in value.items()}
        return _tree.rebuild_mapping(value, parts)

    def _view(self, value: Any) -> Any:
        parts = [self(part) for part in value]
        if isinstance(value, KeysView):
            return dict.fromkeys(parts).keys()
        if isinstance(value, ItemsView):
            return dict(parts).items()
        return dict(enumerate(parts)).values()

    def _with_state(self, value: Any, left: Any) -> Any:
        """Give a rebuilt container what else the first one had."""
        for name, part in getattr(value, "__dict__", {}).items():
            if name not in getattr(left, "__dict__", {}):
                object.__setattr__(left, name, self(part))
        return left

    def rebuilt(self, value: Any) -> Any:
        """Return an object of the same type whose attributes have left; not made by its class."""
        left = copy.copy(value)
        self._note(value, left)
        for name, part in state_of(value):
            object.__setattr__(left, name, self(part))
        return left


def state_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield an object's attributes, of its dict and its slots."""
    yield from list(getattr(value, "__dict__", {}).items())
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                name = f"_{base.__name__.lstrip('_')}{name}" if hidden else name
                part = getattr(value, name, _MISSING)
                if part is not _MISSING:
                    yield name, part


_MISSING = object()


def holds_memory(value: Any, depth: int = 8) -> bool:
    """Whether an object holds tensors, arrays or buffers, as far as Python's attributes show."""
    if depth == 0 or is_plain(value):
        return False
    if _tree.is_tensor(value) or _tree.is_array(value):
        return True
    if isinstance(value, (bytearray, memoryview, array.array)):
        return True
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        parts = list(value)
    else:
        parts = []
    parts += [part for _, part in state_of(value)]
    return any(holds_memory(part, depth - 1) for part in parts)


def host_copy(departure: Departure, value: Any) -> Any:
    """Let an object of an unknown type leave: itself, or a copy if it holds memory of the model."""
    if isinstance(value, (types.FunctionType, types.MethodType)) or not holds_memory(value):
        return value
    try:
        return departure.rebuilt(value)
    except Exception:
        return value


def is_image(value: Any) -> bool:
    """Whether a value is an image of PIL's; does not load it."""
    image = imported("PIL.Image")
    return image is not None and isinstance(value, image.Image)


def _image(value: Any) -> Any:
    owned = value.copy()
    owned.format = value.format
    return owned


def _memoryview(value: memoryview) -> memoryview:
    owned = memoryview(value.tobytes())
    if value.format == "B" and value.ndim == 1:
        return owned
    return owned.cast(value.format, value.shape)  # type: ignore[call-overload, no-any-return]


def _is_record(value: Any) -> bool:
    """Whether an object is its fields: a dataclass, of attrs or pydantic, a namespace."""
    kind = type(value)
    return (
        _tree.is_dataclass(value)
        or isinstance(value, types.SimpleNamespace)
        or hasattr(kind, "__attrs_attrs__")
        or hasattr(kind, "__pydantic_fields__")
    )


__all__ = ["EXACT", "Departure", "holds_memory", "host_copy", "is_image", "is_plain", "state_of"]
