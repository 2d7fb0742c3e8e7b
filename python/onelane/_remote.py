"""The parent's half of an isolated queue: packing batches, unpacking responses, making exceptions.

INVARIANT: nothing here loads PyTorch, unless a response has a tensor in it.
"""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

from onelane import _modes, _onelane, _wire
from onelane._collate import Input
from onelane._model import Payload
from onelane.errors import EngineCrashed, EngineHung, EngineLost, ModelError

# What a letter holds, before and after its batch.
PLAIN, ARRAYS, VALUES, ALL = "plain", "arrays", "values", "all"
ONE, DONE, RAISED = "one", "done", "raised"


class Codec:
    """Packs the batches of one queue and unpacks their responses; on the worker.

    each: whether each request goes by itself, so that one which cannot be read in the child fails
        there alone, also where nothing may be run again.
    """

    def __init__(self, each: bool) -> None:
        self._each = each

    def plain(self, tensor: Any, rows: int, modes: _modes.Modes) -> tuple[Any, ...]:
        """Stand for a plain tensor that shares a batch with other inputs."""
        return (tensor, rows, modes)

    def pack_plain(self, tensors: list[Any], rows: list[int], modes: Any) -> list[_wire.Letter]:
        """Return the letters of a batch of plain tensors."""
        return [_wire.joined((PLAIN, _crossing(modes), rows), tensors)]

    def pack(
        self, payloads: list[Any]
    ) -> tuple[list[_wire.Letter], list[tuple[int, BaseException]]]:
        """Return the letters of a batch, and who cannot be packed, with the reason."""
        first = payloads[0]
        modes = _crossing(first.modes if isinstance(first, Payload) else first[2])
        inputs = [p.input if isinstance(p, Payload) else p[:2] for p in payloads]
        values = [request.args[0] for request in inputs if _is_simple(request)]
        if len(values) < len(inputs):
            values = []
        elif _wire.are_plain_arrays(values):
            return [_wire.arrays((ARRAYS, modes), values)], []
        if not self._each:
            try:
                whole = (VALUES, modes, values) if values else (ALL, modes, inputs)
                return [_wire.dump(whole)], []
            except Exception:
                # Somebody's: the others are sent.
                pass
        letters: list[_wire.Letter] = []
        failed: list[tuple[int, BaseException]] = []
        for index, request in enumerate(inputs):
            try:
                letters.append(_wire.dump((ONE, modes, request)))
            except Exception as error:
                failed.append((index, _unsendable(error)))
        return letters, failed

    def unpack(self, letters: list[tuple[bytes, list[bytearray]]]) -> list[Any]:
        """Return the responses of a batch, in order."""
        responses: list[Any] = []
        for letter in letters:
            kind, value, *_ = header = _wire.load(letter)
            if kind == ARRAYS:
                responses += _wire.unarrays(header, letter[1])
            elif kind == PLAIN:
                responses += _wire.unsplit(header, letter[1])
            elif kind == ALL:
                responses += value
            elif kind == DONE:
                responses.append(value)
            else:
                responses.append(_onelane.Failure(revive(value[0], value[1], False)))
        return responses


def _is_simple(request: Any) -> bool:
    """Whether a request is one value and nothing else."""
    return (
        type(request) is Input
        and request.spec is None
        and len(request.args) == 1
        and not request.kwargs
        and not request.cost
        and not request.names
    )


def _crossing(modes: _modes.Modes) -> _modes.Modes:
    """What crosses of a thread's modes; None where they are nobody's doing."""
    return None if modes == _modes.DEFAULT else modes


def _unsendable(error: Exception) -> Exception:
    said = TypeError(
        f"a request cannot be sent to the isolated worker: {type(error).__name__}: {error}. Give "
        f"what can be pickled: tensors, arrays, plain values and containers of them"
    )
    said.__cause__ = error
    return said


class RemoteTraceback(Exception):
    """The traceback of an exception in the isolated worker, as text: the cause of what arrives."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class _Unpickler(pickle.Unpickler):
    """Loads exceptions without loading PyTorch for them."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "torch" and "torch" not in sys.modules:
            raise pickle.UnpicklingError(f"{module} is not loaded here")
        return super().find_class(module, name)


def revive(text: str, detail: bytes, panicked: bool) -> BaseException:
    """Return the exception that a model raised in its child.

    One that cannot be made again here is a `ModelError` with its type, text and traceback.
    """
    name, shown, pickled = "", "", None
    if detail:
        name, shown, pickled = pickle.loads(detail)
    error: BaseException | None = None
    if pickled is not None:
        try:
            error = _Unpickler(io.BytesIO(pickled)).load()
        except Exception:
            error = None
    if not isinstance(error, BaseException):
        what = "the isolated worker panicked: " if panicked else ""
        error = ModelError(f"{what}{text}")
        error.type_name = name
    if shown:
        error.__cause__ = RemoteTraceback(shown)
    return error


def lost(
    kind: str,
    text: str,
    stderr: str,
    signal: int | None,
    status: int | None,
    cause: BaseException | None,
) -> BaseException:
    """Return the exception for a request whose isolated worker was lost."""
    from onelane._log import readable

    stderr = readable(stderr)
    text = readable(text)
    if stderr.strip() and kind != "EngineLost":
        text = f"{text.partition('; it last wrote: ')[0]}; the last that it wrote:\n{stderr}"
    error: EngineLost
    if kind == "EngineCrashed":
        error = EngineCrashed(text)
        error.signal, error.exit_status, error.stderr = signal, status, stderr
    elif kind == "EngineHung":
        error = EngineHung(text)
        error.stderr = stderr
    else:
        error = EngineLost(text)
    error.__cause__ = cause
    return error


__all__ = ["Codec", "RemoteTraceback", "lost", "revive"]
