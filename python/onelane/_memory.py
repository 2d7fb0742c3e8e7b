"""Memory of the process and of its device, as far as the system tells.

The figures of the device are taken on its worker, after a batch or a call; `read` never touches the
device itself.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from onelane._modules import imported


@dataclass(frozen=True)
class Memory:
    """Bytes; None: the system or the device does not tell.

    allocated: held by tensors. driver: taken from the driver, caches included. footprint: of the
    process, as the system counts it against its limit (macOS's `phys_footprint`; PSS on Linux).
    """

    allocated: int | None
    driver: int | None
    footprint: int | None


# How often a worker asks its device at most.
_SAMPLE_S = 0.25
_samples: dict[str, tuple[float, int | None, int | None]] = {}


def sample(device: str, *, now: bool = False) -> tuple[int | None, int | None]:
    """Ask the device for its memory; on its worker. Asked lately, it is not asked again."""
    at = time.monotonic()
    last = _samples.get(device)
    if last is not None and not now and at - last[0] < _SAMPLE_S:
        return last[1], last[2]
    allocated, driver = _of_device(device)
    _samples[device] = (at, allocated, driver)
    return allocated, driver


def _of_device(device: str) -> tuple[int | None, int | None]:
    torch: Any = imported("torch")
    kind = device.partition(":")[0]
    try:
        if torch is None:
            return None, None
        if kind == "mps" and torch.backends.mps.is_available():
            return torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
        if kind == "cuda" and torch.cuda.is_initialized():
            return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    except RuntimeError:
        # A device that has failed does not tell.
        pass
    return None, None


def read(device: str) -> Memory:
    """Return the memory of a device as it was after its last batch, and of the process now."""
    _, allocated, driver = _samples.get(device, (0.0, None, None))
    return Memory(allocated, driver, footprint())


def footprint(pid: int | None = None) -> int | None:
    """Return the footprint of a process, by default of this one, in bytes."""
    pid = os.getpid() if pid is None else pid
    if sys.platform == "darwin":
        return _phys_footprint(pid)
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return None


def _phys_footprint(pid: int) -> int | None:
    """`ri_phys_footprint` of `rusage_info_v0`: a u64 at byte 72."""
    try:
        rusage = ctypes.CDLL(None).proc_pid_rusage
    except (OSError, AttributeError):
        return None
    # rusage_info_v0 has 96 bytes.
    buffer = (ctypes.c_uint64 * 12)()
    if rusage(ctypes.c_int(pid), ctypes.c_int(0), ctypes.byref(buffer)) != 0:
        return None
    return int(buffer[9])


__all__ = ["Memory", "footprint", "read", "sample"]
