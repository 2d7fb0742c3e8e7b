"""A simulated MPS device under unmodified PyTorch, on Linux. Everything it shows is simulated.

::

    with onelane.sim.device(profile="fork-2.9.1", seed=0) as dev:
        model = nn.MultiheadAttention(256, 4, batch_first=True).eval().to("mps")
        inputs = [torch.randn(4, 128, 256).to("mps") for _ in range(8)]
        dev.run(*[lambda x=x: model(x, x, x, need_weights=False) for x in inputs])
        print(dev.stats()["stale_reads"])

It exists to see, without a Mac, what threads do to the runtime under `mps`, and which cure helps:
docs/simulated-device.md has the rules, their sources and the assumptions, docs/python-sim.md what
works on it. It is never in use unless it is asked for.
"""

from __future__ import annotations

from typing import Any

from onelane.sim._device import Device, Party, active, profiles
from onelane.sim.errors import (
    AffinityViolation,
    DeviceAborted,
    DeviceHung,
    NoStream,
    SimError,
    SimUnavailable,
    UnsupportedOperator,
)

__all__ = [
    "AffinityViolation",
    "Device",
    "DeviceAborted",
    "DeviceHung",
    "NoStream",
    "Party",
    "SimError",
    "SimUnavailable",
    "UnsupportedOperator",
    "active",
    "device",
    "install",
    "profiles",
    "uninstall",
]


def device(
    profile: str = "fork-2.9.1", seed: int = 0, schedule: str = "random", **options: Any
) -> Device:
    """Return a simulated device; in a `with` block it stands in for PyTorch's `mps`.

    options: see `Device`.
    """
    return Device(profile, seed, schedule, **options)


def install(
    profile: str = "fork-2.9.1", seed: int = 0, schedule: str = "random", **options: Any
) -> Device:
    """Have a simulated device stand in for PyTorch's `mps` until `uninstall()`."""
    return Device(profile, seed, schedule, **options).__enter__()


def uninstall() -> None:
    """Leave the simulated device that stands in for `mps`, if there is one."""
    present = active()
    if present is not None:
        present.__exit__()
