"""What makes a model, and what is one."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

from onelane._training import is_module


def _parameters(function: Any) -> list[inspect.Parameter] | None:
    """Return the parameters of a callable; None if it does not say."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _needs_arguments(parameters: list[inspect.Parameter]) -> bool:
    return any(
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )


def _makes_models(kind: type) -> bool:
    """Whether the instances of a class can be called."""
    return any("__call__" in vars(base) for base in kind.__mro__)


def is_factory(model: Any, said: bool | None) -> bool:
    """Whether what a queue is given makes its model.

    said: what the caller says of it. Raises `TypeError` if it may be either and nothing was said.
    """
    if said is not None:
        return bool(said)
    if is_module(model):
        return False
    if isinstance(model, type):
        return _makes_models(model)
    parameters = _parameters(model)
    if parameters is None:
        return False
    if not parameters:
        return True
    plain = isinstance(model, (types.FunctionType, functools.partial))
    open_ended = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    if plain and not open_ended and not _needs_arguments(parameters):
        name = getattr(model, "__name__", None) or repr(model)
        raise TypeError(
            f"{name} can be called without arguments, so it may load the model or be the model: "
            f"say factory=True or factory=False"
        )
    return False


def is_factory_of_object(value: Any, said: bool | None) -> bool:
    """Whether what is guarded is made by what `guard` is given."""
    if said is not None:
        return bool(said)
    if isinstance(value, type):
        return True
    if not isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        return False
    parameters = _parameters(value)
    return parameters is None or not _needs_arguments(parameters)


def takes_nothing(value: Any) -> bool:
    """Whether a callable says that it can be called without arguments."""
    parameters = _parameters(value)
    return parameters is not None and not _needs_arguments(parameters)


__all__ = ["is_factory", "is_factory_of_object", "takes_nothing"]
