"""Where the models of patched libraries live: one device, and the worker that owns it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from onelane import _lifecycle
from onelane._executor import DeviceExecutor, executor

T = TypeVar("T")


class Place:
    """A device, by PyTorch's name of its kind, and its executor.

    The executor is asked for when it is wanted: the child of a fork has one of its own.
    """

    def __init__(self, home: DeviceExecutor) -> None:
        self.name, self.kind = home.device, home.device.partition(":")[0]
        self._home: DeviceExecutor | None = home
        # Requests that wait for a batch, for what holds the worker for long and lets them by.
        self._waiting: deque[Future[Any]] = deque()
        _lifecycle.after_fork_in_child(self._forget)

    def _forget(self) -> None:
        self._home = None

    @property
    def home(self) -> DeviceExecutor:
        """The executor."""
        if self._home is None:
            self._home = executor(self.name)
        return self._home

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the worker."""
        return self.home.is_worker

    def holds(self, module: Any) -> bool:
        """Whether a module's weights are on the device."""
        for tensors in (module.parameters, module.buffers):
            for tensor in tensors():
                return bool(tensor.device.type == self.kind)
        return False

    def means(self, device: Any) -> bool:
        """Whether an argument names the device: its kind, as text or as a `torch.device`."""
        if isinstance(device, int):
            return self.kind not in ("cpu", "mps")
        return str(device).partition(":")[0] == self.kind

    def run(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a function on the worker; what it returns comes back as it is."""
        return self.home.call(function, *args, **kwargs)

    def run_whole(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a function on the worker; what it returns comes back as host values."""
        home = self.home
        if home.is_worker:
            return function(*args, **kwargs)
        return home.call(home.host_results(function), *args, **kwargs)

    def waits(self, future: Future[Any]) -> Future[Any]:
        """Remember a request that waits for a batch."""
        waiting = self._waiting
        while waiting and waiting[0].done():
            # Another thread may have taken it.
            with contextlib.suppress(IndexError):
                waiting.popleft()
        waiting.append(future)
        return future

    def let_by(self) -> None:
        """Run the batches that wait, now: inside of a call on the worker that takes long."""
        waiting = self._waiting
        while self.is_here and waiting:
            try:
                future = waiting.popleft()
            except IndexError:
                return
            if not future.done():
                # Waiting on the worker runs its batch inline. Who asked is told how it ended.
                with contextlib.suppress(Exception):
                    future.exception()


__all__ = ["Place"]
