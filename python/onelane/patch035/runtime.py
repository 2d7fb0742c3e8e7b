"""Patch 035 for the running process: torch's function is swapped, no file changes.

The patched function is compiled from torch's own text and the shipped patch file, in
the namespace of torch.nn.functional, so it is what the patched file would define.
The swap holds for all threads of the process and is counted: it is undone when
`disable` has been called as often as `enable`. Models that were compiled or scripted
before the swap keep the function that they were compiled with.

CORRECTNESS: `_swap` is only touched under `_lock`; the swap itself is one attribute
assignment, so a thread that calls attention meanwhile finds the old function or the
new one, and both give the same values.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from onelane.patch035 import target
from onelane.patch035.errors import TorchNotFoundError, UnsupportedTorchError
from onelane.patch035.target import State

_Function = Callable[..., Any]


@dataclass
class _Swap:
    depth: int
    original: _Function
    replacement: _Function


_lock = threading.RLock()
_swap: _Swap | None = None


def enable(*, any_version: bool = False) -> None:
    """Use the patched function from now on, in all threads. May be nested.

    Does nothing if torch was imported from a file that has the patch already.
    `any_version` lifts the check of the version number, never that of the function.
    Raises TorchNotFoundError, UnsupportedTorchError.
    """
    global _swap
    with _lock:
        if _swap is not None:
            _swap.depth += 1
            return
        functional = _import_functional()
        original: Any = getattr(functional, target.FUNCTION, None)
        replacement = _patched(original, functional, any_version)
        setattr(functional, target.FUNCTION, replacement)
        _swap = _Swap(1, original, replacement)


def disable() -> None:
    """Undo one `enable`; the last one brings torch's own function back.

    Raises RuntimeError if there was no `enable` to undo.
    """
    global _swap
    with _lock:
        if _swap is None:
            raise RuntimeError("patch035.disable() without an enable() before it")
        _swap.depth -= 1
        if _swap.depth > 0:
            return
        swap, _swap = _swap, None
        functional = _import_functional()
        if getattr(functional, target.FUNCTION, None) is swap.replacement:
            setattr(functional, target.FUNCTION, swap.original)
        else:
            warnings.warn(
                f"torch.nn.functional.{target.FUNCTION} was replaced by other code while patch "
                "035 was enabled, and is left as that code made it",
                RuntimeWarning,
                stacklevel=2,
            )


@contextlib.contextmanager
def enabled(*, any_version: bool = False) -> Iterator[None]:
    """`enable` for the length of a `with` block. May be nested, also across threads."""
    enable(any_version=any_version)
    try:
        yield
    finally:
        disable()


def is_enabled() -> bool:
    """Whether the swap is in force now."""
    with _lock:
        return _swap is not None


def _import_functional() -> ModuleType:
    try:
        import torch.nn.functional
    except ImportError as error:
        raise TorchNotFoundError(f"patch 035 needs torch: {error}") from error
    return torch.nn.functional


def _patched(original: object, functional: ModuleType, any_version: bool) -> _Function:
    import torch

    version = str(torch.__version__)
    if not any_version and not target.is_known_version(version):
        raise UnsupportedTorchError(
            f"torch {version} has not been tested with patch 035 (PyTorch "
            f"{target.KNOWN_SERIES[0]} to {target.KNOWN_SERIES[-1]} have). Pass any_version=True "
            "to enable it if the function is still the same text."
        )
    refusal = UnsupportedTorchError(
        f"torch {version}: torch.nn.functional.{target.FUNCTION} is not the function that it was "
        "released with, so patch 035 cannot be enabled on it. Find the code that replaces or "
        "changes it; or send the work through onelane.executor, which needs no patch."
    )
    if not isinstance(original, FunctionType):
        raise refusal
    try:
        text = inspect.getsource(original)
    except (OSError, TypeError) as error:
        raise refusal from error
    state = target.state_of(text)
    if state is State.UNKNOWN:
        raise refusal
    before = target.unpatched(text) if state is State.PATCHED else text
    after = text if state is State.PATCHED else target.patched(text)
    # The text is the file's, and the file may have been patched or reverted after this
    # process imported it: what runs is told by its code.
    if _same_code(original, _define(after, functional)):
        return original
    if not _same_code(original, _define(before, functional)):
        raise refusal
    return _define(after, functional)


def _define(text: str, functional: ModuleType) -> FunctionType:
    """Run the definition in torch.nn.functional's namespace without binding its name there."""
    filename = f"<patch 035 of {functional.__file__}>"
    # So that tracebacks, torch.jit.script and inspect find the text.
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    defined: dict[str, Any] = {}
    exec(compile(text, filename, "exec", dont_inherit=True), functional.__dict__, defined)
    function = defined[target.FUNCTION]
    if not isinstance(function, FunctionType):
        raise TypeError(f"the text defines no function {target.FUNCTION}")
    return function


def _same_code(one: FunctionType, other: FunctionType) -> bool:
    def essence(code: CodeType) -> tuple[object, ...]:
        return code.co_code, code.co_consts, code.co_names, code.co_varnames

    return essence(one.__code__) == essence(other.__code__)
