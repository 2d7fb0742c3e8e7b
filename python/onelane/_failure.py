"""Exceptions on their way from the worker to a caller.

INVARIANT: what has left holds its type, text, notes and every line of its traceback, and nothing of
the device: the frames of the traceback are cleared on the worker, tensors are host copies.
"""

from __future__ import annotations

import contextlib
import traceback
import types
from collections.abc import Iterator
from typing import Any

from onelane import _tree


def leave(error: BaseException) -> None:
    """Free an exception of what belongs to the worker; on the worker.

    Call it where nothing of the traceback's frames is needed any more: those that have ended lose
    their local variables. Frames that still run keep theirs.
    """
    for one in _related(error):
        traceback.clear_frames(one.__traceback__)
        with contextlib.suppress(Exception):
            _bring_values(one)


def own(error: BaseException, raised: types.TracebackType | None) -> BaseException:
    """Return an exception object like another, for a second caller of the same failed batch.

    raised: its traceback as it left the worker; the first caller's own frames are his. Its
    constructor is not called: it may do more than keep its arguments. The exception itself if
    it cannot be copied.
    """
    kind = type(error)
    try:
        copy: BaseException = kind.__new__(kind, *error.args)
    except Exception:
        return error
    copy.args = error.args
    for name in _members(kind):
        with contextlib.suppress(Exception):
            value = getattr(error, name)
            # What is set counts as given: an OSError shows a second file name of None.
            if getattr(copy, name, None) is not value:
                setattr(copy, name, value)
    copy.__dict__.update(error.__dict__)
    copy.__cause__, copy.__context__ = error.__cause__, error.__context__
    copy.__suppress_context__ = error.__suppress_context__
    return copy.with_traceback(raised)


def _related(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and all that it was raised from, beside or as a group of."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]


def _bring_values(error: BaseException) -> None:
    found = False

    def bring(tensor: Any) -> Any:
        nonlocal found
        found = True
        return tensor.detach().cpu().clone()

    args = _tree.map_tensors(error.args, bring)
    if found:
        error.args = args
    for name, value in list(error.__dict__.items()):
        found = False
        brought = _tree.map_tensors(value, bring)
        if found:
            error.__dict__[name] = brought
    if isinstance(error, StopIteration):
        error.value = _tree.map_tensors(error.value, bring)
    if isinstance(error, AttributeError) and not isinstance(error.obj, (type, types.ModuleType)):
        # The object may be the model. Its type is enough for "Did you mean".
        error.obj = type(error.obj)


def _members(kind: type) -> Iterator[str]:
    """Yield the names of what instances hold outside of their dicts: `errno`, `obj`, slots."""
    for base in kind.__mro__:
        if base in (BaseException, object):
            continue
        for name, member in vars(base).items():
            if not name.startswith("__") and isinstance(
                member, (types.MemberDescriptorType, types.GetSetDescriptorType)
            ):
                yield name


__all__ = ["leave", "own"]
