"""Requests and responses as they cross between parent and child: pickles, with memory beside them.

A letter is `(pickle, buffers, joined)`: buffers that are joined come as one. What a tensor or an
array holds is not in the pickle: it is copied once into the memory that both processes share, and
once out of it. PyTorch is loaded here only by who gets a tensor.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Sequence
from typing import Any

from onelane._collate import Input
from onelane._modules import imported

Letter = tuple[Any, list[Any], bool]

_table: dict[Any, Any] = {}
_has_torch = False


def dump(value: Any) -> Letter:
    """Pickle a value; raises what its parts raise that cannot be pickled.

    What the main script defines goes by value, if cloudpickle is there: the other process has
    another main script.
    """
    try:
        letter = _dump(pickle.Pickler, value)
        if b"__main__" not in letter[0].tobytes():
            return letter
        refused: Exception | None = None
    except Exception as error:
        refused = error
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:
        if refused is not None:
            raise refused from None
        return letter
    return _dump(cloudpickle.Pickler, value)


def _dump(kind: Any, value: Any) -> Letter:
    stream = io.BytesIO()
    buffers: list[Any] = []
    pickler = kind(stream, protocol=5, buffer_callback=lambda part: buffers.append(part.raw()))
    own = _dispatch_table()
    pickler.dispatch_table = own if kind is pickle.Pickler else ChainMap(own, kind.dispatch_table)
    pickler.dump(value)
    return stream.getbuffer(), buffers, False


def load(letter: tuple[bytes, Sequence[bytearray]]) -> Any:
    """Return the value of a letter; its tensors and arrays are on the buffers' memory."""
    return pickle.loads(letter[0], buffers=letter[1])


def _dispatch_table() -> dict[Any, Any]:
    global _has_torch
    torch = imported("torch")
    if not _table or (torch is not None and not _has_torch):
        _table.update(copyreg.dispatch_table)
        _table[Input] = _reduce_input
        if torch is not None:
            _table[torch.Tensor] = _reduce_tensor
            _has_torch = True
    return _table


def _reduce_input(request: Input) -> Any:
    parts = (request.args, request.kwargs, request.rows, request.length, request.bucket)
    return Input, (*parts, request.spec, request.names, request.numpy, request.cost)


def _reduce_tensor(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    if (
        tensor.layout is not torch.strided
        or tensor.is_nested
        or tensor.is_quantized
        or tensor.device.type != "cpu"
        or not tensor.dtype.itemsize
        or any(name is not None for name in getattr(tensor, "names", ()))
    ):
        return tensor.__reduce_ex__(5)
    needs_grad, inference = tensor.requires_grad, tensor.is_inference()
    dense = tensor.detach() if needs_grad else tensor
    if dense.is_conj() or dense.is_neg():
        dense = dense.resolve_conj().resolve_neg()
    shape, order = tuple(dense.shape), None
    if not dense.is_contiguous():
        # As a copy of it would be laid out: channels last stay last.
        order = _order(torch, dense)
        dense = (dense.permute(order) if order is not None else dense).contiguous()
    dtype = _name(dense.dtype)
    memory = pickle.PickleBuffer(_memory(dense)) if dense.numel() else None
    if order is None and not (needs_grad or inference):
        return _tensor, (dtype, shape, memory)
    return _odd_tensor, (dtype, shape, memory, order, needs_grad, inference)


def joined(header: tuple[Any, ...], tensors: list[Any]) -> Letter:
    """Return the letter of dense CPU tensors of one dtype and trailing shape, as one piece.

    `header` gets the dtype and the trailing shape as its last parts.
    """
    first = tensors[0]
    dtype = _name(first.dtype)
    buffers = [_exporting(tensor) for tensor in tensors]
    return pickle.dumps((*header, dtype, tuple(first.shape[1:])), 5), buffers, True


def whole(header: tuple[Any, ...], rows: int, buffers: Sequence[bytearray]) -> Any:
    """Return the tensor of a letter that `joined` has made."""
    return _tensor(header[-2], (rows, *header[-1]), buffers[0])


def split(header: tuple[Any, ...], tensor: Any, rows: list[int]) -> Letter:
    """Return the letter of the rows of a dense CPU tensor, each part with memory of its own."""
    dtype, trailing = _name(tensor.dtype), tuple(tensor.shape[1:])
    if len(rows) == 1:
        buffers = [_exporting(tensor)]
    else:
        buffers = [_exporting(part) for part in tensor.split(rows)]
    return pickle.dumps((*header, rows, dtype, trailing), 5), buffers, False


def unsplit(header: tuple[Any, ...], buffers: Sequence[bytearray]) -> list[Any]:
    """Return the tensors of a letter that `split` has made, given its header."""
    *_, rows, dtype, trailing = header
    return [
        _tensor(dtype, (count, *trailing), buffer)
        for count, buffer in zip(rows, buffers, strict=True)
    ]


def are_plain_arrays(values: list[Any]) -> bool:
    """Whether these are NumPy arrays of numbers, as they lie in memory; does not load NumPy."""
    numpy = imported("numpy")
    if numpy is None:
        return False
    kind = numpy.ndarray
    return all(
        type(value) is kind
        and value.flags.c_contiguous
        and value.dtype.kind in "fiubc"
        and value.dtype.isnative
        for value in values
    )


def arrays(header: tuple[Any, ...], values: list[Any]) -> Letter:
    """Return the letter of plain arrays: pickling one takes longer than all the rest."""
    described = [(value.dtype.str, value.shape) for value in values]
    return pickle.dumps((*header, described), 5), values, False


def unarrays(header: tuple[Any, ...], buffers: Sequence[bytearray]) -> list[Any]:
    """Return the arrays of a letter that `arrays` has made, given its header."""
    import numpy

    return [
        numpy.ndarray(shape, dtype, buffer)
        for (dtype, shape), buffer in zip(header[-1], buffers, strict=True)
    ]


_names: dict[Any, str] = {}
_dtypes: dict[str, Any] = {}


def _name(dtype: Any) -> str:
    name = _names.get(dtype)
    if name is None:
        name = _names[dtype] = str(dtype).removeprefix("torch.")
    return name


def _exporting(tensor: Any) -> Any:
    """Return what exports the memory of a dense CPU tensor."""
    try:
        return tensor.numpy()
    except TypeError:
        # NumPy has no such dtype.
        return _memory(tensor)


def _memory(tensor: Any) -> Any:
    return tensor.reshape(-1).view(sys.modules["torch"].uint8).numpy()


def _order(torch: Any, tensor: Any) -> tuple[int, ...] | None:
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return (0, 2, 3, 1)
    if tensor.ndim == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return (0, 2, 3, 4, 1)
    return None


def _tensor(dtype: str, shape: tuple[int, ...], memory: Any) -> Any:
    kind = _dtypes.get(dtype)
    if kind is None:
        import torch

        kind = _dtypes[dtype] = getattr(torch, dtype)
    torch = sys.modules["torch"]
    if not memory:
        return torch.empty(shape, dtype=kind)
    flat = torch.frombuffer(memory, dtype=kind)
    return flat if len(shape) == 1 else flat.view(shape)


def _odd_tensor(
    dtype: str,
    shape: tuple[int, ...],
    memory: Any,
    order: tuple[int, ...] | None,
    needs_grad: bool,
    inference: bool,
) -> Any:
    import torch

    if inference:
        with torch.inference_mode():
            return _odd_tensor(dtype, shape, memory, order, False, False).clone(
                memory_format=torch.preserve_format
            )
    if order is None:
        tensor = _tensor(dtype, shape, memory)
    else:
        laid = _tensor(dtype, tuple(shape[dim] for dim in order), memory)
        tensor = laid.permute(*(order.index(dim) for dim in range(len(order))))
    return tensor.requires_grad_(needs_grad)


__all__ = [
    "Letter",
    "are_plain_arrays",
    "arrays",
    "dump",
    "joined",
    "load",
    "split",
    "unarrays",
    "unsplit",
    "whole",
]
