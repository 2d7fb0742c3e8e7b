"""The devices that the tests run on, by name."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from correctness.simulated import Member, Simulated


class Device(NamedTuple):
    """A torch device, whether it is "real" or "simulated", and what a reader should know."""

    torch: torch.device
    kind: str
    note: str | None = None
    # For a simulated device: which one is asked for, and the one in use, inside of `opened`.
    simulated: Simulated | None = None
    open: Any = None

    def synchronise(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.torch.type == "mps":
            torch.mps.synchronize()
        elif self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Device]:
        """The device in use: a simulated one is fresh each time."""
        if self.simulated is None:
            yield self
            return
        with self.simulated.opened() as device:
            yield self._replace(open=device)

    def party(self, threads: int) -> Member:
        """Threads that use the device at once; on a simulated one the seed says in which order."""
        if self.open is None:
            return lambda _: contextlib.nullcontext()
        member: Member = self.open.party(threads).member
        return member

    def meeting(self, threads: int) -> Callable[[], object]:
        """Where threads of a party wait for each other."""
        if self.open is None:
            return threading.Barrier(threads).wait
        wait: Callable[[], object] = self.open.barrier(threads).wait
        return wait


def resolve_device(name: str | None, seed: int = 0) -> Device:
    """The device of this name. Raises ValueError if there is none."""
    if name is None:
        if torch.backends.mps.is_available():
            return Device(torch.device("mps"), "real")
        return Device(torch.device("cpu"), "real", "no MPS device here: running on cpu")
    simulated = Simulated.parse(name, seed)
    if simulated is not None:
        return Device(torch.device("mps"), "simulated", simulated.note, simulated)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "mps", "cuda"):
        raise ValueError(f"unknown device {name!r}: use cpu, mps or cuda[:N], or sim-mps[:PROFILE]")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "no MPS device here: it takes a Mac with Apple silicon, or use --device cpu, or "
            "--device sim-mps"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no device {name}: this PyTorch sees {torch.cuda.device_count()} of them")
    return Device(device, "real")
