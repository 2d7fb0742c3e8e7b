"""Weights are freed on the worker, whoever drops the model.

A destructor alone does not do it: modules sit in reference cycles, and what frees those frees the
weights. So the destructor hands the tensors to a list of the worker's, which lets go of each when
nobody else has it. A `state_dict()` that somebody keeps is freed wherever that is dropped last.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from onelane import _lifecycle
from onelane._install.place import Place
from onelane.errors import ForkedProcess, QueueClosed

# What a tensor that only the list has is counted: the list's entry is popped first.
_ALONE = 2


class Releaser:
    """Tensors that are to be freed on the worker."""

    _SOON_S, _LATE_S = 0.05, 30.0

    def __init__(self, place: Place) -> None:
        self._place = place
        # Filled from any thread, destructors too: no lock.
        self._given: deque[Any] = deque()
        # Of the worker's alone; by address, since parts of a model hand over what the whole does.
        self._kept: dict[int, Any] = {}
        self._delay = self._SOON_S
        self._timer: threading.Timer | None = None
        self.freed = 0

    def take(self, tensors: list[Any]) -> None:
        """Free these on the worker, once nobody else has them."""
        if not tensors:
            return
        self._given.extend(tensors)
        self._delay = self._SOON_S
        tensors.clear()
        self._ask()

    @property
    def pending(self) -> int:
        """How many are still held, because others hold them too."""
        return len(self._given) + len(self._kept)

    def _ask(self) -> None:
        # Without a worker the process or the device ends.
        with contextlib.suppress(QueueClosed, ForkedProcess, RuntimeError):
            self._place.home.submit(self._sweep)

    def _sweep(self) -> None:
        kept = self._kept
        while self._given:
            tensor = self._given.popleft()
            kept[id(tensor)] = tensor
            del tensor
        for address in list(kept):
            tensor = kept.pop(address)
            if sys.getrefcount(tensor) > _ALONE:
                kept[address] = tensor
            else:
                self.freed += 1
            del tensor
        if kept and (self._timer is None or not self._timer.is_alive()):
            # Whoever has them may drop them without telling.
            self._timer = threading.Timer(self._delay, self._ask)
            self._timer.daemon = True
            self._delay = min(self._delay * 2, self._LATE_S)
            self._timer.start()

    def destructor(self) -> Callable[[Any], None]:
        """Return a `__del__` for a class of modules."""

        def __del__(module: Any) -> None:
            if _lifecycle.ending():
                # The process frees everything.
                return
            try:
                tensors = [*module.parameters(), *module.buffers()]
            except (AttributeError, TypeError, RuntimeError):
                # It was never finished.
                return
            if any(tensor.device.type == self._place.kind for tensor in tensors):
                if self._place.is_here:
                    return
                self.take(tensors)

        return __del__


__all__ = ["Releaser"]
