"""How the simulated device becomes PyTorch's `mps`: a device guard, factories, and `torch.mps`.

Nothing of this happens before a device is asked for. What can be undone is undone when the device
is left; the guard and the factories stay loaded, and refuse.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from onelane.sim import _guard
from onelane.sim._current import current
from onelane.sim._dispatch import aten, dispatch, empty
from onelane.sim._native import Bytes, dense_layout, on_bytes
from onelane.sim._plan import digest, host_arithmetic, layout_of, new_layout
from onelane.sim._tensor import SimTensor

_FACTORIES: tuple[Any, ...] = (
    aten.arange.default, aten.arange.start, aten.arange.start_step,
    aten.linspace.default, aten.logspace.default, aten.range.default, aten.range.step,
    aten.eye.default, aten.eye.m, aten.tril_indices.default, aten.triu_indices.default,
)  # fmt: skip
# Registered so that they arrive whole, as on a real device; the tensor class answers them.
_WHOLE = ("linear", "scaled_dot_product_attention")

_prepared = threading.Lock()
_library: Any = None


def prepare() -> None:
    """Load the guard and register operators and factories, once in a process."""
    global _library
    with _prepared:
        if _library is not None:
            return
        _guard.load()
        SimTensor._sim_dispatch = staticmethod(dispatch)
        make: Any = torch.library.Library
        library = make("aten", "IMPL")
        library.impl("empty.memory_format", _empty, "MPS")
        library.impl("empty_strided", _empty_strided, "MPS")
        for func in _FACTORIES:
            library.impl(func.name().removeprefix("aten::"), _factory(func), "MPS")
        for name in _WHOLE:
            library.impl(name, _never, "MPS")
        _library = library


def _empty(
    size: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> SimTensor:
    dtype = dtype or torch.get_default_dtype()
    if memory_format in (None, torch.contiguous_format, torch.preserve_format):
        return empty(current(), dense_layout(tuple(size), dtype))
    meta = torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format)
    return empty(current(), layout_of(meta))


def _empty_strided(
    size: Any,
    stride: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
) -> SimTensor:
    wanted = dense_layout(tuple(size), dtype or torch.get_default_dtype())
    return empty(current(), wanted._replace(strides=tuple(stride)))


def _factory(func: Any) -> Callable[..., SimTensor]:
    name = func._schema.name.removeprefix("aten::")

    def make(
        *args: Any,
        dtype: Any = None,
        layout: Any = None,
        device: Any = None,
        pin_memory: Any = None,
    ) -> SimTensor:
        layout_ = new_layout(layout_of(func(*args, dtype=dtype, device="meta")))
        made = empty(current(), layout_)

        def work(reads: list[Bytes], writes: list[Bytes]) -> None:
            with host_arithmetic():
                result = func(*args, dtype=dtype, device="cpu")
                on_bytes(writes[0], layout_).copy_(result)

        key = digest(str(func), args, dtype)
        made._sim_device.native.encode((False, name, "", key), ([], [made._sim_block]), work)
        return made

    return make


def _never(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("an mps tensor that is not the simulated device's")


# --- torch.mps --------------------------------------------------------------------------------

_before: list[tuple[Any, str, Any]] = []


def _reserved() -> int:
    return current().stats()["reserved_bytes"]


_STAND_INS: dict[str, Callable[..., Any]] = {
    "synchronize": lambda: current().synchronise(),
    "empty_cache": lambda: current().empty_cache(),
    "current_allocated_memory": lambda: current().stats()["used_bytes"],
    "driver_allocated_memory": _reserved,
    "recommended_max_memory": lambda: 1 << 36,
    "device_count": lambda: 1,
    "is_available": lambda: True,
    "manual_seed": lambda seed: current().manual_seed(seed),
    "seed": lambda: None,
}


def switch_on() -> None:
    """Have PyTorch say that it has an MPS device."""
    for name, stand_in in _STAND_INS.items():
        _replace(torch.mps, name, stand_in)
    for name in ("is_available", "is_built"):
        # Cached as the originals are, whose `__wrapped__` parts of PyTorch look at.
        _replace(torch.backends.mps, name, functools.cache(lambda: True))
    # `Module.to` would put our tensor's insides under a plain parameter's name: swap them whole.
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    _before.append((None, "", swapping))


def switch_off() -> None:
    """Undo `switch_on`."""
    while _before:
        where, name, value = _before.pop()
        if where is None:
            torch.__future__.set_swap_module_params_on_conversion(value)
        elif value is _ABSENT:
            delattr(where, name)
        else:
            setattr(where, name, value)


_ABSENT = object()


def _replace(where: Any, name: str, stand_in: Callable[..., Any]) -> None:
    _before.append((where, name, getattr(where, name, _ABSENT)))
    setattr(where, name, stand_in)
