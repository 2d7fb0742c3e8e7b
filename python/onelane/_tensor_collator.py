"""Collates tensors: concatenated along their first dimension, outputs split by rows."""

from __future__ import annotations

from typing import Any

from onelane import _devices, _keys, _tensors, _tree
from onelane._collate import Input, PlainTarget, Target, place, unpack
from onelane._pad import Pad
from onelane._responses import parts_of, split

_ONE_NAME = [""]
ONE_TENSOR_KEY = _tree.key(_tree.ONE_TENSOR)
_CONTIGUOUS = "contiguous"
_LAYOUTS = {
    "torch.contiguous_format": _CONTIGUOUS,
    "torch.channels_last": "channels_last",
    "torch.channels_last_3d": "channels_last_3d",
}


class TensorCollator:
    """Concatenates tensors along their first dimension and splits outputs by rows."""

    def __init__(self, pad: Pad | None, unpack: bool) -> None:
        import torch

        self._torch, self._pad, self._unpack = torch, pad, unpack

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        if self._pad is None and len(args) == 1 and not kwargs:
            # The common case, and a quick one.
            x = args[0]
            kind = _tensors.kind(self._torch, x) if type(x) is self._torch.Tensor else None
            if kind is not None and x.ndim and x.is_contiguous() and not x.is_neg():
                request = Input(args, {}, x.shape[0], spec=_tree.ONE_TENSOR, names=_ONE_NAME)
                if not x.is_complex():
                    return request, (ONE_TENSOR_KEY, ((kind, x.shape[1:], _CONTIGUOUS),), 0)
        args, kwargs = unpack(args, kwargs, self._unpack)
        leaves: list[Any] = []
        names: list[str] = []
        spec = _tree.flatten((args, kwargs), leaves, names)
        structure = _tree.key(spec)
        if not leaves:
            raise TypeError(
                "there is no tensor in this input: give a tensor or array whose first dimension is "
                "the batch's, or a dict or tuple of such; for other inputs use "
                "requests=onelane.Items()"
            )
        numpy = False
        tensors: list[Any] = []
        for leaf in leaves:
            if _tree.is_array(leaf):
                numpy = True
                leaf = _tensors.from_numpy(self._torch, leaf)
            tensors.append(_tensors.resolved(leaf))
        rows = self._rows(tensors, names)
        length, bucket = self._length(tensors, names)
        request = Input(tuple(tensors), {}, rows, length, bucket, spec, names, numpy)
        kinds: list[Any] = []
        for tensor, name in zip(tensors, names, strict=True):
            kind = _tensors.kind(self._torch, tensor)
            if kind is None:
                return request, _keys.ALONE
            layout = _LAYOUTS[str(_tensors.memory_format(self._torch, tensor))]
            pad = self._pad
            shape = tensor.shape[1:] if pad is None else pad.row_shape(tensor.shape, name, bucket)
            kinds.append((kind, tuple(shape), layout))
        return request, (structure, tuple(kinds), bucket)

    def _rows(self, tensors: list[Any], names: list[str]) -> int:
        for tensor, name in zip(tensors, names, strict=True):
            if tensor.dim() == 0:
                raise ValueError(
                    f"input {name or 'x'!r} is a tensor without dimensions ({tensor.dtype}): the "
                    f"first dimension has to be the batch's. Give it one (x[None]), pass a plain "
                    f"number, or use requests=onelane.Each()"
                )
        rows: int = tensors[0].size(0)
        if any(tensor.size(0) != rows for tensor in tensors):
            shapes = ", ".join(
                f"{name or 'x'}: {_shape_of(tensor)} {tensor.dtype}"
                for tensor, name in zip(tensors, names, strict=True)
            )
            raise ValueError(
                f"the inputs of one request disagree about the number of rows, which is their "
                f"first dimension: {shapes}. An input that is not per row cannot be batched: keep "
                f"it in the model, or use requests=onelane.Each()"
            )
        return rows

    def _length(self, tensors: list[Any], names: list[str]) -> tuple[int, int]:
        pad = self._pad
        if pad is None:
            return 0, 0
        for tensor, name in zip(tensors, names, strict=True):
            is_padded = pad.pads(name) and tensor.dim() > pad.dim
            if is_padded and _tensors.kind(self._torch, tensor) is None:
                raise TypeError(
                    f"input {name or 'x'!r} cannot be padded: it is a {type(tensor).__name__} of "
                    f"dtype {tensor.dtype} and layout {tensor.layout}. Give a plain, dense tensor"
                )
        return pad.length(zip(names, (tensor.shape for tensor in tensors), strict=True))

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`."""
        torch, pad = self._torch, self._pad
        rows = sum(request.rows for request in inputs)
        padded = pad.row_count(rows) if pad is not None else rows
        first = inputs[0]
        names = first.names
        batch = []
        for i, name in enumerate(names):
            parts = [request.args[i] for request in inputs]
            if pad is not None and pad.pads(name) and parts[0].ndim > pad.dim:
                whole = pad.concatenate(torch, parts, first.bucket, name)
            else:
                whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            batch.append(self._place(target, whole, padded, parts[0]))
        args, kwargs = _tree.unflatten(first.spec, iter(batch))
        if pad is not None and pad.mask is not None and pad.mask not in names:
            lengths = [(request.rows, request.length) for request in inputs]
            kwargs[pad.mask] = self._place(
                target, pad.make_mask(torch, lengths, first.bucket), padded
            )
        output = target.call(*args, **kwargs)
        del batch, args, kwargs
        return self._split(target, inputs, output, padded), padded

    def _place(self, target: Target, tensor: Any, rows: int, given: Any = None) -> Any:
        """Return a tensor on the device, with so many rows; never the one that was given."""
        if tensor.size(0) < rows:
            last = tensor[-1:].expand(rows - tensor.shape[0], *tensor.shape[1:])
            tensor = self._torch.cat([tensor, last])
        placed = place(target, tensor)
        return _tensors.private(self._torch, placed) if placed is given else placed

    def _split(self, target: Target, inputs: list[Input], output: Any, rows: int) -> list[Any]:
        bounds, start = [], 0
        for request in inputs:
            bounds.append((start, start + request.rows))
            start += request.rows
        pad = self._pad

        def finish(part: Any, index: int, name: str) -> Any:
            request = inputs[index]
            if pad is None or not pad.trims(name) or part.ndim <= pad.dim:
                return part
            if part.shape[pad.dim] != request.bucket:
                return part
            return part.narrow(pad.dim, pad.start(request.length, request.bucket), request.length)

        numpy = [request.numpy for request in inputs]
        finish_or_none = finish if pad is not None else None
        numpy_or_none = numpy if any(numpy) else None
        return split(target, output, bounds, rows, finish=finish_or_none, numpy=numpy_or_none)

    def run_plain(
        self, target: PlainTarget, tensors: list[Any], rows: list[int]
    ) -> tuple[list[Any], int]:
        """As `run`, of CPU tensors by themselves, each with so many rows."""
        count = sum(rows)
        output = self._replay_plain(target, tensors, rows)
        complete = output is not None
        if output is None:
            output = self._call_plain(target, tensors, rows)
        if type(output) is not self._torch.Tensor or not output.ndim or output.shape[0] != count:
            bounds, start = [], 0
            for size in rows:
                bounds.append((start, start + size))
                start += size
            return split(target, output, bounds, count), count
        if not complete and target.staging is not None and target.to_cpu and not output.is_cpu:
            output = target.staging.take(output.detach())
            complete = True
        if not complete:
            _devices.synchronize(target.device)
        responses = parts_of(target, output, rows)
        if not target.to_cpu:
            _devices.synchronize(target.device)
        return responses, count

    def _replay_plain(self, target: PlainTarget, tensors: list[Any], rows: list[int]) -> Any:
        """Return the output for a batch whose work is recorded; else None."""
        if target.graphs is None or any(tensor.requires_grad for tensor in tensors):
            return None

        def write(place: Any) -> None:
            _tensors.concatenate(self._torch, tensors, rows, place)

        return target.graphs.of_one(target.modes, tensors[0], sum(rows), write)

    def _call_plain(self, target: PlainTarget, tensors: list[Any], rows: list[int]) -> Any:
        torch = self._torch
        if any(tensor.requires_grad for tensor in tensors):
            # The model may want gradients with respect to them.
            whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        elif target.staging is not None:
            return target.call(target.staging.bring(tensors, rows))
        else:
            whole = tensors[0] if len(tensors) == 1 else _tensors.concatenate(torch, tensors, rows)
        placed = place(target, whole)
        if placed is tensors[0]:
            placed = _tensors.private(torch, placed)
        return target.call(placed)


def _shape_of(tensor: Any) -> Any:
    return "nested" if tensor.is_nested else tuple(tensor.shape)


__all__ = ["ONE_TENSOR_KEY", "TensorCollator"]
