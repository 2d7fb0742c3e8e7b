"""Giving back what a device's allocator keeps: when it is idle, or past a watermark.

INVARIANT: `empty_cache` is a call of its own on the worker, so it is never between a batch and its
answer, and nothing wakes up while the device is idle and has been emptied.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from onelane import _devices, _memory
from onelane._executor import DeviceExecutor, executor
from onelane._modules import imported
from onelane.errors import ForkedProcess, QueueClosed

# Without a watermark that is given: this part of what the system recommends to use.
_PART = 0.8


class Hygiene:
    """Empties a device's caches. Made by `hygiene`; a context manager, or `stop()`."""

    def __init__(
        self, device: str | DeviceExecutor = "mps", idle_s: float = 30.0, watermark: Any = None
    ) -> None:
        if not idle_s > 0:
            raise ValueError(f"idle_s={idle_s!r}: use a number of seconds above 0")
        if watermark is not None and not (isinstance(watermark, int) and watermark > 0):
            raise ValueError(f"watermark={watermark!r}: use a number of bytes above 0, or None")
        self._home = device if isinstance(device, DeviceExecutor) else executor(device)
        self.device, self.idle_s = self._home.device, idle_s
        self._given: int | None = watermark
        self._mark: float | None = watermark
        self._last = 0.0
        # Work has been done since it was emptied; the watermark has been passed.
        self._dirty = self._full = False
        # On the worker: the call that has just run was ours.
        self._was_ours = False
        self._stopped = False
        self._event = threading.Event()
        self.emptied = 0
        _devices.after_work(self.device).append(self._after_work)
        self._thread = threading.Thread(
            target=self._live, name=f"onelane-hygiene-{self.device}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End it; waits for its thread."""
        watching = _devices.after_work(self.device)
        if self._after_work in watching:
            watching.remove(self._after_work)
        self._stopped = True
        self._event.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Hygiene:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    # --- On the worker ------------------------------------------------------------------------

    def _after_work(self) -> None:
        """A batch or a call has ended."""
        if self._was_ours:
            self._was_ours = False
            return
        self._last = time.monotonic()
        _, driver = _memory.sample(self.device)
        full = driver is not None and driver > self._watermark()
        if not self._dirty or (full and not self._full):
            self._dirty, self._full = True, self._full or full
            self._event.set()

    def _watermark(self) -> float:
        if self._mark is None:
            torch: Any = imported("torch")
            recommended = getattr(getattr(torch, "mps", None), "recommended_max_memory", None)
            kind = self.device.partition(":")[0]
            self._mark = _PART * recommended() if recommended and kind == "mps" else float("inf")
        return float(self._mark)

    def _empty(self) -> None:
        self._dirty = self._full = False
        torch: Any = imported("torch")
        backend = getattr(torch, self.device.partition(":")[0], None)
        empty = getattr(backend, "empty_cache", None)
        if empty is not None:
            empty()
        self.emptied += 1
        _, driver = _memory.sample(self.device, now=True)
        if driver is not None:
            # What is left is in use. It is not emptied again for that alone.
            given = self._given if self._given is not None else 0
            self._mark = max(given, self._watermark(), 1.25 * driver)
        self._was_ours = True

    # --- On its own thread --------------------------------------------------------------------

    def _live(self) -> None:
        while not self._stopped:
            self._event.wait(None if not self._dirty else self._left())
            self._event.clear()
            if self._stopped:
                return
            if self._dirty and (self._full or self._left() <= 0):
                try:
                    self._home.call(self._empty)
                except (QueueClosed, ForkedProcess):
                    return
                except RuntimeError:
                    # The device has failed. Who uses it is told so by it.
                    self._dirty = self._full = False

    def _left(self) -> float:
        return max(0.0, self._last + self.idle_s - time.monotonic())


def hygiene(
    device: str | DeviceExecutor = "mps", idle_s: float = 30.0, watermark: int | None = None
) -> Hygiene:
    """Give the memory that a device's allocator keeps back to the system.

    `torch.mps.empty_cache()` (of `cuda` likewise), on the worker, as a call of its own: when
    nothing has run for `idle_s` seconds, and when the driver holds more than `watermark` bytes
    (default: 0.8 of `torch.mps.recommended_max_memory()`). On mps it also clears compiled graphs,
    in PyTorch 2.13 and later: the next batch of each shape compiles again.

    Ends with `stop()`, or with the block of a `with`.
    """
    return Hygiene(device, idle_s, watermark)


__all__ = ["Hygiene", "hygiene"]
