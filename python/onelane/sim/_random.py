"""Random numbers on the simulated device: drawn by the host's generator, from a seed that is taken
when the operator is called.

The draw itself runs at commit, like all arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onelane.sim._native import Bytes, on_bytes
from onelane.sim._plan import host_arithmetic

aten = torch.ops.aten

_IN_PLACE = (
    aten.normal_.default,
    aten.uniform_.default,
    aten.random_.default,
    aten.random_.to,
    getattr(aten.random_, "from"),
    aten.bernoulli_.float,
    aten.exponential_.default,
)


def handlers() -> dict[Any, Callable[..., Any]]:
    """The operators that draw."""
    return {func: _handler(func) for func in _IN_PLACE}


def _handler(func: Any) -> Callable[..., Any]:
    def draw(self: Any, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
        device, layout = self._sim_device, self._sim_layout
        seed = device.next_seed()

        def work(reads: list[Bytes], writes: list[Bytes]) -> None:
            with host_arithmetic():
                generator = torch.Generator().manual_seed(seed)
                func(on_bytes(writes[0], layout), *args, generator=generator, **kwargs)

        name = func._schema.name.removeprefix("aten::").rstrip("_")
        device.native.encode((False, name, "", None), ([], [self._sim_block]), work)
        return self

    return draw
