"""The device executor: one worker thread that owns a device, as a `concurrent.futures.Executor`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from onelane import _aio, _devices, _failure, _lifecycle, _modes, _names, _onelane
from onelane._hold import DeviceHold
from onelane._proxy import lane_on
from onelane._stats import Health, QueueStats
from onelane.errors import ForkedProcess

P = ParamSpec("P")
T = TypeVar("T")


class _Call:
    """A function with its arguments, the caller's context variables and its PyTorch modes."""

    __slots__ = ("args", "collect", "context", "fn", "kwargs", "modes")

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        modes: _modes.Modes,
        collect: Callable[[], object],
    ) -> None:
        self.fn, self.args, self.kwargs, self.modes = fn, args, kwargs, modes
        self.context, self.collect = contextvars.copy_context(), collect

    def __call__(self) -> Any:
        collect = self.collect
        try:
            return self.context.run(self._run)
        except BaseException as error:
            # This frame goes with the exception.
            del self
            _failure.leave(error)
            raise
        finally:
            collect()

    def _run(self) -> Any:
        if self.modes is None:
            return self.fn(*self.args, **self.kwargs)
        with _modes.applied(self.modes):
            return self.fn(*self.args, **self.kwargs)


class _ThreadItem:
    """A call whose result goes into a `concurrent.futures.Future`."""

    __slots__ = ("call", "future")

    def __init__(self, call: _Call, future: Future[Any]) -> None:
        self.call, self.future = call, future

    def __call__(self) -> None:
        future = self.future
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = self.call()
        except BaseException as error:
            future.set_exception(error)
            # The traceback refers to this frame: break the cycle.
            del self, future
        else:
            future.set_result(result)

    def abandon(self) -> None:
        """Give the call up: the executor was shut down before it could run."""
        if self.future.cancel():
            self.future.set_running_or_notify_cancel()


class _LoopItem:
    """A call whose result goes into a future of an asyncio event loop."""

    __slots__ = ("call", "future", "loop")

    def __init__(self, call: _Call, future: asyncio.Future[Any]) -> None:
        self.call, self.future, self.loop = call, future, future.get_loop()

    def __call__(self) -> None:
        # Reading the flag from here is safe; if it changes now, the result is dropped.
        if self.future.cancelled():
            return
        try:
            resolved = (self.future, False, self.call())
        except BaseException as error:
            resolved = (self.future, True, error)
        self._tell(_aio.resolve, [resolved])
        del self, resolved

    def abandon(self) -> None:
        self._tell(self.future.cancel)

    def _tell(self, *call: Any) -> None:
        # A loop that has been closed raises: nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(*call)


class DeviceExecutor(Executor):
    """The worker thread, or threads, that own one device.

    A `concurrent.futures.Executor`: `submit`, `map`, `shutdown`, `with`, `as_completed`, `wait` and
    `loop.run_in_executor` behave as documented there. Calls run in the order of submission, on the
    same thread as the batches of all queues of this executor.

    `onelane.executor(device)` gives the process-wide executor of a device; making one here gives a
    private one, a second owner if the device has one already. More than one worker is for devices
    whose runtime is thread-safe: MPS is not.

    device: PyTorch's name of it, in any case. custom: any name, for another runtime (`"mlx"`).

    A call runs in a copy of the caller's context variables, with the caller's grad, inference and
    autocast modes and default device. Results are returned as they are: bring tensors to the host inside the call.
    """

    @_names.settings
    def __init__(self, device: Any = "mps", workers: int = 1, *, custom: bool = False) -> None:
        self._device = _devices.canonical(device, custom)
        self._workers = workers
        self._autocast = _devices.autocast_types(self._device)
        self._core = _onelane.Executor(self._device, workers)
        self._shut_down = False
        self._hold: DeviceHold | None = None
        self._collect = _devices.collector(self._device)
        _devices.executors.add(self)

    @property
    def device(self) -> str:
        """The name of the device."""
        return self._device

    @property
    def workers(self) -> int:
        """The number of worker threads."""
        return self._workers

    @property
    def is_worker(self) -> bool:
        """Whether the calling thread is a worker of this executor."""
        return self._core.is_worker()

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        return _Call(fn, args, kwargs, _modes.capture(self._autocast), self._collect)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` on the worker; on the worker itself, before this returns.

        Raises `QueueClosed`, a `RuntimeError`, after `shutdown`.
        """
        future: Future[T] = Future()
        self._send(_ThreadItem(self._call(fn, args, kwargs), future))
        return future

    def _send(self, item: _ThreadItem | _LoopItem) -> None:
        hold = self._hold
        if hold is not None and hold.is_mine():
            hold.put(item)
        else:
            self._core.submit(item)

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn(*args, **kwargs)` on the worker and return what it returns; no future is made.

        On the worker itself this is a plain call.
        """
        if self._core.is_worker():
            return fn(*args, **kwargs)
        if self._hold is not None and self._hold.is_mine():
            return self.submit(fn, *args, **kwargs).result()
        result: T = self._core.call(self._call(fn, args, kwargs))
        return result

    async def acall(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn(*args, **kwargs)` on the worker and await what it returns.

        Cancelling the task cancels the call if it has not started.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._send(_LoopItem(self._call(fn, args, kwargs), future))
        return await future

    def hold(self) -> DeviceHold:
        """Keep several calls together: a context manager, also an asynchronous one.

        ::

            with device.hold():
                device.call(model.set_adapter, "night")
                y = queue(x)

        Until it ends, the worker runs nothing but the calls of this thread or task, of guarded
        objects and queues, too; all others wait. Waits for its turn like a call. Entered again
        inside of itself it does nothing more. For executors with one worker.
        """
        if self._workers > 1:
            raise ValueError(
                f"hold() needs an executor with one worker, and {self!r} has {self._workers}"
            )
        return DeviceHold(self)

    def _ending(self) -> bool:
        return self._shut_down or _lifecycle.ending()

    def host_results(self, fn: Callable[P, T]) -> Callable[P, T]:
        """Return `fn` with results that may leave the worker, for `call`, `submit` and the like.

        As `guard` returns them: tensors as host copies, arrays copied, at any depth; objects that
        belong to the device as proxies. Without this, results come back as they are.
        """

        @functools.wraps(fn)
        def hosted(*args: P.args, **kwargs: P.kwargs) -> T:
            left: T = lane_on(self).leave(fn(*args, **kwargs))
            return left

        return hosted

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse new work; run what was accepted, or cancel it with `cancel_futures`.

        Queues of this executor are closed with it. Waits until the worker has ended unless `wait`
        is false or this is the worker.
        """
        self._shut_down = True
        self._core.shutdown(cancel_futures, None if wait else 0.0)

    def stats(self) -> QueueStats:
        """Return the statistics of the calls."""
        return QueueStats._of(self._core.stats())

    def health(self) -> Health:
        """Return the worst health of this executor and its queues."""
        return Health(*self._core.health())

    def __repr__(self) -> str:
        return f"DeviceExecutor({self._device!r}, workers={self._workers})"


_shared: dict[str, DeviceExecutor] = {}
_shared_lock = threading.Lock()


@_names.settings
def executor(device: Any = "mps", workers: int = 1, *, custom: bool = False) -> DeviceExecutor:
    """Return the process-wide executor of a device, made on first use.

    `mps`, `MPS` and `mps:0` are one device. custom: any name will do, for runtimes other than
    PyTorch's; said once, it need not be said again. After it has been shut down, and in the child
    of a fork, a new one is made.

    Raises `ValueError` if the name is not known, with the nearest one, or if the device has an executor with another number of workers.
    """
    name = _devices.canonical(device, custom)
    while True:
        with _shared_lock:
            present = _shared.get(name)
            if present is None:
                made = DeviceExecutor(name, workers)
                _shared[name] = made
                return made
            if not present._shut_down:
                if present.workers != workers:
                    raise ValueError(
                        f"executor({name!r}, workers={workers}): the process already has an "
                        f"executor for {name!r} with {present.workers} worker(s). Ask for that "
                        f"number, shut it down first, or make a private one with "
                        f"DeviceExecutor({name!r}, workers={workers})"
                    )
                return present
        # Two owners of one device must not overlap: wait until the old one's worker has ended.
        present.shutdown()
        with _shared_lock:
            if _shared.get(name) is present:
                del _shared[name]


def _after_fork_in_child() -> None:
    global _shared, _shared_lock
    _shared, _shared_lock = {}, threading.Lock()


_lifecycle.after_fork_in_child(_after_fork_in_child)

__all__ = ["DeviceExecutor", "ForkedProcess", "executor"]
