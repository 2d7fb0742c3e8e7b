"""An isolated worker: `python -m onelane._child`, started by a supervisor in its parent.

The loop is native: it takes a batch off the socket and calls `Server` once for it. The main module
of the parent is never run here.
"""

from __future__ import annotations

import contextvars
import faulthandler
import logging
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from onelane import _collate, _isolation, _log, _model, _modes, _onelane, _tensors, _tree, _wire
from onelane._remote import ALL, DONE, ONE, PLAIN, RAISED


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
    _onelane.serve_parent(build)


def build(payload: bytes) -> tuple[Callable[..., Any], bool]:
    """Return what runs batches, and whether a failed one may be run again."""
    told: dict[str, Any] = pickle.loads(payload)
    if not told["keep_path"]:
        sys.path[:] = told["path"]
    _listen(told["levels"])
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
    from onelane import _batch_queue, _executor

    _executor  # what a model that asks for its device's executor finds is loaded already
    model = spec.model.find() if isinstance(spec.model, _isolation.ByName) else spec.model
    collate, pad, batch, unpack = spec.collate
    made = _model.Build(
        model,
        factory=spec.factory,
        device=spec.device,
        collator=_batch_queue._collator(collate, pad, batch, unpack),
        **spec.settings,
    )
    runner = made()
    assert isinstance(runner, _model.Runner)
    return Server(runner, made.collator)


class Server:
    """Runs batches that have come as letters, and writes the responses as letters."""

    def __init__(self, runner: _model.Runner, collator: _collate.Collator) -> None:
        self._runner = runner
        self._tensors = isinstance(collator, _collate.TensorCollator)

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
            _, modes, rows, tensors = opened[0]
            responses, cost = self._runner.run_plain(tensors, rows, _modes_here(modes), None)
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

    def _run(self, inputs: list[Any], modes: _modes.Modes) -> tuple[list[Any], int]:
        modes = _modes_here(modes)
        return self._runner([self._payload(request, modes) for request in inputs])

    def _payload(self, request: Any, modes: _modes.Modes) -> _model.Payload:
        if type(request) is tuple:
            # A plain tensor that shares its batch with others.
            return self._runner.prepared(*request, modes, None)
        if self._tensors:
            request.args = tuple(map(_as_tensor, request.args))
        return _model.Payload(request, modes, contextvars.Context())


def _as_tensor(part: Any) -> Any:
    """Return a tensor of an array, which a parent without PyTorch sends."""
    return _tensors.from_numpy(sys.modules["torch"], part) if _tree.is_array(part) else part


def _modes_here(modes: _modes.Modes) -> _modes.Modes:
    if modes is not None:
        return modes
    return _modes.DEFAULT if "torch" in sys.modules else None


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
        import cloudpickle
    except ImportError:
        return [pickle]
    # What a script defines has come by value, and goes back so.
    return [pickle, cloudpickle]


if __name__ == "__main__":
    # One module, whatever imports it.
    from onelane._child import main as _main

    _main()
