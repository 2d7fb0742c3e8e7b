"""Which simulated device stands in for `mps` now, and what PyTorch's side asks of it.

Operators, factories and `torch.mps` know a device by `SimulatedDevice` alone; `Device` is one.
"""

from __future__ import annotations

from typing import Protocol

from onelane import _onelane
from onelane.sim.errors import SimUnavailable


class SimulatedDevice(Protocol):
    """What operators, factories and `torch.mps` ask of a device; `Device` says what it means."""

    native: _onelane.SimDevice

    def synchronise(self) -> None:
        """Commit what is pending and wait for it."""

    def empty_cache(self) -> None:
        """Empty the graph cache."""

    def stats(self) -> dict[str, int]:
        """Return the counters."""

    def manual_seed(self, seed: int) -> None:
        """Set the seed of random numbers."""

    def next_seed(self) -> int:
        """Take a seed for one operator that draws."""


_present: SimulatedDevice | None = None


def present() -> SimulatedDevice | None:
    """The device that stands in for `mps`, if there is one."""
    return _present


def current() -> SimulatedDevice:
    """The device that stands in for `mps`; raises `SimUnavailable` if there is none."""
    device = _present
    if device is None:
        raise SimUnavailable(
            "no simulated mps device is in use now: use one inside of "
            "`with onelane.sim.device(...)`, or after `onelane.sim.install(...)`"
        )
    return device


def put(device: SimulatedDevice | None) -> None:
    """Have a device stand in for `mps`, or none. The caller holds the lock of switching."""
    global _present
    _present = device
