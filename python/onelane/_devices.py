"""Names of devices, and the few things that PyTorch has to be asked about one."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from onelane import _names
from onelane._modules import imported

# Device types for which autocast exists. A model on mps may run parts on the CPU.
_AUTOCAST = ("cuda", "mps", "xpu", "cpu")

# Types whose current device is each thread's own; the name of the device that a worker has made it.
_HAS_CURRENT = ("cuda", "xpu")
_current = threading.local()

# Types that PyTorch has, and whether there can be several devices of one.
_TYPES = {
    "cpu": False, "cuda": True, "fpga": True, "hip": True, "hpu": True, "ipu": True, "lazy": True,
    "maia": True, "meta": False, "mps": False, "mtia": True, "npu": True, "ve": True,
    "vulkan": True, "xla": True, "xpu": True,
}  # fmt: skip
# Names of other runtimes' devices: what has been said to be one need not be said again.
_custom = {"mlx"}
_MEANT = {"gpu": "cuda' or 'mps", "metal": "mps", "nvidia": "cuda", "rocm": "cuda", "apple": "mps"}


def canonical(device: Any, custom: bool = False) -> str:
    """Return the name of a device, the same for all its spellings: `MPS` and `mps:0` are `mps`.

    custom: the name may be any, as for runtimes other than PyTorch's.
    """
    name = str(device).strip()
    if not name:
        raise ValueError("device is empty: name one, for example 'mps', 'cuda:1' or 'cpu'")
    if custom or name.removesuffix(":0") in _custom:
        name = name.removesuffix(":0")
        _custom.add(name)
        return name
    kind, colon, index = name.partition(":")
    kind = kind.lower()
    several = _TYPES.get(kind, kind == _private_type() or None)
    if several is None:
        meant = _MEANT.get(kind)
        said = f". Did you mean '{meant}'?" if meant else _names.nearest(kind, _TYPES)
        raise ValueError(
            f"device {name!r} is none of PyTorch's{said or '.'} For "
            f"another runtime (mlx, tensorrt) make its executor with "
            f"executor({name!r}, custom=True)"
        )
    if not colon:
        return kind
    if not (index.isascii() and index.isdigit()):
        raise ValueError(f"device {name!r}: after the colon goes a number, as in 'cuda:1'")
    if not int(index):
        return kind
    if not several:
        raise ValueError(f"device {name!r}: there is one {kind!r} only; use {kind!r}")
    return f"{kind}:{int(index)}"


def _private_type() -> str:
    """The name of a backend that is not PyTorch's own and has registered itself."""
    torch = imported("torch")
    name = None if torch is None else torch._C._get_privateuse1_backend_name()
    return str(name)


def torch_device(name: str) -> Any:
    """Return the `torch.device` of that name.

    None if PyTorch is not loaded, or knows no such device (`mlx`).
    """
    torch = imported("torch")
    try:
        return None if torch is None else torch.device(name)
    except RuntimeError:
        return None


def default() -> str:
    """Return `mps` where PyTorch has it, else `cuda`, else `cpu`."""
    try:
        import torch
    except ImportError:
        return "cpu"
    if torch.backends.mps.is_available():
        return "mps"
    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast_types(name: str) -> tuple[str, ...]:
    """Return the device types whose autocast state matters to a worker of this device."""
    kind = name.partition(":")[0]
    return (kind, "cpu") if kind in _AUTOCAST and kind != "cpu" else ("cpu",)


def synchronize(name: str) -> None:
    """Wait until everything that was submitted to the device has run; on its worker."""
    torch = imported("torch")
    if torch is None:
        return
    kind = name.partition(":")[0]
    if kind == "mps":
        if torch.backends.mps.is_available():
            torch.mps.synchronize()
    elif kind == "cuda":
        if torch.cuda.is_initialized():
            torch.cuda.synchronize(torch.device(name))
    elif kind == "xpu":
        torch.xpu.synchronize(torch.device(name))


def make_current(name: str) -> None:
    """Have code that says `cuda` alone, on this worker, mean the worker's device: `cuda:1`, say.

    It imports PyTorch if that is there: such code may be what loads it. Raises `RuntimeError` if
    the machine has no device of that number.
    """
    kind, _, index = name.partition(":")
    if not index or kind not in _HAS_CURRENT or getattr(_current, "name", None) == name:
        return
    try:
        import torch
    except ImportError:
        return
    devices = getattr(torch, kind)
    if not devices.is_available():
        return
    count = devices.device_count()
    if int(index) >= count:
        names = ", ".join(repr(canonical(f"{kind}:{number}")) for number in range(count))
        raise RuntimeError(f"there is no device {name!r} on this machine; there is {names}")
    devices.set_device(int(index))
    _current.name = name


def collector(name: str) -> Callable[[], object]:
    """Return what is called on the worker after each batch or call.

    On a device whose memory only the worker may free, it has the interpreter collect young garbage
    there: cycles that hold activations would else be freed by whichever thread allocates next.
    """
    watching = after_work(name)
    collects = name.partition(":")[0] == "mps"

    def collect() -> None:
        if collects:
            gc.collect(1)
        for watch in watching:
            watch()

    return collect


def after_work(name: str) -> list[Callable[[], object]]:
    """Return what else is called there, on the worker, after each batch or call of a device."""
    return _after_work.setdefault(name, [])


_after_work: dict[str, list[Callable[[], object]]] = {}


@contextlib.contextmanager
def synchronous_loading() -> Iterator[None]:
    """Have transformers load weights on the calling thread, not in a pool of its own."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
