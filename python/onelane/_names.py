"""Misspelt names get the nearest one that there is."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ". Did you mean ...?" for a name that is not known; empty if none is like it."""
    names = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f". Did you mean {names[found[0]]!r}?" if found else ""


def settings(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function name the nearest setting when it is given one that it does not have."""
    known = inspect.signature(function).parameters
    names = [name for name in known if name != "self"]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise TypeError("a function that takes any setting has none that is misspelt")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                said = nearest(name, names) or f": it has {', '.join(names)}"
                what = function.__qualname__.removesuffix(".__init__")
                raise TypeError(f"{what}() has no setting {name!r}{said}")
        return function(*args, **kwargs)

    return checked


def level_outside() -> int:
    """Return the `stacklevel` of the first frame outside of the package, for the caller to warn."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    return level


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "onelane"


__all__ = ["level_outside", "nearest", "settings"]
