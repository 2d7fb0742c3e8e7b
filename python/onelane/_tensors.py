"""Tensors and arrays as inputs: what tells two apart, how they are concatenated and copied.

INVARIANT: two inputs of equal `kind` can be concatenated without a change of any number or type
that a model could see. What has no kind is never concatenated.
"""

from __future__ import annotations

import math
from typing import Any

from onelane import _leave, _tree

# PyTorch copies this many elements and more with all its threads, which then spin for milliseconds
# on the cores that those who wait for the batch need.
_PARALLEL = 32768
_PIECES = 16


def kind(torch: Any, tensor: Any) -> tuple[Any, ...] | None:
    """Return what a tensor must share with others to be concatenated with them.

    Without its shape and memory format. None: it is not to be concatenated at all.
    """
    if (
        type(tensor) is not torch.Tensor
        or tensor.layout is not torch.strided
        or tensor.is_nested
        or tensor.is_quantized
        or any(name is not None for name in getattr(tensor, "names", ()))
    ):
        return None
    return (tensor.dtype, tensor.device, tensor.requires_grad, tensor.is_inference())


def resolved(tensor: Any) -> Any:
    """Return a tensor whose conjugations and negations are done, as concatenating does them."""
    if tensor.is_complex() and tensor.is_conj():
        tensor = tensor.resolve_conj()
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def memory_format(torch: Any, tensor: Any) -> Any:
    """Return the memory format that a concatenation keeps: channels last, or contiguous."""
    if not tensor.is_contiguous():
        if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if tensor.ndim == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def from_numpy(torch: Any, array: Any) -> Any:
    """Return a tensor on the array's memory, or on a copy where PyTorch needs one."""
    import numpy

    if type(array) not in (numpy.ndarray, numpy.memmap, numpy.matrix):
        cure = "its mask is lost: give array.filled(...)" if hasattr(array, "mask") else (
            "what it has beyond an array's numbers is lost: give numpy.asarray(...) of it"
        )  # fmt: skip
        raise TypeError(
            f"a {type(array).__name__} cannot become a tensor, because {cure}, or use "
            f"requests=onelane.Items()"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(
        stride < 0 or stride % max(array.itemsize, 1) for stride in array.strides
    ):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise TypeError(
            f"an array of dtype {array.dtype} has no tensor type: convert it, or use "
            f"requests=onelane.Items()"
        ) from None


def concatenate(torch: Any, tensors: list[Any], rows: list[int], out: Any = None) -> Any:
    """Concatenate by rows, in pieces that are copied by this thread alone if a few are enough."""
    width = math.prod(tensors[0].shape[1:])
    count = sum(rows)
    piece = (_PARALLEL - 1) // max(width, 1)
    if out is None:
        if count <= piece or count > piece * _PIECES:
            return torch.cat(tensors)
        out = torch.empty((count, *tensors[0].shape[1:]), dtype=tensors[0].dtype)
    elif count <= piece or count > piece * _PIECES:
        return torch.cat(tensors, out=out)
    if max(rows) == min(rows) == 1:
        for start in range(0, count, piece):
            end = min(start + piece, count)
            torch.cat(tensors[start:end], out=out[start:end])
        return out
    first = start = end = 0
    for index, size in enumerate(rows):
        if end + size - start > piece and end > start:
            torch.cat(tensors[first:index], out=out[start:end])
            first, start = index, end
        end += size
    torch.cat(tensors[first:], out=out[start:])
    return out


def duplicate(torch: Any, whole: Any) -> Any:
    """Copy a tensor, in pieces that are copied by this thread alone if a few are enough."""
    if type(whole) is not torch.Tensor or whole.layout is not torch.strided or whole.is_nested:
        return whole.clone()
    count = whole.shape[0] if whole.ndim else 1
    piece = (_PARALLEL - 1) * count // max(whole.numel(), 1)
    in_pieces = piece < count <= piece * _PIECES
    if not in_pieces or whole.device.type != "cpu" or not whole.is_contiguous():
        return whole.clone()
    copy = torch.empty_like(whole)
    for start in range(0, count, piece):
        end = min(start + piece, count)
        copy[start:end].copy_(whole[start:end])
    return copy


def private(torch: Any, tensor: Any) -> Any:
    """Return a copy of a caller's tensor, which the model may write into."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_contiguous():
        return duplicate(torch, tensor)
    # As a batch of several would be laid out.
    return tensor.clone(memory_format=memory_format(torch, tensor))


def private_arrays(value: Any) -> Any:
    """Copy the tensors and arrays in nested containers, for a model that may write into them."""
    if type(value) in _leave.EXACT:
        return value

    def copy(part: Any) -> Any:
        if _tree.is_array(part):
            return part.copy()
        import torch

        return private(torch, part)

    return _tree.map_tensors(value, copy, arrays=True)


__all__ = [
    "concatenate",
    "duplicate",
    "from_numpy",
    "kind",
    "memory_format",
    "private",
    "private_arrays",
    "resolved",
]
