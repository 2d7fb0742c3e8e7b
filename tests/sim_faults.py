"""Models on a simulated device whose faults are real, for processes that are to die of them.

Run as a script, it does in its own process what its argument says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

import onelane.sim as sim

ABORT, HANG = -1.0, -2.0


def abort(device: Any) -> None:
    """Encode from two threads to one stream, as PyTorch up to 2.14 lets them."""

    def use() -> None:
        for _ in range(20):
            torch.arange(16, device="mps").cpu()

    device.run(use, use)


def hang(device: Any) -> None:
    """Wait for a thread that does not come."""
    device.run(device.barrier(2).wait, lambda: None)


def load() -> Callable[[torch.Tensor], torch.Tensor]:
    """Make a model that doubles on the device, and meets a fault for two numbers."""
    device = sim.install("upstream-2.14", real_faults=True)

    def model(x: torch.Tensor) -> torch.Tensor:
        if bool((x == ABORT).any()):
            abort(device)
        if bool((x == HANG).any()):
            hang(device)
        return (x.to("mps") * 2).cpu()

    # What PyTorch loads when it first computes is loaded now: a start may take longer than a batch.
    model(torch.zeros(1, 4))
    return model


def main() -> None:
    """Meet the fault that the argument names."""
    with sim.device("upstream-2.14", real_faults=True) as device:
        {"abort": abort, "hang": hang}[sys.argv[1]](device)
    print("nothing happened")


if __name__ == "__main__":
    main()
