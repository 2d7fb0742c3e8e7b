"""The queues of an executor, as far as its health wants to know of them."""

from __future__ import annotations

import weakref
from typing import Any, Protocol


class Queue(Protocol):
    """A queue of the executor's."""

    @property
    def name(self) -> str:
        """What it is called in logs and errors."""

    def health(self) -> Any:
        """Return its health."""


class Queues:
    """Those that are alive; it keeps none."""

    def __init__(self) -> None:
        # CORRECTNESS: single operations of a dict alone, no lock: queues go at any moment, in a
        # destructor that interrupts this, too.
        self._present: dict[int, weakref.ref[Queue]] = {}

    def add(self, queue: Queue) -> None:
        """Know of a new queue."""
        present, key = self._present, id(queue)
        present[key] = weakref.ref(queue, lambda gone: _forget(present, key, gone))

    def failed(self) -> list[str]:
        """Return the names of those that refuse every request, because their models are lost."""
        found = (queue() for queue in list(self._present.values()))
        return [
            queue.name for queue in found if queue is not None and queue.health().state == "failed"
        ]


def _forget(present: dict[int, weakref.ref[Queue]], key: int, gone: weakref.ref[Queue]) -> None:
    # Another may have its place by now.
    if present.get(key) is gone:
        present.pop(key, None)


__all__ = ["Queue", "Queues"]
