"""Settings of `BatchQueue` by the names that they had: understood, with a warning of the new call.

Old and new names are told apart here alone; nothing else of the package knows the old ones.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec

from onelane import _devices, _names
from onelane._executor import DeviceExecutor, executor
from onelane._pad import Pad
from onelane._requests import Each, Items, Tensors

P = ParamSpec("P")

# What came after the model and the device, by position.
_ORDER = (
    "max_batch_size", "max_wait_ms", "capacity", "workers", "collate", "pad", "output",
)  # fmt: skip
# What is a part of `requests` now, by the name that it has there.
_OF_REQUESTS = {
    "collate": "collate", "pad": "pad", "output": "output", "copy_outputs": "copy",
    "cuda_graphs": "cuda_graphs", "unpack": "unpack", "cost": "cost",
}  # fmt: skip
_OLD = frozenset(("max_wait_ms", "workers", "batch", *_OF_REQUESTS))


def understood(init: Callable[P, None]) -> Callable[P, None]:
    """Have the constructor of a batch queue take the old names, too."""

    @functools.wraps(init)
    def understanding(*args: P.args, **kwargs: P.kwargs) -> None:
        # The first is the queue itself.
        by_position = args[3:]
        is_old = len(by_position) > 1 or any(isinstance(one, int) for one in by_position)
        if is_old or not _OLD.isdisjoint(kwargs):
            return _translated(init, args, kwargs)
        return init(*args, **kwargs)

    return understanding


def _translated(init: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given, by_position, settings = args[:3], list(args[3:]), dict(kwargs)
    if by_position and not isinstance(by_position[0], int):
        settings["requests"] = by_position.pop(0)
    if len(by_position) > len(_ORDER):
        raise TypeError("BatchQueue() takes a model, a device and requests by position, no more")
    for name, value in zip(_ORDER, by_position, strict=False):
        if name in settings:
            raise TypeError(f"BatchQueue() got two values for {name!r}")
        settings[name] = value
    old = [name for name in settings if name in _OLD or name in _ORDER[: len(by_position)]]
    of_requests = {name: settings.pop(name) for name in tuple(_OF_REQUESTS) if name in settings}
    new: dict[str, Any] = {}
    if of_requests or "batch" in settings:
        if settings.get("requests") is not None:
            name = next(iter([*of_requests, "batch"]))
            raise TypeError(f"{name}= is a part of requests= now: give it there")
        new["requests"] = _requests(settings.pop("batch", True), of_requests)
        if not new["requests"].shared:
            # One that runs alone is in no batch whose cost could be bound.
            settings.pop("max_batch_cost", None)
    if "max_wait_ms" in settings:
        new["max_wait"] = settings.pop("max_wait_ms") / 1000
    device = given[2] if len(given) > 2 else settings.get("device")
    workers = settings.pop("workers", 1)
    shown = {**new, **settings}
    if workers != 1 and not isinstance(device, DeviceExecutor):
        device = executor(_devices.default() if device is None else device, workers)
        given, new["device"] = given[:2], device
        code = _Code(f"onelane.executor({device.device!r}, workers={workers})")
        shown = {"device": code, **shown}
    shown = dict(zip(("model", "device"), given[1:], strict=False)) | shown
    # These are by position, in whichever way they were given.
    shown = {name: shown[name] for name in ("model", "device") if name in shown} | shown
    call = ", ".join(
        _code(name, value) if name in ("model", "device") else f"{name}={_code(name, value)}"
        for name, value in shown.items()
    )
    spelt = ", ".join(f"{name}=" for name in old)
    warnings.warn(
        f"BatchQueue({spelt}) is an old spelling. Write: onelane.BatchQueue({call})",
        DeprecationWarning,
        stacklevel=_names.level_outside(),
    )
    init(*given, **{**settings, **new})


def _requests(batch: bool, given: dict[str, Any]) -> Tensors | Items | Each:
    """Make what `requests=` is now of what it was."""
    collate = given.pop("collate", "tensor")
    parts = {_OF_REQUESTS[name]: value for name, value in given.items()}
    pad, graphs = parts.get("pad"), parts.get("cuda_graphs", False)
    if isinstance(collate, str) and collate not in ("tensor", "list"):
        said = _names.nearest(collate, ("tensor", "list"))
        raise ValueError(f"collate={collate!r}: use 'tensor', 'list' or a function of a list{said}")
    if (pad is not None or graphs) and (collate != "tensor" or not batch):
        name = "cuda_graphs" if graphs else "pad"
        raise ValueError(
            f"{name}= is for tensors that are batched: use requests=onelane.Tensors({name}=...)"
        )
    kind: type[Any] = Tensors
    if not batch:
        kind = Each
    elif collate != "tensor":
        kind = Items
        if collate != "list":
            parts["collate"] = collate
    known = {field.name for field in dataclasses.fields(kind)}
    made: Tensors | Items | Each = kind(**{n: v for n, v in parts.items() if n in known})
    return made


class _Code(str):
    """Text that is shown as it is."""

    __slots__ = ()


def _code(name: str, value: Any) -> str:
    """Show a value as one would write it; what cannot be, by the setting's name."""
    if isinstance(value, _Code):
        return value
    if isinstance(value, (Tensors, Items, Each, Pad)):
        fields = [
            f"{field.name}={_code(field.name, part)}"
            for field in dataclasses.fields(value)
            if field.init and (part := getattr(value, field.name)) != field.default
        ]
        return f"onelane.{type(value).__name__}({', '.join(fields)})"
    if value is None or isinstance(value, (str, int, float, tuple, list, dict)):
        return repr(value)
    if name == "model":
        return name
    called = getattr(value, "__name__", name)
    return name if called == "<lambda>" else str(called)


__all__ = ["understood"]
