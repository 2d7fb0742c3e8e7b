"""A model's output on its way from the worker: copied to the host, split into responses.

INVARIANT: a response owns its memory, or, with views, shares it with those of its batch alone.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

from onelane import _devices, _leave, _tensors, _tree
from onelane._collate import Target
from onelane.errors import NotBatchable


def _moved(target: Target, tensor: Any) -> tuple[Any, bool]:
    """Return a tensor as it leaves the worker, and whether that is a copy already."""
    moved = tensor.detach()
    if target.to_cpu and moved.device.type != "cpu":
        return moved.cpu(), True
    return moved, False


def _owned(part: Any, copied: bool) -> Any:
    """Return a part that shares its memory with nothing."""
    if not _is_dense(part):
        return part if copied else part.clone()
    whole = part.untyped_storage().nbytes() == part.numel() * part.element_size()
    return part if copied and whole else part.clone()


def _is_dense(tensor: Any) -> bool:
    """Whether a tensor has one storage, by rows."""
    return tensor.layout is sys.modules["torch"].strided and not tensor.is_nested


def parts_of(
    target: Target,
    output: Any,
    rows: list[int] | None,
    cut: Callable[[Any, int], Any] | None = None,
) -> list[Any]:
    """Return the parts of an output as they leave the worker.

    rows: how many rows each has, padding left out; None for each row without its dimension.
    cut: cuts a part further, given its index; only where there are `rows`.
    """
    import torch

    if torch.is_inference_mode_enabled():
        # A result is no inference tensor: nothing but other results shares its memory.
        with torch.inference_mode(False):
            return parts_of(target, output, rows, cut)
    moved, copied = _moved(target, output)
    if not _is_dense(moved) or moved.is_quantized:
        parts = _odd_parts(moved, rows)
        return parts if cut is None else [cut(part, i) for i, part in enumerate(parts)]
    if not target.copy_outputs:
        views = _views(moved if copied else _tensors.duplicate(torch, moved), rows)
        return views if cut is None else [cut(part, i) for i, part in enumerate(views)]
    if cut is not None and rows is not None:
        views = moved[: sum(rows)].split(rows)
        return [_owned(cut(part, i), copied) for i, part in enumerate(views)]
    return [_owned(moved, copied)] if rows and len(rows) == 1 else _copies(moved, rows)


def _odd_parts(tensor: Any, rows: list[int] | None) -> list[Any]:
    """Return copies of the parts of a tensor that is not dense, or quantized."""
    if rows is not None and len(rows) == 1:
        return [tensor.clone()]
    try:
        if rows is None:
            return [tensor[i].clone() for i in range(tensor.size(0))]
        starts = itertools.accumulate(rows, initial=0)
        if tensor.is_sparse:
            return [tensor.narrow_copy(0, a, n) for a, n in zip(starts, rows, strict=False)]
        return [tensor[a : a + n].clone() for a, n in zip(starts, rows, strict=False)]
    except RuntimeError as error:
        raise NotBatchable(
            f"the model returned a tensor of layout {tensor.layout} for a batch, which cannot be "
            f"split by rows ({error}): return a dense one, or use requests=onelane.Each()"
        ) from error


def _copies(tensor: Any, rows: list[int] | None) -> list[Any]:
    """Return copies of the parts.

    One call that lets go of the interpreter once, whatever the number of parts.
    """
    import torch

    # PyTorch's stubs say that these return nothing.
    copy: Any = torch
    if rows is None:
        return list(copy.unbind_copy(tensor))
    return list(copy.split_with_sizes_copy(tensor, rows))


def _views(whole: Any, rows: list[int] | None) -> list[Any]:
    """Return the parts as views that autograd takes for tensors of their own.

    Else a write to one would count as a write to all, and make `backward` fail for a caller that
    uses another.
    """
    import torch

    if rows is None:
        return [row.data for row in whole.unbind()]
    return list(torch.unsafe_split_with_sizes(whole[: sum(rows)], rows))


def departure(
    target: Target, numpy: bool = False, known: dict[int, Any] | None = None
) -> _leave.Departure:
    """Return what makes one response that is not split fit to leave the worker."""
    synchronized = False

    def change(tensor: Any) -> Any:
        nonlocal synchronized
        import torch

        if not synchronized:
            _devices.synchronize(target.device)
            synchronized = True
        # A result is no inference tensor: nothing but other results shares its memory.
        with torch.inference_mode(False):
            owned = _owned(*_moved(target, tensor))
            return owned.resolve_conj().resolve_neg().numpy() if numpy else owned

    return _leave.Departure(change, target.wrap, known)


def leave(
    target: Target, value: Any, numpy: bool = False, known: dict[int, Any] | None = None
) -> Any:
    """Return a response that is not split as it leaves the worker."""
    if target.to_cpu and type(value) in _leave.EXACT:
        return value
    left = departure(target, numpy, known)(value)
    if not target.to_cpu:
        _devices.synchronize(target.device)
    return left


def split(
    target: Target,
    output: Any,
    bounds: list[tuple[int, int]],
    rows: int,
    *,
    item: bool = False,
    finish: Callable[[Any, int, str], Any] | None = None,
    numpy: list[bool] | None = None,
) -> list[Any]:
    """Split an output into responses as they leave the worker; see `_tree.Split`.

    finish: cuts a part, given the request's index and the output's name.
    numpy: whether each request gets arrays.
    """

    def parts(tensor: Any, name: str) -> list[Any]:
        cut = None if finish is None else lambda part, i: finish(part, i, name)
        found = parts_of(target, tensor, sizes, cut)
        if numpy is None:
            return found
        return [
            part.resolve_conj().resolve_neg().numpy() if n else part
            for part, n in zip(found, numpy, strict=True)
        ]

    sizes = None if item else [end - start for start, end in bounds]
    _devices.synchronize(target.device)
    responses = _tree.Split(bounds, rows, item=item, parts=parts, leave=departure(target)).split(
        output
    )
    if not target.to_cpu:
        _devices.synchronize(target.device)
    return responses


__all__ = ["departure", "leave", "parts_of", "split"]
