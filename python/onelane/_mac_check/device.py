"""The device under a check, and what a check says that cannot run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from onelane import _memory


class NotRun(Exception):
    """The check cannot run here; the text says why."""


class Device:
    """The device under a check: mps, or a simulated one."""

    def __init__(self, sim: Any) -> None:
        self.sim = sim

    def together(self, functions: list[Callable[[], Any]]) -> list[Any]:
        """Run functions in threads that start together."""
        if self.sim is not None:
            return list(self.sim.run(*functions))
        barrier = threading.Barrier(len(functions))

        def run(function: Callable[[], Any]) -> Any:
            barrier.wait()
            return function()

        with ThreadPoolExecutor(len(functions)) as pool:
            return list(pool.map(run, functions))

    def size(self, mac: int, simulated: int) -> int:
        """How often to do something: the simulated device is slow."""
        return mac if self.sim is None else simulated

    def memory(self) -> int:
        """Bytes of the device that are taken, graphs included."""
        if self.sim is not None:
            stats = self.sim.stats()
            return int(stats["reserved_bytes"] + stats.get("graph_bytes", 0))
        import torch

        driver = int(torch.mps.driver_allocated_memory())
        return max(driver, _memory.footprint() or 0)
