"""Holding a device: its worker runs the calls of one thread or task alone, for as long as it says.

The worker waits inside of one call, which runs what the holder gives it. So nothing else of the
device comes between: no call, no stream, no batch.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from onelane import _onelane
from onelane._exclusive import here

# How often the worker looks whether the holder is still there.
_LOOK_S = 1.0


class Holdable(Protocol):
    """The executor that is held, as `DeviceHold` sees it."""

    _core: _onelane.Executor
    _hold: DeviceHold | None

    @property
    def is_worker(self) -> bool:
        """Whether the calling thread is a worker of it."""

    def _ending(self) -> bool:
        """Whether it, or the interpreter, ends."""


class DeviceHold:
    """A context manager, also an asynchronous one. Made by `DeviceExecutor.hold`."""

    def __init__(self, home: Holdable) -> None:
        self._home = home
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._asker: Any = None
        self._thread: threading.Thread | None = None
        self._outer: DeviceHold | None = None
        self._on_worker = False

    def is_mine(self) -> bool:
        """Whether the calling thread or task is the holder."""
        return self._asker is here()

    def put(self, call: Callable[[], object]) -> None:
        """Have the worker run something of the holder's."""
        self._calls.put(call)

    def __enter__(self) -> DeviceHold:
        started = self._begin()
        if started is not None:
            try:
                started.result()
            except BaseException:
                self._calls.put(None)
                raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    async def __aenter__(self) -> DeviceHold:
        started = self._begin()
        if started is not None:
            try:
                await asyncio.wrap_future(started)
            except BaseException:
                self._calls.put(None)
                raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self._end()

    def _begin(self) -> Future[None] | None:
        """Ask for the worker; None if the calling thread or task has it already."""
        if self._thread is not None or self._on_worker:
            raise RuntimeError("this hold is in use: call hold() for each with block")
        present = self._home._hold
        if self._home.is_worker or (present is not None and present.is_mine()):
            self._on_worker = True
            return None
        self._asker, self._thread = here(), threading.current_thread()
        started: Future[None] = Future()
        self._home._core.submit(_Held(self, started))
        return started

    def _end(self) -> None:
        if self._on_worker:
            self._on_worker = False
            return
        self._home._hold = None
        self._thread = None
        self._calls.put(None)

    # On the worker.

    def _serve(self, started: Future[None]) -> None:
        holder = self._thread
        if holder is None or not started.set_running_or_notify_cancel():
            return
        self._home._hold = self
        _onelane.held(1)
        started.set_result(None)
        while True:
            try:
                call = self._calls.get(timeout=_LOOK_S)
            except queue.Empty:
                if holder.is_alive() and not self._home._ending():
                    continue
                # It has ended without giving the device back.
                call = None
            if call is None:
                break
            call()
            del call
        _onelane.held(-1)
        if self._home._hold is self:
            self._home._hold = None


class _Held:
    """The call inside of which the worker waits."""

    def __init__(self, hold: DeviceHold, started: Future[None]) -> None:
        self._hold, self._started = hold, started

    def __call__(self) -> None:
        self._hold._serve(self._started)

    def abandon(self) -> None:
        """Give it up: the executor was shut down before it could run."""
        self._started.cancel()


__all__ = ["DeviceHold"]
