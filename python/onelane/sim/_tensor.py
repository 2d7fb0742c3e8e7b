"""A tensor on the simulated device: a shape over a block, for which PyTorch says `mps`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from onelane import _onelane
from onelane.sim._current import SimulatedDevice
from onelane.sim._native import Layout

MPS = torch.device("mps", 0)


class SimTensor(torch.Tensor):
    """A tensor whose memory is a block of the simulated device; views share the block.

    `device.type` is `"mps"` and `is_mps` is true. The block is freed when the last tensor of it
    goes, at that moment.
    """

    # Runs an operator on simulated tensors. Set before the first device stands in for `mps`.
    _sim_dispatch: ClassVar[Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]]

    _sim_device: SimulatedDevice
    _sim_block: _onelane.SimBlock
    _sim_layout: Layout

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return SimTensor._sim_dispatch(func, args, kwargs or {})

    def __repr__(  # type: ignore[override]
        self, *, tensor_contents: Any = None
    ) -> str:
        shape, dtype = tuple(self.shape), self.dtype
        if not is_simulated(self):
            return f"<tensor of shape {shape}, {dtype}, that has left the simulated device>"
        try:
            contents = repr(self.detach().cpu())
        except RuntimeError as error:
            return f"<simulated mps tensor of shape {shape}, {dtype}: {error}>"
        return f"{contents[:-1]}, device='mps:0', simulated)"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a tensor on the simulated mps device cannot be pickled: call .cpu() first")


def is_simulated(value: object) -> bool:
    """Whether this is a tensor on a simulated device."""
    return isinstance(value, SimTensor) and value.device.type == "mps"


def wrap(device: SimulatedDevice, block: _onelane.SimBlock, layout: Layout) -> SimTensor:
    """Make a tensor over a block."""
    tensor: SimTensor = torch.Tensor._make_wrapper_subclass(
        SimTensor,
        layout.shape,
        strides=layout.strides,
        storage_offset=layout.offset,
        dtype=layout.dtype,
        device=MPS,
    )
    tensor._sim_device, tensor._sim_block, tensor._sim_layout = device, block, layout
    return tensor
