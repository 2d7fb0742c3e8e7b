"""How requests become one call of the model, and its output one response each.

A collator has two halves. `prepare` runs on the calling thread: it looks at the input, says what
is wrong with it, and gives a payload and a batch key. `run` runs on the worker, with payloads of
equal keys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from onelane import _devices, _keys, _leave, _modes, _tensors, _tree
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
    # What it counts for in a batch, where that is not its rows.
    cost: int = 0


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
    def wrap(self) -> Callable[[_leave.Departure, Any], Any]:
        """What becomes of objects that are neither plain, tensors, nor containers of such."""

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
        _tensors.concatenate(self._torch, tensors, rows, buffer)
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
            for name in only:
                if not isinstance(name, str):
                    raise TypeError(
                        f"a dict given alone is the keyword arguments of the model, and {name!r} "
                        f"is no name: use unpack=False to give the dict itself"
                    )
            return (), dict(only)
        if isinstance(only, tuple) and not hasattr(only, "_fields"):
            return only, {}
    return args, kwargs


def place(target: Target, tensor: Any) -> Any:
    """Return the tensor where the target's model wants it."""
    if target.torch_device is None or target.graphs is not None:
        return tensor
    return tensor.to(target.torch_device)


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
    return str(tensor.layout) == "torch.strided" and not tensor.is_nested


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
            f"split by rows ({error}): return a dense one, or use batch=False"
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
        found = _parts(target, tensor, sizes, cut)
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
        args, kwargs = _unpack(args, kwargs, self._unpack)
        leaves: list[Any] = []
        names: list[str] = []
        spec = _tree.flatten((args, kwargs), leaves, names)
        structure = _tree.key(spec)
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
            kinds.append((kind, self._shape(tensor, name, bucket), layout))
        return request, (structure, tuple(kinds), bucket)

    def _rows(self, tensors: list[Any], names: list[str]) -> int:
        for tensor, name in zip(tensors, names, strict=True):
            if tensor.dim() == 0:
                raise ValueError(
                    f"input {name or 'x'!r} is a tensor without dimensions ({tensor.dtype}): the "
                    f"first dimension has to be the batch's. Give it one (x[None]), pass a plain "
                    f"number, or use batch=False"
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
            if pad.pads(name) and tensor.dim() > pad.dim
        }
        for tensor, name in zip(tensors, names, strict=True):
            if name in lengths and _tensors.kind(self._torch, tensor) is None:
                raise TypeError(
                    f"input {name or 'x'!r} cannot be padded: it is a {type(tensor).__name__} of "
                    f"dtype {tensor.dtype} and layout {tensor.layout}. Give a plain, dense tensor"
                )
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
        responses = _parts(target, output, rows)
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
        # A failed batch is run again in parts: with what the callers gave.
        batch: Any = [_tensors.private_arrays(request.args[0]) for request in inputs]
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
            return [leave(target, part) for part in output], count
        bounds = [(i, i + 1) for i in range(count)]
        return split(target, output, bounds, count, item=True), count


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
                    value = _tensors.from_numpy(torch, value)
                placed = place(target, value)
                return placed.clone() if placed is value else placed

            arrays = target.torch_device is not None
            args, kwargs = _tree.map_tensors((request.args, request.kwargs), change, arrays=arrays)
            if not arrays:
                args, kwargs = _tensors.private_arrays((args, kwargs))
            responses.append(leave(target, target.call(*args, **kwargs), numpy))
        return responses, len(inputs)
