"""What a model does for a batch of some shape, recorded as a CUDA graph and replayed.

A small model's batch is more launches than work, and PyTorch lets go of the interpreter's lock for
each of them. A graph is one launch: the upload, the model, and the download.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from onelane import _modes, _tree

# Shapes that are recorded; batches of other shapes run without a graph.
_MOST_SHAPES = 128
# What a graph may keep for one input or output.
_MOST_BYTES = 64 * 2**20


class Recorder(Protocol):
    """Records work on a device."""

    def upload(self, tensor: Any) -> Any:
        """Return a copy of a host tensor on the device."""

    def host(self, shape: Iterable[int], dtype: Any) -> Any:
        """Return a host tensor of zeros, which the device can copy from and to by itself."""

    def made(self, tensor: Any) -> bool:
        """Whether the tensor is on the device: else replaying leaves it as it is."""

    def rehearse(self, work: Callable[[], Any]) -> Any:
        """Do the work as it will be recorded, and return what it returns."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what does the work again, and waits for it."""


class CudaRecorder:
    """Records on a CUDA device; for one thread."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device = torch, device
        self._stream = torch.cuda.Stream(device)
        # Graphs run one after another and leave nothing on the device: they share their memory.
        self._pool = torch.cuda.graph_pool_handle()

    def upload(self, tensor: Any) -> Any:
        """See `Recorder`."""
        return tensor.to(self._device, non_blocking=True)

    def host(self, shape: Iterable[int], dtype: Any) -> Any:
        """See `Recorder`."""
        return self._torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)

    def made(self, tensor: Any) -> bool:
        """See `Recorder`."""
        return bool(tensor.is_cuda)

    def rehearse(self, work: Callable[[], Any]) -> Any:
        """See `Recorder`."""
        self._stream.wait_stream(self._torch.cuda.current_stream(self._device))
        with self._torch.cuda.stream(self._stream):
            # What is chosen or made at the first call is there at the second.
            work()
            result = work()
        self._stream.synchronize()
        return result

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`."""
        cuda = self._torch.cuda
        graph = cuda.CUDAGraph()
        with cuda.stream(self._stream):
            # Other threads may go on with what they do to the device.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()

        def replay() -> None:
            graph.replay()
            cuda.current_stream(self._device).synchronize()

        return replay


class _Recorded:
    """The work for one shape, with the host tensors that it reads and writes."""

    def __init__(self, inputs: list[Any], outputs: Any, replay: Callable[[], None]) -> None:
        self.inputs, self._outputs, self._replay = inputs, outputs, replay

    def run(self, rows: int) -> Any:
        """Return the outputs for the first rows of the inputs; good until the next run."""
        _repeat_last(self.inputs, rows)
        self._replay()
        return _tree.map_tensors(self._outputs, lambda tensor: tensor[:rows])


class Graphs:
    """Calls a model with host tensors, which agree about their rows, and returns host tensors.

    Where that cannot be recorded (an input that is not a plain host tensor, or wants a gradient; an
    output that is not by rows, or not made on the device; a model that waits for the device) the
    model is simply called, and the output is on the device.
    """

    def __init__(self, recorder: Recorder, model: Callable[..., Any]) -> None:
        self._recorder, self._model = recorder, model
        # None: it cannot be recorded.
        self._recorded: dict[Any, _Recorded | None] = {}

    def __call__(self, modes: _modes.Modes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model in these modes."""
        leaves: list[Any] = []
        spec = _tree.flatten((args, kwargs), leaves, [])
        rows = leaves[0].shape[0]

        def fill(inputs: list[Any]) -> None:
            for place, leaf in zip(inputs, leaves, strict=True):
                place[:rows] = leaf

        recorded = self._find(modes, spec, leaves, rows, fill)
        if recorded is not None:
            return recorded.run(rows)
        args, kwargs = _tree.map_tensors((args, kwargs), self._recorder.upload)
        return _modes.call(modes, self._model, args, kwargs)

    def of_one(
        self, modes: _modes.Modes, like: Any, rows: int, write: Callable[[Any], Any]
    ) -> Any | None:
        """The same for one tensor of so many rows of those of `like`, which `write` writes.

        None where it cannot be recorded.
        """

        def fill(inputs: list[Any]) -> None:
            write(inputs[0][:rows])

        recorded = self._find(modes, _tree.ONE_TENSOR, [like], rows, fill)
        return None if recorded is None else recorded.run(rows)

    def _find(
        self,
        modes: _modes.Modes,
        spec: _tree.Spec,
        like: list[Any],
        rows: int,
        fill: Callable[[list[Any]], None],
    ) -> _Recorded | None:
        """Return the recorded work for such inputs, filled with them."""
        if rows == 0 or not all(map(_is_plain, like)):
            return None
        size = _size(rows)
        key = (modes, _tree.key(spec), size, tuple((leaf.dtype, leaf.shape[1:]) for leaf in like))
        try:
            recorded = self._recorded[key]
        except KeyError:
            return self._new(key, modes, spec, like, size, rows, fill)
        if recorded is not None:
            fill(recorded.inputs)
        return recorded

    def _new(
        self,
        key: Any,
        modes: _modes.Modes,
        spec: _tree.Spec,
        like: list[Any],
        size: int,
        rows: int,
        fill: Callable[[list[Any]], None],
    ) -> _Recorded | None:
        if len(self._recorded) >= _MOST_SHAPES or any(
            _bytes(leaf, size) > _MOST_BYTES for leaf in like
        ):
            return None
        inputs = [self._recorder.host((size, *leaf.shape[1:]), leaf.dtype) for leaf in like]
        fill(inputs)
        _repeat_last(inputs, rows)

        # What is recorded may keep this, and must not keep itself by it: no `self`.
        upload, model = self._recorder.upload, self._model

        def work() -> Any:
            args, kwargs = _tree.unflatten(spec, map(upload, inputs))
            return _modes.call(modes, model, args, kwargs)

        # An error here is one of the model.
        rehearsed = self._recorder.rehearse(work)
        try:
            _refuse_values(rehearsed)
            outputs = _tree.map_tensors(rehearsed, lambda tensor: self._host(tensor, size))
            recorded = _Recorded(
                inputs, outputs, self._recorder.record(_downloading(work, outputs))
            )
        except Exception as error:
            self._recorded[key] = None
            warnings.warn(
                f"the model cannot be recorded as a CUDA graph for {size} rows, and runs without: "
                f"{error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        self._recorded[key] = recorded
        return recorded

    def _host(self, tensor: Any, size: int) -> Any:
        """Return a host tensor for what is to be read back."""
        if not tensor.ndim or tensor.shape[0] != size:
            raise ValueError(f"an output of shape {tuple(tensor.shape)} is not by rows")
        if _bytes(tensor, size) > _MOST_BYTES:
            raise ValueError(f"an output of shape {tuple(tensor.shape)} is large")
        if not self._recorder.made(tensor):
            raise ValueError(f"an output of shape {tuple(tensor.shape)} is on {tensor.device}")
        return self._recorder.host(tensor.shape, tensor.dtype)


def _downloading(work: Callable[[], Any], outputs: Any) -> Callable[[], None]:
    """Return work that also copies what it returns into `outputs`."""

    def downloading() -> None:
        places: list[Any] = []
        _tree.map_tensors(outputs, places.append)
        at = iter(places)
        _tree.map_tensors(work(), lambda tensor: next(at).copy_(tensor.detach(), non_blocking=True))

    return downloading


def _size(rows: int) -> int:
    """Rows that are computed: up to a quarter more, so that there are fewer shapes."""
    step = max((1 << (rows - 1).bit_length()) // 8, 1)
    return -(-rows // step) * step


def _repeat_last(tensors: list[Any], rows: int) -> None:
    for tensor in tensors:
        if rows < tensor.shape[0]:
            tensor[rows:] = tensor[rows - 1]


def _is_plain(tensor: Any) -> bool:
    """Whether it is a host tensor that may be copied number by number."""
    torch = sys.modules["torch"]
    return (
        type(tensor) is torch.Tensor
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and not tensor.requires_grad
    )


def _bytes(tensor: Any, rows: int) -> int:
    """What so many rows of those of a tensor take."""
    row: int = math.prod(tensor.shape[1:]) * tensor.element_size()
    return rows * row


def _refuse_values(output: Any) -> None:
    """Raise for what has rows and is no tensor: replaying would leave it as it is."""
    if _tree.is_array(output):
        raise ValueError("an output is a NumPy array")
    if _tree.is_values(output):
        raise ValueError(f"an output is a list of {len(output)} plain values")
    if isinstance(output, Mapping):
        output = output.values()
    elif _tree.is_dataclass(output):
        output = vars(output).values()
    elif not isinstance(output, (tuple, list)):
        return
    for part in output:
        _refuse_values(part)
