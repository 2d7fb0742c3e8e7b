"""The device executor: one worker thread that owns a device, as a `concurrent.futures.Executor`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from onelane import (
    _aio,
    _devices,
    _failure,
    _isolation,
    _lifecycle,
    _modes,
    _names,
    _onelane,
    _worker_loop,
)
from onelane._caller import Caller
from onelane._future import CallFuture
from onelane._hold import DeviceHold
from onelane._isolated_calls import Calls
from onelane._queues import Queues
from onelane._stats import Health, QueueStats
from onelane._terms import seconds
from onelane._wrap import lane_on
from onelane.errors import EngineLost, ForkedProcess, QueueFull, is_device_poisoned

P = ParamSpec("P")
T = TypeVar("T")


class _Call:
    """A function with its arguments, the caller's context variables and its PyTorch modes."""

    __slots__ = (
        "args", "awaits", "collect", "context", "device", "failed", "fn", "kwargs", "modes",
    )  # fmt: skip

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: contextvars.Context,
        modes: _modes.Modes,
        device: str,
        collect: Callable[[], object],
        failed: Callable[[BaseException], object],
    ) -> None:
        self.fn, self.args, self.kwargs = fn, args, kwargs
        self.context, self.modes, self.device = context, modes, device
        self.collect, self.failed = collect, failed
        # Whether a coroutine that it returns is run to its end.
        self.awaits = False

    def __call__(self) -> Any:
        collect = self.collect
        try:
            _devices.make_current(self.device)
            return self.context.run(self._run)
        except BaseException as error:
            self.failed(error)
            # This frame goes with the exception.
            del self
            _failure.leave(error)
            raise
        finally:
            collect()

    def _run(self) -> Any:
        if self.modes is None:
            return self._result()
        with _modes.applied(self.modes):
            return self._result()

    def _result(self) -> Any:
        result = self.fn(*self.args, **self.kwargs)
        if self.awaits and inspect.iscoroutine(result):
            return _worker_loop.run(result)
        return result


class _ThreadItem:
    """A call whose result goes into a `concurrent.futures.Future`."""

    __slots__ = ("call", "future")

    def __init__(self, call: _Call, future: CallFuture) -> None:
        self.call, self.future = call, future
        future._item = self

    def __call__(self) -> None:
        future = self.future
        if not future.take() or not future.set_running_or_notify_cancel():
            return
        try:
            result = self.call()
        except BaseException as error:
            _onelane.resolving(future.set_exception, error)
            # The traceback refers to this frame: break the cycle.
            del self, future
        else:
            _onelane.resolving(future.set_result, result)

    def abandon(self) -> None:
        """Give the call up: the executor was shut down before it could run."""
        if self.future.take() and self.future.cancel():
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

    stack_size: of a worker, in bytes; by default what `threading.stack_size()` says, or 16 MiB.
    stall_after: seconds after which a call that still runs makes `health()` `"stalled"`; nothing is
    interrupted. Queues and guarded objects have settings of their own.

    isolation: `"process"` or an `Isolation`: calls, and the models of queues and guarded objects,
    run in child processes, each in one of its own, and this process never touches the device.

    A call runs in a copy of the caller's context variables, with the caller's grad, inference and
    autocast modes and default device. Results are returned as they are: bring tensors to the host
    inside the call, or use `host_results`.
    """

    @_names.settings
    def __init__(
        self,
        device: Any = "mps",
        workers: int = 1,
        *,
        custom: bool = False,
        stack_size: int | None = None,
        stall_after: float = 30.0,
        isolation: _isolation.Setting = None,
    ) -> None:
        isolated = _isolation.of(isolation)
        name = _devices.canonical(device, custom)
        stall_after = seconds("stall_after", stall_after)
        core = _onelane.Executor(name, workers, False, _stack(stack_size), stall_after)
        self._begin(name, core, isolated)

    def _begin(
        self, name: str, core: _onelane.Executor, isolated: _isolation.Isolation | None
    ) -> None:
        self._isolation = isolated
        self._calls = None if isolated is None else Calls(self)
        self._device, self._core = name, core
        self._workers = core.workers
        self._autocast = _devices.autocast_types(self._device)
        self._shut_down = False
        self._hold: DeviceHold | None = None
        self._collect = _devices.collector(self._device)
        # Why it refuses calls: its device answers nothing but errors.
        self._poisoned: str | None = None
        self._note = _noting(self)
        self._queues = Queues()

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
        if self._poisoned is not None:
            raise EngineLost(self._poisoned)
        context, modes = contextvars.copy_context(), _modes.capture(self._autocast)
        return _Call(fn, args, kwargs, context, modes, self._device, self._collect, self._note)

    def caller(self) -> Caller:
        """Return the context variables and modes of the calling thread, for a later `packed`."""
        return Caller(self._autocast)

    def packed(self, fn: Callable[[], Any], caller: Caller | None = None) -> _Call:
        """Return a call of `fn` in the caller's context and modes, to be made on the worker."""
        call = self._call(fn, (), {})
        if caller is not None:
            # One caller's calls may run at the same time, and a context runs one.
            call.context, call.modes = caller.context.copy(), caller.modes
        return call

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` on the worker; on the worker itself, before this returns.

        Called on the worker by a future's done-callback, it is run later. Blocks while 16,384 calls
        wait. Raises `QueueClosed`, a `RuntimeError`, after `shutdown`.
        """
        if self._calls is not None:
            return self._calls.submit(fn, args, kwargs)
        return self.submit_packed(self._call(fn, args, kwargs))

    def submit_packed(self, call: _Call) -> Future[Any]:
        """Submit what `packed` has returned."""
        future = CallFuture(self._core)
        item = _ThreadItem(call, future)
        if not self._put(item):
            self._core.submit(item)
        return future

    def try_submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do what `submit` does if there is room now, and never block.

        Raises `QueueFull` if there is none.
        """
        if self._calls is not None:
            return self._calls.submit(fn, args, kwargs, wait=False)
        future = CallFuture(self._core)
        item = _ThreadItem(self._call(fn, args, kwargs), future)
        if not self._put(item) and not self._core.submit(item, False):
            raise QueueFull("as many calls wait for the worker as may")
        return future

    def _put(self, item: _ThreadItem | _LoopItem) -> bool:
        """Give an item of the holder's to the worker that is held."""
        hold = self._hold
        if hold is None or not hold.is_mine():
            return False
        hold.put(item)
        return True

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn(*args, **kwargs)` on the worker and return what it returns; no future is made.

        On the worker itself this is a plain call.
        """
        if self._calls is not None:
            isolated: T = self._calls.call(fn, args, kwargs)
            return isolated
        if self._core.is_worker():
            return fn(*args, **kwargs)
        if self.is_held_here():
            return self.submit(fn, *args, **kwargs).result()
        result: T = self._core.call(self._call(fn, args, kwargs))
        return result

    def acall(
        self, fn: Callable[P, T | Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]:
        """Return what is awaited to run `fn(*args, **kwargs)` on the worker.

        The caller's context variables and modes are read here, at the call; `fn` is submitted when
        this is awaited. Never blocks the loop: a call that finds no room waits for it by itself. An
        async `fn` runs to its end on the worker, in a loop of the worker's own. Cancelling the task
        cancels the call if it has not started.
        """
        if self._calls is not None:
            return self._calls.acall(fn, args, kwargs)
        return self.arun(self._call(fn, args, kwargs))

    async def arun(self, call: _Call) -> Any:
        """Run what `packed` has returned on the worker, and await its result."""
        if self._core.is_worker():
            here = _modes.call(call.modes, call.fn, call.args, call.kwargs)
            return await here if isinstance(here, Awaitable) else here
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call.awaits = True
        item = _LoopItem(call, future)
        if not self._put(item):
            self._core.enter(item)
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
        if self._calls is not None:
            raise ValueError(f"hold() is for calls in this process, and {self!r} is isolated")
        return DeviceHold(self)

    def is_held_here(self) -> bool:
        """Whether the calling thread or task holds this executor; see `hold`."""
        hold = self._hold
        return hold is not None and hold.is_mine()

    def _ending(self) -> bool:
        return self._shut_down or _lifecycle.ending()

    def host_results(self, fn: Callable[P, T]) -> Callable[P, T]:
        """Return `fn` with results that may leave the worker, for `call`, `submit` and the like.

        As `guard` returns them: tensors as host copies, arrays copied, at any depth; objects that
        belong to the device as proxies. Without this, results come back as they are.
        """
        if self._calls is not None:
            # They come from another process.
            return fn

        @functools.wraps(fn)
        def hosted(*args: P.args, **kwargs: P.kwargs) -> T:
            left: T = lane_on(self).leave(fn(*args, **kwargs))
            return left

        return hosted

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse new work; run what was accepted, or cancel it with `cancel_futures`.

        Queues of this executor are closed with it. Waits until the worker has ended unless `wait`
        is false or this is the worker. A signal handler that raises, as Ctrl-C does, ends the wait:
        then what has not started is given up.
        """
        self._shut_down = True
        try:
            ended = self._core.shutdown(cancel_futures, None if wait else 0.0)
        except BaseException:
            # Ctrl-C, say: who asked waits no more, and neither does the end of the process.
            _lifecycle.give_up(self._core)
            raise
        if ended:
            _shared.pop(self._core.id, None)

    def stats(self) -> QueueStats:
        """Return the statistics of the calls."""
        calls = None if self._calls is None else self._calls.present()
        if calls is not None:
            return calls.stats()
        return QueueStats._of(self._core.stats(), self._device)

    def health(self) -> Health:
        """Return whether the device works; stalled as soon as a batch or call of any queue is.

        A queue whose model is lost for good has failed by itself, and others of the device have
        not: then `detail` names it, and `queue.health()` says why.
        """
        if self._poisoned is not None:
            return Health("failed", self._poisoned)
        health = Health(*self._core.health())
        failed = self._queues.failed()
        if not failed or health.detail is not None:
            return health
        return dataclasses.replace(health, detail=f"failed: {', '.join(map(repr, failed))}")

    def __repr__(self) -> str:
        isolated = "" if self._isolation is None else ", isolated"
        return f"DeviceExecutor({self._device!r}, workers={self._workers}{isolated})"


def _noting(home: DeviceExecutor) -> Callable[[BaseException], None]:
    """Return what looks at what calls raise; calls that wait do not keep their executor."""
    executor_of = weakref.ref(home)

    def note(error: BaseException) -> None:
        home = executor_of()
        if home is None or home._device == "cpu" or home._poisoned is not None:
            return
        if is_device_poisoned(error):
            home._poisoned = _isolation.poisoned(home._device, error)

    return note


def _stack(size: int | None) -> int | None:
    return size or threading.stack_size() or None


# The executors that the native module has for the process, by their numbers. It is the registry;
# this keeps one Python object for each.
_shared: dict[int, DeviceExecutor] = {}


@_names.settings
def executor(
    device: Any = "mps",
    workers: int = 1,
    *,
    custom: bool = False,
    stack_size: int | None = None,
    stall_after: float = 30.0,
    isolation: _isolation.Setting = None,
) -> DeviceExecutor:
    """Return the process-wide executor of a device, made on first use.

    `mps`, `MPS` and `mps:0` are one device. custom: any name will do, for runtimes other than
    PyTorch's; said once, it need not be said again. After it has been shut down, and in the child
    of a fork, a new one is made. stack_size, stall_after: as in `DeviceExecutor`, if it is made
    now. isolation: as there; who does not say gets the executor as it is.

    Waits for the worker of one that is being shut down, so that a device never has two owners. On
    that very worker it raises `QueueClosed`. Raises `ValueError` if the name is not known, with the
    nearest one, or if the device has an executor with another number of workers.
    """
    isolated = _isolation.of(isolation)
    name = _devices.canonical(device, custom)
    # CORRECTNESS: no lock: a signal handler or a destructor may come here in the middle of this.
    for ending in list(_shared.values()):
        if ending._shut_down and ending.device == name:
            # The native module waits, too, but cannot be interrupted.
            ending.shutdown()
    stall_after = seconds("stall_after", stall_after)
    core = _onelane.Executor(name, workers, True, _stack(stack_size), stall_after)
    present = _shared.get(core.id)
    if present is None:
        made = DeviceExecutor.__new__(DeviceExecutor)
        made._begin(name, core, isolated)
        present = _shared.setdefault(core.id, made)
    if present.workers != workers:
        raise ValueError(
            f"executor({name!r}, workers={workers}): the process already has an "
            f"executor for {name!r} with {present.workers} worker(s). Ask for that "
            f"number, shut it down first, or make a private one with "
            f"DeviceExecutor({name!r}, workers={workers})"
        )
    if isolated is not None and present._isolation != isolated:
        raise ValueError(
            f"executor({name!r}, isolation=...): the process already has an executor for {name!r} "
            f"with isolation={present._isolation!r}. Shut it down first, give isolation= to the "
            f"queues instead, or make a private one with DeviceExecutor({name!r}, isolation=...)"
        )
    return present


def _after_fork_in_child() -> None:
    global _shared
    _shared = {}


_lifecycle.after_fork_in_child(_after_fork_in_child)

__all__ = ["DeviceExecutor", "ForkedProcess", "executor"]
