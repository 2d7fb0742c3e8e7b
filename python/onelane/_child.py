"""An isolated worker: `python -m onelane._child`, started by a supervisor in its parent.

The loop is native: it takes a batch off the socket and calls `Server` once for it. The main module
of the parent is never run here.
"""

from __future__ import annotations

import contextvars
import faulthandler
import importlib.util
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from onelane import _collate, _isolation, _log, _model, _modes, _onelane, _tensors, _tree, _wire
from onelane._item_collator import ItemCollator
from onelane._modules import imported
from onelane._remote import ALL, ARRAYS, DONE, ONE, PLAIN, RAISED, VALUES
from onelane._responses import split
from onelane._tensor_collator import TensorCollator

_STACK = 16 << 20


def main() -> None:
    """Serve the parent until it wants this process to end."""
    # The parent decides; the terminal's signals are the parent's.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable(all_threads=True)
    for stream in (sys.stdout, sys.stderr):
        # What it prints is seen when it is printed.
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)
    _isolation._in_child = True
    # As in process the model runs on a thread that is not the main one, with a worker's stack: what
    # PyTorch does with its own threads depends on that.
    threading.stack_size(_STACK)
    serving = threading.Thread(target=_serve, name="onelane worker")
    serving.start()
    serving.join()


def _serve() -> None:
    try:
        _onelane.serve_parent(build)
    except OSError:
        # The parent is gone.
        os._exit(1)


def build(payload: bytes) -> tuple[Callable[..., Any], bool]:
    """Return what runs batches, and whether a failed one may be run again."""
    told: dict[str, Any] = pickle.loads(payload)
    if not told["keep_path"]:
        sys.path[:] = told["path"]
    _listen(told["levels"])
    if told["numpy"] and importlib.util.find_spec("numpy") is not None:
        # The first batch would pay for it, out of its time.
        importlib.import_module("numpy")
    spec: _isolation.Spec = pickle.loads(told["spec"])
    return _server(spec), spec.idempotent


def _listen(levels: dict[str, int]) -> None:
    """Have log records go to the parent, if it would show them."""
    root = logging.getLogger()
    if not any(isinstance(handler, _log.Sender) for handler in root.handlers):
        root.addHandler(_log.Sender())
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)


def _server(spec: _isolation.Spec) -> Callable[..., Any]:
    model = spec.model.find() if isinstance(spec.model, _isolation.ByName) else spec.model
    made = _model.Build(
        model,
        factory=spec.factory,
        device=spec.device,
        collator=_crossing(spec.requests.collator()),
        wrap=_refuse,
        **spec.settings,
    )
    runner = made()
    assert isinstance(runner, _model.Runner)
    return Server(runner, made.collator)


class Whole(NamedTuple):
    """The output of a whole batch, on the host: the parent splits it."""

    tensor: Any


class WholeCollator(TensorCollator):
    """Runs a batch of plain tensors that has come as one, and leaves its output whole.

    What it gives the model is the model's own already, and what it returns is copied before the
    next batch.
    """

    def run_plain(
        self, target: _collate.PlainTarget, tensors: list[Any], rows: list[int]
    ) -> tuple[list[Any], int]:
        """As `TensorCollator.run_plain`, of one tensor of all rows."""
        torch, (tensor,) = self._torch, tensors
        if target.graphs is not None:
            return super().run_plain(target, list(tensor.split(rows)), rows)
        count = tensor.shape[0]
        staging = target.staging
        placed = (
            _collate.place(target, tensor) if staging is None else staging.bring([tensor], [count])
        )
        output = target.call(placed)
        if (
            type(output) is not torch.Tensor
            or not output.ndim
            or output.shape[0] != count
            or output.layout is not torch.strided
            or output.is_nested
            or output.is_quantized
        ):
            bounds, start = [], 0
            for size in rows:
                bounds.append((start, start + size))
                start += size
            return split(target, output, bounds, count), count
        output = output.detach()
        if not output.is_cpu:
            output = output.cpu() if staging is None else staging.take(output)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return [Whole(_plain(output))], count
        return [Whole(_plain(output))], count


def _plain(tensor: Any) -> Any:
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


class Own(_collate.Input):
    """A request that has come with memory of its own, which no other request shares."""

    __slots__ = ()


class CrossingItemCollator(ItemCollator):
    """Runs batches of items; a plain array is copied where it crosses, and nowhere else."""

    def private(self, request: _collate.Input) -> Any:
        """As `ItemCollator.private`."""
        return request.args[0] if type(request) is Own else super().private(request)

    def responses(self, target: _collate.Target, output: Any) -> list[Any]:
        """As `ItemCollator.responses`; plain arrays are written out before the next batch."""
        plain = _wire.are_plain_arrays(output)
        return list(output) if plain else super().responses(target, output)


def _crossing(collator: _collate.Collator) -> _collate.Collator:
    if type(collator) is TensorCollator:
        return WholeCollator(collator._pad, collator._unpack)
    if type(collator) is ItemCollator:
        return CrossingItemCollator(collator._collate)
    return collator


def _refuse(_: Any, value: Any) -> Any:
    raise TypeError(
        f"a {type(value).__name__} cannot leave the isolated worker: it belongs to its device. "
        f"Return tensors, arrays, plain values or containers of them; a generator's items leave as "
        f"a stream of guard(..., isolation=...)"
    )


class Server:
    """Runs batches that have come as letters, and writes the responses as letters."""

    def __init__(self, runner: _model.Runner, collator: _collate.Collator) -> None:
        self._runner = runner
        self._tensors = isinstance(collator, TensorCollator)

    def __call__(
        self, letters: list[tuple[bytes, list[bytearray]]], count: int
    ) -> tuple[list[_wire.Letter], int]:
        """Run one batch of `count` requests."""
        if len(letters) > 1 or count == 1:
            opened = [_opened(letter) for letter in letters]
        else:
            opened = [_wire.load(letters[0])]
        kind = opened[0][0]
        if kind == PLAIN:
            return self._run_plain(opened[0], letters[0][1])
        if kind in (ARRAYS, VALUES):
            if kind == ARRAYS:
                values = _wire.unarrays(opened[0], letters[0][1])
                inputs: list[Any] = [Own((value,), {}) for value in values]
            else:
                inputs = [_collate.Input((value,), {}) for value in opened[0][2]]
            responses, cost = self._run(inputs, opened[0][1])
            return _letters(responses), cost
        if kind == ALL:
            _, modes, inputs = opened[0]
            responses, cost = self._run(inputs, modes)
            return _letters(responses), cost
        live = [letter for letter in opened if letter[0] == ONE]
        responses, cost = self._run([one[2] for one in live], live[0][1]) if live else ([], 0)
        left = iter(responses)
        return [
            _letter(next(left)) if letter[0] == ONE else _wire.dump(letter) for letter in opened
        ], cost

    def _run_plain(
        self, header: tuple[Any, ...], buffers: list[bytearray]
    ) -> tuple[list[_wire.Letter], int]:
        """Run a batch of plain tensors, which have come as one."""
        _, modes, rows, *_ = header
        tensor = _wire.whole(header, sum(rows), buffers)
        responses, cost = self._runner.run_plain([tensor], rows, _modes_here(modes), None)
        if len(responses) == 1 and type(responses[0]) is Whole:
            return [_wire.split((PLAIN, None), responses[0].tensor, rows)], cost
        return _letters(responses), cost

    def _run(self, inputs: list[Any], modes: _modes.Modes) -> tuple[list[Any], int]:
        modes, context = _modes_here(modes), contextvars.Context()
        return self._runner([self._payload(request, modes, context) for request in inputs])

    def _payload(
        self, request: Any, modes: _modes.Modes, context: contextvars.Context
    ) -> _model.Payload:
        if type(request) is tuple:
            # A plain tensor that shares its batch with others.
            tensor, rows = request
            return self._runner.prepared(tensor, rows, modes, None)
        if self._tensors:
            request.args = tuple(map(_as_tensor, request.args))
        return _model.Payload(request, modes, context)


def _as_tensor(part: Any) -> Any:
    """Return a tensor of an array, which a parent without PyTorch sends."""
    return _tensors.from_numpy(sys.modules["torch"], part) if _tree.is_array(part) else part


def _modes_here(modes: _modes.Modes) -> _modes.Modes:
    if modes is not None:
        return modes
    return None if imported("torch") is None else _modes.DEFAULT


def _opened(letter: tuple[bytes, list[bytearray]]) -> tuple[Any, ...]:
    """Return what a letter holds; why it cannot be read, in its place."""
    try:
        opened: tuple[Any, ...] = _wire.load(letter)
    except Exception as error:
        said = TypeError(
            f"a request cannot be read in the isolated worker: {type(error).__name__}: {error}"
        )
        return (RAISED, describe(said))
    return opened


def _letters(responses: list[Any]) -> list[_wire.Letter]:
    if _wire.are_plain_arrays(responses):
        return [_wire.arrays((ARRAYS, None), responses)]
    try:
        return [_wire.dump((ALL, responses))]
    except Exception:
        # Somebody's: the others are sent.
        return [_letter(response) for response in responses]


def _letter(response: Any) -> _wire.Letter:
    try:
        return _wire.dump((DONE, response))
    except Exception as error:
        said = TypeError(
            f"the response, a {type(response).__name__}, cannot leave the isolated worker "
            f"({type(error).__name__}: {error}): return tensors, arrays, plain values or "
            f"containers of them"
        )
        return _wire.dump((RAISED, describe(said)))


def describe(error: BaseException) -> tuple[str, bytes]:
    """Return the text of an exception, and what the parent makes it of again."""
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    try:
        text = f"{name}: {error}"
    except Exception:
        text = name
    shown = "".join(traceback.format_exception(error))
    return text, pickle.dumps((name, shown, _pickled(error)))


def _pickled(error: BaseException) -> bytes | None:
    for pickler in _picklers():
        try:
            data = pickler.dumps(error, 5)
            if type(pickle.loads(data)) is type(error):
                return bytes(data)
        except Exception:
            continue
    return None


def _picklers() -> list[Any]:
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:
        return [pickle]
    # What a script defines has come by value, and goes back so.
    return [pickle, cloudpickle]


if __name__ == "__main__":
    # One module, whatever imports it.
    from onelane._child import main as _main

    _main()
