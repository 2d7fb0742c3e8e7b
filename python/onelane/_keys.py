"""Batch keys: requests of equal keys share a batch, so a key has all that a model could see.

`==` says too little: 1, 1.0 and True are equal, and so are 0.0 and -0.0. And it may say nothing at
all: an array's gives an array. `of_value` makes a key of plain values that does not rely on it.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import itertools
import struct
import threading
from collections.abc import Mapping
from typing import Any

from onelane._modules import imported

_EXACT = (type(None), bool, int, str, bytes, type(...))
_KEYS_KEPT = 4096


class Keys:
    """Gives equal batch keys equal numbers, so that the core compares numbers.

    Bounded: after a while it starts anew. Numbers are never used twice, so all that is lost is
    that requests from before and after do not share a batch.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._next = itertools.count()
        self._lock = threading.Lock()

    def number(self, key: Any) -> int:
        """Return the number of a key; of `ALONE` one that nothing else has."""
        if key is ALONE:
            return next(self._next)
        number = self._numbers.get(key)
        if number is not None:
            return number
        with self._lock:
            if len(self._numbers) >= _KEYS_KEPT:
                self._numbers = {}
            return self._numbers.setdefault(key, next(self._next))


class _Alone:
    """The key of a request that shares its batch with no other."""

    def __repr__(self) -> str:
        return "ALONE"


ALONE = _Alone()


class _Comparable:
    """A value of a type that is not known here: equal if it says so, with a plain True."""

    __slots__ = ("_hash", "_value")

    def __init__(self, value: Any) -> None:
        self._value, self._hash = value, hash((type(value), value))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Comparable) or type(self._value) is not type(other._value):
            return False
        if self._value is other._value:
            return True
        try:
            return (self._value == other._value) is True
        except Exception:
            # It cannot be compared, so it is another.
            return False


def of_value(value: Any) -> Any:
    """Return a hashable key of a plain value, or of containers of such.

    Raises `TypeError` for what can be neither taken apart nor hashed: arrays and tensors among it.
    """
    kind = type(value)
    if kind in _EXACT:
        return (kind, value)
    if kind is float:
        # Tells the signs of zeros apart, and makes a NaN equal to itself.
        return (kind, struct.pack("d", value))
    if kind is complex:
        return (kind, struct.pack("dd", value.real, value.imag))
    if isinstance(value, enum.Enum):
        return (kind, value.name or repr(value))
    if isinstance(value, decimal.Decimal):
        return (kind, value.as_tuple())
    if isinstance(value, (datetime.datetime, datetime.time)):
        return (kind, repr(value))
    if isinstance(value, Mapping):
        return (kind, *((of_value(key), of_value(part)) for key, part in value.items()))
    if isinstance(value, (tuple, list)):
        return (kind, *(of_value(part) for part in value))
    if isinstance(value, (set, frozenset)):
        return (kind, frozenset(of_value(part) for part in value))
    numpy, torch = imported("numpy"), imported("torch")
    if numpy is not None and isinstance(value, numpy.generic) and not value.dtype.hasobject:
        return (kind, value.dtype.str, value.tobytes())
    if torch is not None and isinstance(value, torch.Tensor):
        raise TypeError("a tensor has no key")
    return _Comparable(value)


def of_context(value: Any) -> Any:
    """Return a key of a context variable's value: one that has none is equal to itself alone."""
    try:
        return of_value(value)
    except TypeError:
        return _Same(value)


class _Same:
    """A value that is equal to itself alone."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


__all__ = ["ALONE", "Keys", "of_context", "of_value"]
