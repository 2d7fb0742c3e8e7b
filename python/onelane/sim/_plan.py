"""What an operator's call does: made once for each combination of layouts and arguments.

PyTorch's own meta kernels give the outputs' shapes, and its CPU kernels the arithmetic, which runs
when the command is committed, on the bytes that the blocks hold then.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from onelane.sim import _table
from onelane.sim._native import Bytes, Command, Layout, dense_layout, on_bytes
from onelane.sim._tensor import SimTensor, is_simulated
from onelane.sim.errors import SimError


class Slot(NamedTuple):
    """Stands for a tensor: the place of its block among the call's blocks, and its layout."""

    place: int
    nbytes: int
    layout: Layout


class Constant(NamedTuple):
    """Stands for a host tensor of one element."""

    place: int
    dtype: torch.dtype


class Call:
    """The arguments of one call, with tensors taken out: hashable, and rebuilt for each purpose."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.func = func
        self.tensors: list[SimTensor] = []
        self.constants: list[torch.Tensor] = []
        self._places: dict[int, int] = {}
        self.blocks: list[Any] = []
        self.args = tuple(self._taken(arg) for arg in args)
        self.kwargs = tuple((name, self._taken(arg)) for name, arg in kwargs.items())

    @property
    def key(self) -> tuple[Any, ...]:
        """What two calls with one plan have in common."""
        return (self.func, self.args, self.kwargs)

    def _taken(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._slot(value)
        if isinstance(value, (list, tuple)):
            return (type(value), *(self._taken(part) for part in value))
        # 1, 1.0 and True are equal, and so are 0.0 and -0.0.
        return (float, value.hex()) if type(value) is float else (type(value), value)

    def _slot(self, tensor: torch.Tensor) -> Slot | Constant:
        if not is_simulated(tensor):
            if tensor.device.type != "cpu" or tensor.dim() > 0:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, mps:0 (simulated) and {tensor.device}!"
                )
            self.constants.append(tensor)
            return Constant(len(self.constants) - 1, tensor.dtype)
        assert isinstance(tensor, SimTensor)
        if self.tensors and tensor._sim_device is not self.tensors[0]._sim_device:
            raise SimError("the tensors of a call are on different simulated devices")
        self.tensors.append(tensor)
        block = tensor._sim_block
        place = self._places.setdefault(id(block), len(self.blocks))
        if place == len(self.blocks):
            self.blocks.append(block)
        return Slot(place, block.nbytes, tensor._sim_layout)

    def place_of(self, tensor: SimTensor) -> int:
        """The place of a tensor's block among the call's blocks."""
        return self._places[id(tensor._sim_block)]


def rebuilt(value: Any, made: Callable[[Slot | Constant], Any], device: torch.device) -> Any:
    """An argument as the operator expects it, on another device."""
    if isinstance(value, (Slot, Constant)):
        return made(value)
    kind, *rest = value
    if kind in (list, tuple):
        return kind(rebuilt(part, made, device) for part in rest)
    if kind is float:
        return float.fromhex(rest[0])
    return device if kind is torch.device else rest[0]


_META, _CPU = torch.device("meta"), torch.device("cpu")


def _meta(slot: Slot | Constant) -> torch.Tensor:
    if isinstance(slot, Constant):
        return torch.empty((), dtype=slot.dtype, device=_META)
    layout = slot.layout
    whole = torch.empty(slot.nbytes // layout.dtype.itemsize, dtype=layout.dtype, device=_META)
    return whole.as_strided(layout.shape, layout.strides, layout.offset)


class Plan(NamedTuple):
    """What a call does, apart from the blocks that it does it with."""

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    command: Command
    # The layouts of new outputs (None where the operator returns None); whether they are a tuple.
    outputs: tuple[Layout | None, ...]
    is_tuple: bool
    # Bytes of further outputs that nobody gets, as real MPS has them.
    scratch: tuple[int, ...]
    # Places of the blocks that the operator writes to.
    written: tuple[int, ...]
    reads_inputs: bool


def run_meta(func: Any, args: Sequence[Any], kwargs: Sequence[tuple[str, Any]]) -> Any:
    """The outputs as meta tensors; raises what PyTorch raises for wrong shapes."""
    with torch.no_grad():
        return func(
            *(rebuilt(arg, _meta, _META) for arg in args),
            **{name: rebuilt(arg, _meta, _META) for name, arg in kwargs},
        )


def layout_of(tensor: torch.Tensor) -> Layout:
    """Where a meta tensor's elements lie."""
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    return Layout(shape, strides, int(tensor.storage_offset()), tensor.dtype)


# Cleared when it is full: shapes can be without end.
_PLANS_KEPT = 20_000
_plans: dict[Any, Plan] = {}
_lock = threading.Lock()


def plan_of(call: Call) -> Plan:
    """The plan of a call."""
    key = call.key
    plan = _plans.get(key)
    if plan is None:
        plan = _made(call)
        with _lock:
            if len(_plans) >= _PLANS_KEPT:
                _plans.clear()
            _plans[key] = plan
    return plan


def _made(call: Call) -> Plan:
    func, name = call.func, _table.base_name(call.func)
    result = run_meta(func, call.args, call.kwargs)
    written = _written(call)
    is_tuple = isinstance(result, (tuple, list))
    outputs: tuple[Layout | None, ...] = ()
    if not written:
        results = tuple(result) if is_tuple else (result,)
        outputs = tuple(None if out is None else new_layout(layout_of(out)) for out in results)
    scratch: tuple[int, ...] = ()
    if name == "scaled_dot_product_attention":
        outputs, scratch = _attention(call, outputs)
    # Host tensors and writes to a part of a block are not in the key.
    pure = not written and not call.constants
    shapes = "x".join(str(list(t._sim_layout.shape)) for t in call.tensors)
    command = (
        _table.kind(func) == "graph",
        _table.simulated_name(name),
        shapes,
        digest(str(func), call.args, call.kwargs) if pure else None,
    )
    reads_inputs = name not in _table.WITHOUT_INPUT
    return Plan(
        func, call.args, call.kwargs, command, outputs, is_tuple, scratch, written, reads_inputs
    )


def _written(call: Call) -> tuple[int, ...]:
    """Places of the blocks that are written to."""
    given = dict(call.kwargs)
    places = []
    for at, name in _table.written_arguments(call.func):
        slot = call.args[at] if at < len(call.args) else given.get(name)
        if isinstance(slot, Slot):
            places.append(slot.place)
    return tuple(places)


def new_layout(layout: Layout) -> Layout:
    """The layout of a new tensor: in a block of its own, which MPS has no doubles for."""
    if layout.dtype in (torch.float64, torch.complex128):
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
            "float64. Please use float32 instead. (simulated)"
        )
    needed = 1 + sum((n - 1) * s for n, s in zip(layout.shape, layout.strides, strict=True))
    if layout.numel and needed != layout.numel:
        return dense_layout(layout.shape, layout.dtype)
    return layout._replace(offset=0)


def _attention(
    call: Call, outputs: tuple[Layout | None, ...]
) -> tuple[tuple[Layout | None, ...], tuple[int, ...]]:
    """Attention's output is dense on MPS; the attention weights are a second one, freed at once."""
    out = outputs[0]
    assert out is not None
    queries, keys = (tensor._sim_layout.shape for tensor in call.tensors[:2])
    weights = dense_layout((*queries[:-1], keys[-2]), out.dtype)
    return (dense_layout(out.shape, out.dtype),), (weights.nbytes,)


def digest(*parts: Any) -> bytes:
    """16 bytes that stand for a computation."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def work_of(
    plan: Plan, constants: Sequence[torch.Tensor]
) -> Callable[[list[Bytes], list[Bytes]], None]:
    """What the device calls when it commits the command. It holds no block."""
    return functools.partial(_work, plan, tuple(constants))


def _work(
    plan: Plan, constants: tuple[torch.Tensor, ...], reads: list[Bytes], writes: list[Bytes]
) -> None:
    with host_arithmetic():
        in_place = dict(zip(plan.written, writes, strict=False))
        others = iter(reads)
        places: dict[int, Bytes] = {}
        is_graph = plan.command[0]

        def made(slot: Slot | Constant) -> torch.Tensor:
            if isinstance(slot, Constant):
                return constants[slot.place]
            if not plan.reads_inputs:
                return torch.empty_strided(
                    slot.layout.shape, slot.layout.strides, dtype=slot.layout.dtype
                )
            if slot.place in in_place:
                return on_bytes(in_place[slot.place], slot.layout)
            if slot.place not in places:
                # Slots come in the order in which blocks were counted.
                places[slot.place] = next(others)
            tensor = on_bytes(places[slot.place], slot.layout)
            # A matrix product may round by the alignment of its operands: give it PyTorch's own.
            return tensor.clone() if is_graph else tensor

        args = [rebuilt(arg, made, _CPU) for arg in plan.args]
        kwargs = {name: rebuilt(arg, made, _CPU) for name, arg in plan.kwargs}
        result = plan.func(*args, **kwargs)
        if plan.written:
            return
        results = result if plan.is_tuple else (result,)
        targets = iter(writes)
        for layout, value in zip(plan.outputs, results, strict=True):
            if layout is None:
                continue
            target = on_bytes(next(targets), layout)
            # Statistics that the CPU leaves out in eval mode: nobody reads them there.
            if value.shape == target.shape:
                target.copy_(value)
            else:
                target.zero_()
        for _, place in zip(plan.scratch, targets, strict=True):
            on_bytes(place, dense_layout((place[1],), torch.uint8)).zero_()


@contextlib.contextmanager
def host_arithmetic() -> Any:
    """No mode of the committing thread changes what a command computes."""
    from torch.utils._python_dispatch import _disable_current_modes

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if torch._C._len_torch_function_stack() > 0:
            stack.enter_context(torch._C.DisableTorchFunction())
        if torch._C._len_torch_dispatch_stack() > 0:
            stack.enter_context(_disable_current_modes())
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        yield
