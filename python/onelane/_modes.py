"""PyTorch's per-thread modes: taken on the calling thread, applied on the worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from onelane._modules import imported

# (grad enabled, inference mode, ((device type, autocast dtype, cache enabled), ...), the default
# device or None). Hashable: it is part of a request's batch key. None: torch is not loaded.
Modes = tuple[bool, bool, tuple[tuple[str, Any, bool], ...], Any] | None

DEFAULT: Modes = (True, False, (), None)


def capture(device_types: Iterable[str]) -> Modes:
    """Return the calling thread's modes; autocast for the given device types."""
    torch = imported("torch")
    if torch is None:
        return None
    autocast: tuple[tuple[str, Any, bool], ...] = ()
    for device_type in device_types:
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            autocast += ((device_type, dtype, torch.is_autocast_cache_enabled()),)
    device = torch.get_default_device() if default_device_may_be_set(torch) else None
    if device is not None and device.type == "cpu":
        device = None
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, device)


def default_device_may_be_set(torch: Any) -> bool:
    """Whether the calling thread may have a default device: a quick look."""
    depth = getattr(torch._C, "_len_torch_function_stack", None)
    return depth is None or depth() > 0


def applied(modes: Modes) -> contextlib.AbstractContextManager[object]:
    """Apply modes to the calling thread for the length of a with block."""
    if modes is None:
        return _AS_IT_IS
    import torch

    grad, inference, autocast, device = modes
    if (
        not autocast
        and device is None
        and torch.is_grad_enabled() == grad
        and torch.is_inference_mode_enabled() == inference
    ):
        return _AS_IT_IS
    stack = contextlib.ExitStack()
    if torch.is_inference_mode_enabled() != inference:
        stack.enter_context(torch.inference_mode(inference))
    if torch.is_grad_enabled() != grad:
        stack.enter_context(torch.set_grad_enabled(grad))
    if device is not None:
        stack.enter_context(device)
    for device_type, dtype, cache in autocast:
        stack.enter_context(torch.autocast(device_type, dtype=dtype, cache_enabled=cache))
    return stack


_AS_IT_IS = contextlib.nullcontext()


def call(modes: Modes, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function in these modes."""
    if modes is None:
        return function(*args, **kwargs)
    with applied(modes):
        return function(*args, **kwargs)
