"""The distinct shapes of inputs that a device has seen.

MPS keeps a compiled graph, and often memory, for each. What runs batches says which shapes they
had; `stats()` counts them, and past a number a warning names the cure, once for each device.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator
from typing import Any

from onelane import _tree

# A set that `install` or a `Pad` bounds has at most 96.
WARN_ABOVE = 256
# What is remembered of one device: beyond it only the number goes on.
_KEPT = 65536

_seen: dict[str, dict[Hashable, None]] = {}
_warned: set[str] = set()


def note(device: str, shape: Hashable) -> None:
    """A batch of this shape ran on a device; on its worker."""
    seen = _seen.setdefault(device, {})
    if shape in seen or len(seen) >= _KEPT:
        return
    seen[shape] = None
    if len(seen) > WARN_ABOVE and device.partition(":")[0] == "mps" and device not in _warned:
        _warned.add(device)
        warnings.warn(
            f"{device} has seen {len(seen)} distinct input shapes, and keeps a compiled graph and "
            f"memory for each. Round them up: onelane.install() does so for known libraries, "
            f"BatchQueue(..., onelane.Tensors(pad=onelane.Pad(buckets=..., rows=...))) for tensors",
            RuntimeWarning,
            stacklevel=2,
        )


def note_inputs(device: str, model: Hashable, inputs: Any) -> None:
    """A model ran with these inputs: the shapes of their tensors are noted together."""
    shapes = tuple(tuple(tensor.shape) for tensor in _tensors(inputs))
    if shapes:
        note(device, (model, shapes))


def _tensors(value: Any) -> Iterator[Any]:
    if _tree.is_tensor(value):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def count(device: str) -> int:
    """Return how many distinct shapes a device has seen."""
    return len(_seen.get(device, ()))


def seen(device: str) -> list[Hashable]:
    """Return the shapes, in the order in which they came."""
    return list(_seen.get(device, ()))


def forget(device: str) -> None:
    """Begin to count anew."""
    _seen.pop(device, None)
    _warned.discard(device)


__all__ = ["WARN_ABOVE", "count", "forget", "note", "note_inputs", "seen"]
