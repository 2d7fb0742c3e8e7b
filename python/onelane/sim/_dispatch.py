"""From PyTorch's operators to the simulated device: views, copies, and everything that computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from onelane.sim import _random, _table
from onelane.sim._current import SimulatedDevice
from onelane.sim._native import Layout, dense_layout
from onelane.sim._plan import (
    Call,
    digest,
    layout_of,
    new_layout,
    plan_of,
    rebuilt,
    run_meta,
    work_of,
)
from onelane.sim._tensor import SimTensor, is_simulated, wrap
from onelane.sim.errors import SimError, UnsupportedOperator

aten = torch.ops.aten


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator of which some tensor is simulated."""
    special = _SPECIAL.get(func)
    if special is not None:
        return special(*args, **kwargs)
    if _table.kind(func):
        return compute(func, args, kwargs)
    if _table.is_composite(func):
        # In inference mode PyTorch leaves that to us.
        return func.decompose(*args, **kwargs)
    if _table.is_view(func):
        return view(func, args, kwargs)
    raise unsupported(func)


def unsupported(func: Any) -> UnsupportedOperator:
    """The error for an operator that the device does not have."""
    return UnsupportedOperator(
        f"the simulated mps device has no operator {func}. It has what onelane.sim._table lists, "
        "and views; on a real device the operator may well exist"
    )


# --- What computes ----------------------------------------------------------------------------


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Allocate the outputs and encode; the arithmetic runs when it is committed."""
    call = Call(func, args, kwargs)
    if func is aten.index.Tensor and any(t.dtype in _MASKS for t in call.tensors[1:]):
        return through_host(func, args, kwargs)
    plan = plan_of(call)
    device = call.tensors[0]._sim_device
    native = device.native
    outputs = [None if out is None else native.alloc(out.nbytes) for out in plan.outputs]
    scratch = [native.alloc(nbytes) for nbytes in plan.scratch]
    writes = [call.blocks[place] for place in plan.written]
    reads: list[Any] = []
    if plan.reads_inputs:
        reads = [b for at, b in enumerate(call.blocks) if at not in plan.written]
    made = [block for block in outputs if block is not None]
    native.encode(plan.command, (reads, writes + made + scratch), work_of(plan, call.constants))
    if plan.written:
        at, name = _table.written_arguments(func)[0]
        return args[at] if at < len(args) else kwargs[name]
    results = tuple(
        None if block is None or layout is None else wrap(device, block, layout)
        for block, layout in zip(outputs, plan.outputs, strict=True)
    )
    return results if plan.is_tuple else results[0]


_MASKS = (torch.bool, torch.uint8)


def through_host(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operator whose output's shape depends on the data: the device waits, the host computes."""
    call = Call(func, args, kwargs)
    device = call.tensors[0]._sim_device
    hosts = iter([download(tensor) for tensor in call.tensors])
    host_args = [rebuilt(arg, lambda _: next(hosts), torch.device("cpu")) for arg in call.args]
    return upload(device, func(*host_args, **kwargs))


# --- Views ------------------------------------------------------------------------------------

_views: dict[Any, Any] = {}
_views_lock = threading.Lock()


class _Many(NamedTuple):
    """Layouts of the views that an operator returns as a list or tuple."""

    kind: type
    layouts: tuple[Layout, ...]


def view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Share the block of the first tensor."""
    call = Call(func, args, kwargs)
    key = call.key
    found = _views.get(key)
    if found is None:
        result = run_meta(func, call.args, call.kwargs)
        if isinstance(result, (list, tuple)):
            found = _Many(type(result), tuple(layout_of(part) for part in result))
        else:
            found = layout_of(result)
        with _views_lock:
            if len(_views) >= 20_000:
                _views.clear()
            _views[key] = found
    base = call.tensors[0]
    if torch.is_inference_mode_enabled() and not base.is_inference():
        # A view of a normal tensor is a normal tensor.
        with torch.inference_mode(False):
            return _viewed(base, found)
    return _viewed(base, found)


def _viewed(base: SimTensor, found: Any) -> Any:
    device, block = base._sim_device, base._sim_block
    if isinstance(found, _Many):
        return found.kind(wrap(device, block, layout) for layout in found.layouts)
    return wrap(device, block, found)


def _unsafe_view(self: SimTensor, size: Any) -> Any:
    return view(aten.view.default, (self, size), {})


def _unsafe_split(self: SimTensor, sizes: Any, dim: int = 0) -> Any:
    return view(aten.split_with_sizes.default, (self, sizes, dim), {})


# --- Copies -----------------------------------------------------------------------------------


def empty(device: SimulatedDevice, layout: Layout) -> SimTensor:
    """A tensor whose memory holds what was there before."""
    layout = new_layout(layout)
    return wrap(device, device.native.alloc(layout.nbytes), layout)


def copy_elements(target: SimTensor, source: SimTensor) -> None:
    """Encode a strided copy between two tensors of one dtype; the source is broadcast."""
    to, start = target._sim_layout, source._sim_layout
    size = to.dtype.itemsize
    extra = len(to.shape) - len(start.shape)
    strides = [0] * extra + [
        0 if have == 1 and want != 1 else stride
        for have, want, stride in zip(start.shape, to.shape[extra:], start.strides, strict=True)
    ]
    copy = {
        "itemsize": size,
        "shape": list(to.shape),
        "from": [stride * size for stride in strides],
        "from_offset": start.offset * size,
        "to": [stride * size for stride in to.strides],
        "to_offset": to.offset * size,
    }
    # Only what overwrites all of its block is a function of the source alone.
    whole = to.nbytes == target._sim_block.nbytes
    key = digest("copy", sorted(copy.items())) if whole else None
    native = target._sim_device.native
    native.copy((False, "copy", "", key), (source._sim_block, target._sim_block), copy)


def clone(self: SimTensor, *, memory_format: Any = None) -> SimTensor:
    """A copy in a block of its own (`.contiguous()` of a strided tensor, too)."""
    layout = self._sim_layout
    if memory_format in (None, torch.preserve_format):
        target = new_layout(layout)
    elif memory_format is torch.contiguous_format:
        target = dense_layout(layout.shape, layout.dtype)
    else:
        meta = torch.empty(layout.shape, dtype=layout.dtype, device="meta")
        target = layout_of(meta.contiguous(memory_format=memory_format))
    made = empty(self._sim_device, target)
    copy_elements(made, self)
    return made


def upload(device: SimulatedDevice, host: torch.Tensor) -> SimTensor:
    """A copy of a host tensor: a blit that commits."""
    host = host.detach().contiguous()
    made = empty(device, dense_layout(tuple(host.shape), host.dtype))
    if host.numel():
        device.native.write(made._sim_block, host.data_ptr())
    return made


def download(self: SimTensor) -> torch.Tensor:
    """A copy on the host; commits what is pending. A strided tensor is made dense on the device."""
    layout = self._sim_layout
    if not layout.is_dense:
        return download(clone(self, memory_format=torch.contiguous_format))
    host = torch.empty(layout.shape, dtype=layout.dtype)
    native, part = self._sim_device.native, (layout.offset * layout.dtype.itemsize, layout.nbytes)
    native.read(self._sim_block, part, host.data_ptr())
    return host


def _copy_(self: torch.Tensor, src: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if not is_simulated(self):
        assert isinstance(src, SimTensor)
        return self.copy_(download(src))
    assert isinstance(self, SimTensor)
    layout = self._sim_layout
    if is_simulated(src):
        assert isinstance(src, SimTensor)
        if src.dtype == self.dtype:
            copy_elements(self, src)
        else:
            compute(aten.copy_.default, (self, src), {})
        return self
    if src.device.type != "cpu":
        raise SimError(f"cannot copy from {src.device} to the simulated mps device")
    host = src.detach().to(layout.dtype).expand(layout.shape).contiguous()
    if layout.numel == 0:
        return self
    if layout.is_dense and layout.nbytes == self._sim_block.nbytes:
        self._sim_device.native.write(self._sim_block, host.data_ptr())
    else:
        copy_elements(self, upload(self._sim_device, host))
    return self


def _to_copy(
    self: torch.Tensor,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    non_blocking: bool = False,
    memory_format: Any = None,
) -> torch.Tensor:
    assert isinstance(self, SimTensor)
    target = torch.device(device) if device is not None else torch.device("mps", 0)
    if target.type == "mps":
        if dtype is None or dtype == self.dtype:
            return clone(self, memory_format=memory_format)
        kwargs = {"dtype": dtype, "memory_format": memory_format}
        result: torch.Tensor = compute(aten._to_copy.default, (self,), kwargs)
        return result
    host = download(self)
    return host.to(device=target, dtype=dtype or self.dtype)


def _local_scalar_dense(self: SimTensor) -> Any:
    return download(self).item()


def _equal(self: torch.Tensor, other: torch.Tensor) -> bool:
    hosts = [download(t) if isinstance(t, SimTensor) else t for t in (self, other)]
    return torch.equal(*hosts)


def _like(self: SimTensor, size: Any, strides: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """An empty tensor with another's dtype and device, unless named."""
    dtype, device = kwargs.get("dtype") or self.dtype, kwargs.get("device")
    if device is not None and torch.device(device).type != "mps":
        return torch.empty(size, dtype=dtype, device=device)
    layout = dense_layout(tuple(size), dtype)
    if strides is not None:
        layout = layout._replace(strides=tuple(strides))
    return empty(self._sim_device, layout)


def _empty_like(self: SimTensor, **kwargs: Any) -> torch.Tensor:
    kept = kwargs.get("memory_format") in (None, torch.preserve_format)
    strides = new_layout(self._sim_layout).strides if kept else None
    return _like(self, self.shape, strides, kwargs)


def _new_empty(self: SimTensor, size: Any, **kwargs: Any) -> torch.Tensor:
    return _like(self, size, None, kwargs)


def _new_empty_strided(self: SimTensor, size: Any, stride: Any, **kwargs: Any) -> torch.Tensor:
    return _like(self, size, stride, kwargs)


def _host(func: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: through_host(func, args, kwargs)


_SPECIAL: dict[Any, Callable[..., Any]] = {
    aten._unsafe_view.default: _unsafe_view,
    aten.unsafe_split_with_sizes.default: _unsafe_split,
    aten.copy_.default: _copy_,
    aten._to_copy.default: _to_copy,
    aten.clone.default: clone,
    aten._local_scalar_dense.default: _local_scalar_dense,
    aten.equal.default: _equal,
    aten.empty_like.default: _empty_like,
    aten.new_empty.default: _new_empty,
    aten.new_empty_strided.default: _new_empty_strided,
    aten.is_pinned.default: lambda *_: False,
    aten.nonzero.default: _host(aten.nonzero.default),
    aten.masked_select.default: _host(aten.masked_select.default),
    **_random.handlers(),
}
