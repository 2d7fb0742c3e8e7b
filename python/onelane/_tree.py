"""Nested inputs and outputs: taking tensors out, putting them back, splitting them by rows.

Containers are mappings, tuples (named ones too), lists and dataclasses (`ModelOutput` is one).
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from onelane import _keys
from onelane._modules import imported
from onelane.errors import NotBatchable

Spec = tuple[Any, ...]


def is_tensor(value: Any) -> bool:
    """Whether `value` is a PyTorch tensor; does not load PyTorch."""
    torch = imported("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: Any) -> bool:
    """Whether `value` is a NumPy array; does not load NumPy."""
    numpy = imported("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def flatten(value: Any, leaves: list[Any], names: list[str], name: str = "") -> Spec:
    """Append the tensors and arrays in `value` to `leaves`, their names to `names`.

    Returns the rest: `key` makes it comparable.
    """
    if is_tensor(value) or is_array(value):
        leaves.append(value)
        names.append(name)
        return ("leaf",)
    if isinstance(value, Mapping):
        keys = tuple(value)
        return ("dict", keys, *(flatten(value[key], leaves, names, str(key)) for key in keys))
    if isinstance(value, (tuple, list)):
        return (type(value), *(flatten(part, leaves, names, name) for part in value))
    try:
        hash(value)
        _keys.of_value(value)
    except TypeError:
        raise TypeError(
            f"input {name or 'x'!r} is of type {type(value).__name__}, which can be neither "
            f"batched nor compared: give tensors, arrays, plain values, or containers of them; or "
            f"use requests=onelane.Items(), or requests=onelane.Each()"
        ) from None
    return ("value", value)


def key(spec: Spec) -> Any:
    """Return a hashable key of what `flatten` has described."""
    kind = spec[0]
    if kind == "leaf":
        return kind
    if kind == "value":
        return _keys.of_value(spec[1])
    if kind == "dict":
        names = tuple(_keys.of_value(name) for name in spec[1])
        return (kind, names, *(key(part) for part in spec[2:]))
    return (kind, *(key(part) for part in spec[1:]))


# What `flatten` says of `((x,), {})`.
ONE_TENSOR: Spec = (tuple, (tuple, ("leaf",)), ("dict", ()))


def unflatten(spec: Spec, leaves: Iterator[Any]) -> Any:
    """Put tensors back into what `flatten` has described. Mappings come back as dicts."""
    kind = spec[0]
    if kind == "leaf":
        return next(leaves)
    if kind == "value":
        return spec[1]
    if kind == "dict":
        return {key: unflatten(part, leaves) for key, part in zip(spec[1], spec[2:], strict=True)}
    return rebuild_sequence(kind, [unflatten(part, leaves) for part in spec[1:]])


def rebuild_sequence(kind: type, parts: list[Any]) -> Any:
    """Make a list, tuple or named tuple of the given type."""
    if hasattr(kind, "_fields"):
        return kind(*parts)
    return kind(parts)


def rebuild_mapping(like: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """Make a mapping like the given one."""
    if type(like) is dict:
        return parts
    if dataclasses.is_dataclass(like):
        try:
            return type(like)(**parts)
        except TypeError:
            # A key that is no field: the copy below has it.
            pass
    if isinstance(like, MutableMapping):
        # Its other attributes, such as the factory of a defaultdict, go with it.
        try:
            rebuilt = copy.copy(like)
            for key, part in parts.items():
                rebuilt[key] = part
        except Exception:
            return parts
        return rebuilt
    try:
        return type(like)(parts)  # type: ignore[call-arg]
    except TypeError:
        return parts


def map_tensors(value: Any, change: Callable[[Any], Any], *, arrays: bool = False) -> Any:
    """Apply `change` to each tensor in nested containers; everything else stays as it is.

    arrays: apply it to NumPy arrays too.
    """
    if is_tensor(value) or (arrays and is_array(value)):
        return change(value)
    if isinstance(value, Mapping):
        if not any(_may_hold_tensors(part) for part in value.values()):
            return value
        return rebuild_mapping(
            value, {k: map_tensors(v, change, arrays=arrays) for k, v in value.items()}
        )
    if isinstance(value, (tuple, list)):
        if not any(_may_hold_tensors(part) for part in value):
            return value
        return rebuild_sequence(
            type(value), [map_tensors(part, change, arrays=arrays) for part in value]
        )
    if is_dataclass(value):
        return _replace(
            value, {k: map_tensors(v, change, arrays=arrays) for k, v in _fields(value).items()}
        )
    return value


def _may_hold_tensors(value: Any) -> bool:
    return not isinstance(value, (str, bytes, int, float, bool, type(None)))


def is_dataclass(value: Any) -> bool:
    """Whether `value` is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _replace(value: Any, fields: dict[str, Any]) -> Any:
    """Return a dataclass like another, with other fields; made by copying, not by its class."""
    if all(getattr(value, name) is part for name, part in fields.items()):
        return value
    replaced = copy.copy(value)
    for name, part in fields.items():
        object.__setattr__(replaced, name, part)
    return replaced


class Split:
    """Splits what a model returned for a batch into one part for each request.

    bounds: the requests' rows, as (start, end); in `item` mode the requests' indices, and a part
        has no batch dimension.
    rows: the size of the batch dimension, padding included.
    parts: makes the parts of a tensor, given the output's name.
    leave: makes a part that is anything else fit to leave the worker.
    """

    def __init__(
        self,
        bounds: list[tuple[int, int]],
        rows: int,
        *,
        item: bool,
        parts: Callable[[Any, str], list[Any]],
        leave: Callable[[Any], Any],
    ) -> None:
        self.bounds, self.rows, self.item, self.parts = bounds, rows, item, parts
        self.leave = leave

    def split(self, value: Any, name: str = "") -> list[Any]:
        """Return the parts of `value`, in the order of the requests."""
        count = len(self.bounds)
        if is_tensor(value):
            self._check(value, name)
            return self.parts(value, name)
        if is_array(value):
            self._check(value, name)
            return [self.leave(value[a] if self.item else value[a:b]) for a, b in self.bounds]
        if value is None or isinstance(value, (str, bool, enum.Enum)):
            return [value] * count
        if isinstance(value, Mapping):
            columns = {key: self.split(part, _join(name, key)) for key, part in value.items()}
            return [
                rebuild_mapping(value, {key: parts[i] for key, parts in columns.items()})
                for i in range(count)
            ]
        if is_values(value):
            if len(value) != self.rows:
                raise self._error(name, f"a list of {len(value)} values")
            return [self.leave(value[a] if self.item else value[a:b]) for a, b in self.bounds]
        if isinstance(value, (tuple, list)):
            columns_list = [self.split(part, _join(name, i)) for i, part in enumerate(value)]
            return [
                rebuild_sequence(type(value), [parts[i] for parts in columns_list])
                for i in range(count)
            ]
        if is_dataclass(value):
            columns = {key: self.split(v, _join(name, key)) for key, v in _fields(value).items()}
            return [
                _replace(value, {key: parts[i] for key, parts in columns.items()})
                for i in range(count)
            ]
        if "Cache" in type(value).__name__:
            raise NotBatchable(
                f"the model returned a {type(value).__name__} as {name!r}, which cannot be split "
                f"by rows: have it keep no cache of keys and values. Call it with use_cache=False, "
                f"or set model.config.use_cache = False"
            )
        raise self._error(name, f"{type(value).__name__} {value!r:.80}")

    def _check(self, value: Any, name: str) -> None:
        if value.ndim == 0 or value.shape[0] != self.rows:
            raise self._error(name, f"a {type(value).__name__} of shape {tuple(value.shape)}")

    def _error(self, name: str, what: str) -> NotBatchable:
        where = f" as {name!r}" if name else ""
        unit = "inputs" if self.item else "rows"
        return NotBatchable(
            f"the model returned {what}{where} for a batch of {self.rows} {unit}: the first "
            f"dimension of each output has to be the batch's. If this model cannot be batched, "
            f"use requests=onelane.Each()"
        )


def is_values(value: Any) -> bool:
    """Whether an output is a list of plain values, one a row, and not a structure of outputs."""
    return isinstance(value, list) and not any(
        is_tensor(part) or is_array(part) or isinstance(part, (Mapping, tuple, list))
        for part in value
    )


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)
