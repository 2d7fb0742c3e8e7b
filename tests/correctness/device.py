"""The devices that the tests run on, by name."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Device(NamedTuple):
    """A torch device, whether it is "real" or "simulated", and what a reader should know."""

    torch: torch.device
    kind: str
    note: str | None = None

    def synchronise(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.torch.type == "mps":
            torch.mps.synchronize()
        elif self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)


def resolve_device(name: str | None) -> Device:
    """The device of this name. Raises ValueError if there is none."""
    if name is None:
        if torch.backends.mps.is_available():
            return Device(torch.device("mps"), "real")
        return Device(torch.device("cpu"), "real", "no MPS device here: running on cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "mps", "cuda"):
        raise ValueError(f"unknown device {name!r}: use cpu, mps or cuda[:N]")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "no MPS device here: it takes a Mac with Apple silicon, or use --device cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no device {name}: this PyTorch sees {torch.cuda.device_count()} of them")
    return Device(device, "real")
