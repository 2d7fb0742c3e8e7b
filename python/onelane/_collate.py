"""How requests become one call of the model, and its output one response each.

A collator has two halves. `prepare` runs on the calling thread: it looks at the input, says what
is wrong with it, and gives a payload and a batch key. `run` runs on the worker, with payloads of
equal keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from onelane import _devices, _modes, _tree
from onelane._graphs import Graphs
from onelane._pad import Pad
from onelane.errors import NotBatchable


@dataclass(slots=True)
class Input:
    """One request on its way to the worker."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int = 1
    length: int = 0
    bucket: int = 0
    spec: Any = None
    names: list[str] = field(default_factory=list)
    numpy: bool = False


class Target(Protocol):
    """What a collator runs on."""

    @property
    def call(self) -> Callable[..., Any]:
        """The model."""

    @property
    def device(self) -> str:
        """The name of the device."""

    @property
    def torch_device(self) -> Any:
        """The `torch.device`; None if PyTorch is not used, or knows no such device."""

    @property
    def graphs(self) -> Graphs | None:
        """What the model is called through with host tensors, and returns host tensors."""

    @property
    def to_cpu(self) -> bool:
        """Whether results leave as CPU copies."""

    @property
    def copy_outputs(self) -> bool:
        """Whether each part of an output has memory of its own, not a view of the batch's copy."""


class PlainTarget(Target, Protocol):
    """What batches of plain tensors run on."""

    @property
    def modes(self) -> _modes.Modes:
        """Those of the requests."""

    @property
    def staging(self) -> Staging | None:
        """Host buffers that a CUDA device copies from and to; None on other devices."""


class Collator(Protocol):
    """The two halves."""

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """Return the input for the worker and its batch key, which is hashable."""

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """Return one response an input, and the number of rows computed, padding included."""


# PyTorch copies this many elements and more with all its threads, which then spin for milliseconds
# on the cores that those who wait for the batch need.
_PARALLEL = 32768
_PIECES = 16


def _concatenate(torch: Any, tensors: list[Any], rows: list[int], out: Any = None) -> Any:
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


def _duplicate(torch: Any, whole: Any) -> Any:
    """Copy a tensor, in pieces that are copied by this thread alone if a few are enough."""
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


class Staging:
    """Page-locked host buffers of one worker, used again for each batch.

    One for each dtype and trailing shape. The worker synchronises before it hands results over, so
    that no copy is under way when a buffer is used again.
    """

    _KEPT = 16
    _MOST_BYTES = 64 * 2**20

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device, self._name = torch, device, str(device)
        self._buffers: dict[Any, Any] = {}

    def _buffer(self, direction: str, like: Any, rows: int) -> Any:
        """A page-locked tensor of so many rows of the shape of those of `like`; None: too large."""
        key = (direction, like.dtype, like.shape[1:])
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape[0] < rows:
            size = 1 << (rows - 1).bit_length() if rows else 1
            shape = (size, *like.shape[1:])
            if math.prod(shape) * like.element_size() > self._MOST_BYTES:
                return None
            if len(self._buffers) >= self._KEPT:
                self._buffers.clear()
            buffer = self._torch.empty(shape, dtype=like.dtype, pin_memory=True)
            self._buffers[key] = buffer
        return buffer[:rows]

    def bring(self, tensors: list[Any], rows: list[int]) -> Any:
        """Return the rows of all tensors on the device."""
        buffer = self._buffer("in", tensors[0], sum(rows))
        if buffer is None:
            return self._torch.cat(tensors).to(self._device)
        _concatenate(self._torch, tensors, rows, buffer)
        return buffer.to(self._device, non_blocking=True)

    def take(self, output: Any) -> Any:
        """Return an output on the host; to be copied from before the next batch."""
        buffer = self._buffer("out", output, output.shape[0])
        if buffer is None:
            buffer = output.cpu()
        else:
            buffer.copy_(output, non_blocking=True)
        _devices.synchronize(self._name)
        return buffer


def _unpack(args: tuple[Any, ...], kwargs: dict[str, Any], unpack: bool) -> Any:
    """A mapping given alone is keyword arguments, and a tuple is positional ones."""
    if unpack and len(args) == 1 and not kwargs:
        (only,) = args
        if isinstance(only, Mapping):
            return (), dict(only)
        if isinstance(only, tuple) and not hasattr(only, "_fields"):
            return only, {}
    return args, kwargs


def place(target: Target, tensor: Any) -> Any:
    """Return the tensor where the target's model wants it."""
    if target.torch_device is None or target.graphs is not None:
        return tensor
    return tensor.to(target.torch_device)


def from_numpy(torch: Any, array: Any) -> Any:
    """Return a tensor on the array's memory, or on a copy where PyTorch needs one."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise TypeError(
            f"an array of dtype {array.dtype} has no tensor type: convert it, or use collate='list'"
        ) from None


def _moved(target: Target, tensor: Any) -> tuple[Any, bool]:
    """Return a tensor as it leaves the worker, and whether that is a copy already."""
    moved = tensor.detach()
    if target.to_cpu and moved.device.type != "cpu":
        return moved.cpu(), True
    return moved, False


def _owned(part: Any, copied: bool) -> Any:
    """Return a part that shares its memory with nothing."""
    whole = part.untyped_storage().nbytes() == part.numel() * part.element_size()
    return part if copied and whole else part.clone()


def _parts(
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
            return _parts(target, output, rows, cut)
    moved, copied = _moved(target, output)
    if not target.copy_outputs:
        views = _views(moved if copied else _duplicate(torch, moved), rows)
        return views if cut is None else [cut(part, i) for i, part in enumerate(views)]
    if cut is not None and rows is not None:
        views = moved[: sum(rows)].split(rows)
        return [_owned(cut(part, i), copied) for i, part in enumerate(views)]
    return [_owned(moved, copied)] if rows and len(rows) == 1 else _copies(moved, rows)


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


def leave(target: Target, value: Any, numpy: bool = False) -> Any:
    """Return a response that is not split as it leaves the worker."""

    def change(tensor: Any) -> Any:
        owned = _owned(*_moved(target, tensor))
        return owned.numpy() if numpy else owned

    _devices.synchronize(target.device)
    left = _tree.map_tensors(value, change)
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
        found = _parts(target, tensor, sizes, cut)
        if numpy is None:
            return found
        return [part.numpy() if n else part for part, n in zip(found, numpy, strict=True)]

    sizes = None if item else [end - start for start, end in bounds]
    _devices.synchronize(target.device)
    responses = _tree.Split(bounds, rows, item=item, parts=parts).split(output)
    if not target.to_cpu:
        _devices.synchronize(target.device)
    return responses


_ONE_NAME = [""]


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
            if type(x) is self._torch.Tensor and x.ndim:
                request = Input(args, {}, x.shape[0], spec=_tree.ONE_TENSOR, names=_ONE_NAME)
                return request, (_tree.ONE_TENSOR, ((x.dtype, x.device, x.shape[1:]),), 0)
        args, kwargs = _unpack(args, kwargs, self._unpack)
        leaves: list[Any] = []
        names: list[str] = []
        spec = _tree.flatten((args, kwargs), leaves, names)
        if not leaves:
            raise TypeError(
                "there is no tensor in this input: give a tensor or array whose first dimension is "
                "the batch's, or a dict or tuple of such; for other inputs use collate='list'"
            )
        numpy = False
        tensors: list[Any] = []
        for leaf in leaves:
            if _tree.is_array(leaf):
                numpy = True
                leaf = from_numpy(self._torch, leaf)
            tensors.append(leaf)
        rows = self._rows(tensors, names)
        length, bucket = self._length(tensors, names)
        shapes = tuple(
            (t.dtype, t.device, self._shape(t, name, bucket))
            for t, name in zip(tensors, names, strict=True)
        )
        request = Input(tuple(tensors), {}, rows, length, bucket, spec, names, numpy)
        return request, (spec, shapes, bucket)

    def _rows(self, tensors: list[Any], names: list[str]) -> int:
        for tensor, name in zip(tensors, names, strict=True):
            if tensor.ndim == 0:
                raise ValueError(
                    f"input {name or 'x'!r} is a tensor without dimensions ({tensor.dtype}): the "
                    f"first dimension has to be the batch's. Give it one (x[None]), pass a plain "
                    f"number, or use batch=False"
                )
        rows: int = tensors[0].shape[0]
        if any(tensor.shape[0] != rows for tensor in tensors):
            shapes = ", ".join(
                f"{name or 'x'}: {tuple(tensor.shape)} {tensor.dtype}"
                for tensor, name in zip(tensors, names, strict=True)
            )
            raise ValueError(
                f"the inputs of one request disagree about the number of rows, which is their "
                f"first dimension: {shapes}. An input that is not per row cannot be batched: keep "
                f"it in the model, or use batch=False"
            )
        return rows

    def _length(self, tensors: list[Any], names: list[str]) -> tuple[int, int]:
        pad = self._pad
        if pad is None:
            return 0, 0
        lengths = {
            name: tensor.shape[pad.dim]
            for tensor, name in zip(tensors, names, strict=True)
            if pad.pads(name) and tensor.ndim > pad.dim
        }
        if not lengths:
            raise ValueError(
                f"there is nothing to pad: no input has a dimension {pad.dim}"
                + (f" among {list(pad.names)}" if pad.names is not None else "")
            )
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"the inputs of one request disagree about dimension {pad.dim}: {lengths}. Name "
                f"those that are to be padded: Pad(names=...)"
            )
        length: int = next(iter(lengths.values()))
        return length, pad.bucket(length)

    def _shape(self, tensor: Any, name: str, bucket: int) -> tuple[int, ...]:
        shape = list(tensor.shape[1:])
        if self._pad is not None and self._pad.pads(name) and tensor.ndim > self._pad.dim:
            shape[self._pad.dim - 1] = bucket
        return tuple(shape)

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
            batch.append(self._place(target, whole, padded))
        args, kwargs = _tree.unflatten(first.spec, iter(batch))
        if pad is not None and pad.mask is not None and pad.mask not in names:
            lengths = [(request.rows, request.length) for request in inputs]
            kwargs[pad.mask] = self._place(
                target, pad.make_mask(torch, lengths, first.bucket), padded
            )
        output = target.call(*args, **kwargs)
        del batch, args, kwargs
        return self._split(target, inputs, output, padded), padded

    def _place(self, target: Target, tensor: Any, rows: int) -> Any:
        if tensor.shape[0] < rows:
            last = tensor[-1:].expand(rows - tensor.shape[0], *tensor.shape[1:])
            tensor = self._torch.cat([tensor, last])
        return place(target, tensor)

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
        responses = _parts(target, output, rows)
        if not target.to_cpu:
            _devices.synchronize(target.device)
        return responses, count

    def _replay_plain(self, target: PlainTarget, tensors: list[Any], rows: list[int]) -> Any:
        """Return the output for a batch whose work is recorded; else None."""
        if target.graphs is None or any(tensor.requires_grad for tensor in tensors):
            return None

        def write(place: Any) -> None:
            _concatenate(self._torch, tensors, rows, place)

        return target.graphs.of_one(target.modes, tensors[0], sum(rows), write)

    def _call_plain(self, target: PlainTarget, tensors: list[Any], rows: list[int]) -> Any:
        torch = self._torch
        if any(tensor.requires_grad for tensor in tensors):
            # The model may want gradients with respect to them.
            whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        elif target.staging is not None:
            return target.call(target.staging.bring(tensors, rows))
        else:
            whole = tensors[0] if len(tensors) == 1 else _concatenate(torch, tensors, rows)
        return target.call(place(target, whole))


class ListCollator:
    """Gives the model the list of inputs, or what a function makes of it; one result an item."""

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self._collate = collate

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        if len(args) != 1 or kwargs:
            raise TypeError(
                f"with collate='list' or a function a request is one object; this one has "
                f"{len(args)} positional and {len(kwargs)} keyword arguments: put them in a tuple"
            )
        return Input(args, {}), None

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`."""
        batch: Any = [request.args[0] for request in inputs]
        if self._collate is not None:
            batch = _tree.map_tensors(self._collate(batch), lambda t: place(target, t))
        output = target.call(batch)
        count = len(inputs)
        if isinstance(output, (list, tuple)) and not hasattr(output, "_fields"):
            if len(output) != count:
                raise NotBatchable(
                    f"the model returned {len(output)} results for {count} inputs: with "
                    f"collate='list' it has to return one for each, in order. If this model cannot "
                    f"be batched, use BatchQueue(..., batch=False)"
                )
            return [_item(part) for part in leave(target, list(output))], count
        bounds = [(i, i + 1) for i in range(count)]
        return split(target, output, bounds, count, item=True), count


def _item(value: Any) -> Any:
    """An array that is a view of the batch's keeps all of it: copy it."""
    return value.copy() if _tree.is_array(value) and value.base is not None else value


class SingleCollator:
    """Runs each request by itself, as it is."""

    def __init__(self, unpack: bool) -> None:
        self._unpack = unpack

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        args, kwargs = _unpack(args, kwargs, self._unpack)
        return Input(args, kwargs), None

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`."""
        responses = []
        for request in inputs:
            numpy = False

            def change(value: Any) -> Any:
                nonlocal numpy
                if _tree.is_array(value):
                    import torch

                    numpy = True
                    value = from_numpy(torch, value)
                return place(target, value)

            arrays = target.torch_device is not None
            args, kwargs = _tree.map_tensors((request.args, request.kwargs), change, arrays=arrays)
            responses.append(leave(target, target.call(*args, **kwargs), numpy))
        return responses, len(inputs)
