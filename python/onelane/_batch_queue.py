"""The batch queue: many threads and tasks, one model, batches."""

from __future__ import annotations

import contextvars
import itertools
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from onelane import (
    _aio,
    _devices,
    _factory,
    _isolation,
    _lifecycle,
    _model,
    _modes,
    _names,
    _old_settings,
    _onelane,
    _requests,
    _training,
)
from onelane._budget import Budget
from onelane._collate import Collator
from onelane._executor import DeviceExecutor, executor
from onelane._keys import ALONE, Keys, of_context
from onelane._requests import Requests
from onelane._stats import Health, QueueStats
from onelane._tensor_collator import TensorCollator
from onelane._terms import seconds
from onelane._wrap import lane_on
from onelane.errors import QueueFull, WouldDeadlock

Priority = Literal["interactive", "normal", "bulk"]


class BatchQueue(_onelane.Front):
    """The front of one model on one device. Requests that wait together run as one batch.

    ::

        queue = onelane.BatchQueue(model, "mps", max_batch_size=32)
        y = queue(x)                      # from any thread
        future = queue.submit(x)          # a concurrent.futures.Future
        y = await queue.infer(x)          # from any event loop

    model: an `nn.Module` (moved to the device on the worker), any callable, or a factory: a
        function without parameters, a class of models, or anything with `factory=True`. A factory
        is called on the worker, and what it returns lives and dies there. A function whose
        parameters all have defaults may be either: say `factory=True` or `False`.
    device: a name (`"mps"`, `"cuda:1"`, `"cpu"`), a `torch.device`, or a `DeviceExecutor`. The
        queues of one device share its one worker. Default: `mps` where there is one, else `cuda`,
        else `cpu`.
    requests: what a request is, and what becomes of its result: `onelane.Tensors(...)`, the
        default, `onelane.Items(...)` or `onelane.Each(...)`.
    max_batch_size: the most rows in a batch; requests with `Items`. A single request with more
        rows runs alone and whole.
    max_batch_cost: the most cost in a batch, beside its rows, as the `cost` of `requests` counts
        it: tokens, pixels or bytes. A single request of more runs alone.
    max_wait: seconds that an idle worker may wait for a batch to fill; 0 never waits.
    capacity: the most requests that may wait; then calls wait for room.
    stall_after: seconds after which a batch that runs makes `health()`, of the queue and of its
        executor, `"stalled"`. Nothing is interrupted; `Isolation(hang_s=)` does that.
    context: whose context variables a batch runs with. `"first"`: those of its first request, so a
        model must not look at what differs between callers. `"key"`: only requests whose variables
        are all equal share a batch. A function of a `contextvars.Context`: what it returns must be
        equal, such as `lambda context: context.get(tenant)`.
    idempotent: False if a failed batch must not be run again in parts. Otherwise a request that
        makes its batch fail fails alone.
    factory: whether `model` makes the model, where that is in doubt.
    name: in logs and errors; default: the model's.
    isolation: `"process"` or an `Isolation`: the model runs in a child process, and what crashes,
        hangs, poisons its device or only grows costs the requests at fault, and nobody else. The
        model is then a function of a module, or `"package.module:name"`, that makes it; or what
        can be pickled. Default: as the executor that is given.

    A call runs with the caller's grad, inference and autocast modes, and with the context variables
    of the first request of the batch. Do not change an input before its result is there.
    """

    @_old_settings.understood
    @_names.settings
    def __init__(
        self,
        model: Any,
        device: Any = None,
        requests: Requests | None = None,
        *,
        max_batch_size: int = 32,
        max_batch_cost: int | None = None,
        max_wait: float = 0.0,
        capacity: int = 1024,
        stall_after: float = 30.0,
        context: Literal["first", "key"] | Callable[[contextvars.Context], Any] = "first",
        idempotent: bool = True,
        factory: bool | None = None,
        name: str | None = None,
        isolation: _isolation.Setting = None,
    ) -> None:
        kind = _requests.checked(requests)
        isolated = _isolation.of(isolation, device)
        if isolated is not None:
            model, factory = _isolation.named(model, factory)
            device = _isolation.default_device() if device is None else device
        is_factory = _factory.is_factory(model, factory)
        if not callable(model):
            raise TypeError(f"the model, a {type(model).__name__}, cannot be called")
        if kind.cuda_graphs and not idempotent:
            raise ValueError(
                "cuda_graphs=True runs the model more than once to record what it does: that does "
                "not go with idempotent=False"
            )
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size={max_batch_size}: use at least 1")
        stall_after = seconds("stall_after", stall_after)
        self._budget = Budget.of(max_batch_cost, kind, max_batch_size)
        if isinstance(device, DeviceExecutor):
            self._executor = device
        else:
            self._executor = executor(_devices.default() if device is None else device)
        if kind.cuda_graphs and not self._executor.device.startswith("cuda"):
            raise ValueError(
                f"cuda_graphs=True: the device is {self._executor.device!r}, which has none"
            )
        self._supervisor: _onelane.Supervisor | None = None
        self._collator = kind.collator() if isolated is None else _isolation.collator(kind)
        self._max_rows = max_batch_size
        self._keys = Keys()
        self._context_key = _context_key(context)
        if kind.shared and _training.is_module(model):
            warning = _training.warning(model)
            if warning is not None:
                warnings.warn(warning, stacklevel=_names.level_outside())
        self._autocast = _devices.autocast_types(self._executor.device)
        elements = None if kind.pad is None or isolated is not None else _onelane.Elements()
        settings: dict[str, Any] = {
            "to_cpu": kind.output == "cpu",
            "copy_outputs": kind.copy,
            "cuda_graphs": kind.cuda_graphs,
            "costed": self._budget is not None,
        }
        build: Any
        if isolated is None:
            build = _model.Build(
                model,
                factory=is_factory,
                device=self._executor.device,
                collator=self._collator,
                elements=elements,
                note=self._executor._note,
                wrap=_wrapper(self._executor),
                **settings,
            )
        else:
            spec = _isolation.Spec(
                model, is_factory, self._executor.device, kind, settings, idempotent
            )
            build = self._supervisor = _isolation.supervisor(isolated, spec)
        self._name = name or getattr(model, "__name__", None) or type(model).__name__
        self._core = _onelane.Queue(
            self._executor._core,
            build,
            name=self._name,
            max_batch_size=max_batch_size if kind.shared else 1,
            max_batch_cost=max_batch_size if self._budget is None else self._budget.most,
            max_wait=float(max_wait),
            capacity=capacity,
            stall_after_s=stall_after,
            idempotent=idempotent,
            elements=elements if kind.elements is None else kind.elements,
        )
        # A process that has no PyTorch does not load it to read requests.
        tensors = isinstance(self._collator, TensorCollator)
        plain = tensors and kind.pad is None and self._budget is None and context == "first"
        reading = _reading(self._collator, self._keys, self._autocast) if plain else None
        self._open(self._core, max_batch_size, reading)
        self._executor._queues.add(self)

    @classmethod
    def from_factory(
        cls, factory: Callable[[], Any], device: Any = None, **settings: Any
    ) -> BatchQueue:
        """Make a queue whose model is built by `factory()`, on the worker."""
        return cls(factory, device, factory=True, **settings)

    @property
    def name(self) -> str:
        """What it is called in logs and errors."""
        return self._name

    @property
    def executor(self) -> DeviceExecutor:
        """The executor that owns the device."""
        return self._executor

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_model.Payload, int, int]:
        """Read an input; called by `_onelane.Front` for all but plain tensors."""
        modes = _modes.capture(self._autocast)
        request, key = self._collator.prepare(args, kwargs)
        context = contextvars.copy_context()
        if self._context_key is not None and key is not ALONE:
            key = (key, self._context_key(context))
        payload = _model.Payload(request, modes, context)
        if self._budget is None:
            cost = min(max(request.rows, 1), self._max_rows)
        else:
            cost = request.cost = self._budget.of_request(request, args, kwargs)
        return payload, self._keys.number(key if key is ALONE else (key, modes)), cost

    def _call_held(self, inputs: tuple[Any, ...], named: dict[str, Any] | None) -> Any:
        """Run a request of the holder's on the worker; called by `_onelane.Front`."""
        if not self._executor.is_held_here():
            return NotImplemented
        return self._executor.call(self, *inputs, **(named or {}))

    if TYPE_CHECKING:

        def __call__(
            self,
            *inputs: Any,
            timeout: float | None = None,
            deadline: float | None = None,
            priority: Priority = "normal",
            **named: Any,
        ) -> Any:
            """Return the model's response to one request; blocks until it is there.

            timeout: seconds after which to give up; deadline: the same as an instant of
            `time.monotonic()`. A request that has not started by then is not computed, and
            `DeadlineExceeded`, a `TimeoutError`, is raised.
            """

    def submit(
        self,
        *inputs: Any,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        **named: Any,
    ) -> Future[Any]:
        """Submit one request and return its future; blocks only while the queue is full.

        timeout, deadline: when the request must have started, or the future gets
        `DeadlineExceeded`, at that time, also while the worker is busy. If there has been no room
        until then, this raises `QueueFull`. Cancelling the future takes the request out of the
        queue.

        Called on the worker by its model or by a future's done-callback, it does not wait for room:
        the request waits for it by itself.
        """
        if self._executor.is_held_here():
            terms: Any = {"timeout": timeout, "deadline": deadline, "priority": priority}
            return self._executor.submit(self, *inputs, **terms, **named)
        future: Future[Any] = self._submit(inputs, named, timeout, deadline, priority)
        return future

    def try_submit(
        self,
        *inputs: Any,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        **named: Any,
    ) -> Future[Any]:
        """Do what `submit` does if there is room now, and never block.

        Raises `QueueFull` if there is none; what was accepted before is not touched. timeout,
        deadline: as in `submit`.
        """
        if self._executor.is_held_here():
            terms: Any = {"timeout": timeout, "deadline": deadline, "priority": priority}
            return self._executor.try_submit(self, *inputs, **terms, **named)
        future: Future[Any] = self._submit(inputs, named, timeout, deadline, priority, False)
        return future

    def submit_many(
        self,
        inputs: Iterable[Any],
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
    ) -> list[Future[Any]]:
        """Submit several requests at once: all are accepted, or none is."""
        if self._executor.is_held_here():
            terms: Any = {"timeout": timeout, "deadline": deadline, "priority": priority}
            return [self.submit(x, **terms) for x in inputs]
        return self._submit_many(inputs, timeout, deadline, priority)

    def infer(
        self,
        *inputs: Any,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        **named: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Return what is awaited for the model's response to one request; never blocks the loop.

        The input and the caller's modes are read here, at the call, and a wrong input is refused
        here; the request is submitted when this is awaited. timeout, deadline: as in a call,
        counted from the call. Cancelling the task cancels the request.
        """
        end = _end(timeout, deadline)
        if self._executor.is_held_here():
            return self._executor.acall(self, *inputs, deadline=end, priority=priority, **named)
        return self._answer(self._read(inputs, named, None, end, priority), end)

    async def _answer(self, reading: _onelane.Reading, end: float | None) -> Any:
        """Submit a request that was read, and await its response until `end`."""
        if self._executor.is_held_here():
            raise WouldDeadlock(
                "this request was made before hold() and would wait for the end of the hold that "
                "it is awaited in: call infer() inside of the block"
            )
        future, ticket = self._infer(reading)
        left = None if end is None else end - time.monotonic()
        return await _aio.answer(future, ticket, left)

    def map(
        self,
        inputs: Iterable[Any],
        *,
        timeout: float | None = None,
        priority: Priority = "normal",
    ) -> Iterator[Any]:
        """Return the responses to many requests, in order.

        Some batches' worth of requests are under way at a time, so `inputs` may be endless. The
        first are submitted at once. timeout: seconds from this call until `TimeoutError` is raised.
        """
        window = 4 * self._max_rows * self._executor.workers
        end = None if timeout is None else time.monotonic() + timeout
        source = iter(inputs)
        futures: deque[Future[Any]] = deque()

        def fill() -> None:
            left = None if end is None else end - time.monotonic()
            try:
                for x in itertools.islice(source, window - len(futures)):
                    futures.append(self.submit(x, timeout=left, priority=priority))
            except QueueFull:
                raise TimeoutError(f"no room in the queue within {timeout} s") from None

        def results() -> Iterator[Any]:
            try:
                while futures:
                    left = None if end is None else end - time.monotonic()
                    result = futures[0].result(left)
                    futures.popleft()
                    fill()
                    yield result
            finally:
                for future in futures:
                    future.cancel()

        try:
            fill()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return results()

    def stats(self) -> QueueStats:
        """Return a snapshot of the counters; the last one when the queue has been closed."""
        stats = QueueStats._of(self._core.stats(), self._executor.device)
        if self._supervisor is None:
            return stats
        return _isolation.with_children(stats, self._supervisor)

    def health(self) -> Health:
        """Return whether the queue works, is being rebuilt, stalls, has failed or was closed."""
        return Health(*self._core.health())

    def close(self) -> None:
        """Refuse new requests, run what was accepted, drop the model on its worker, and wait."""
        self.shutdown()

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> bool:
        """Refuse new requests; run what was accepted, or give it up with `cancel_futures`.

        timeout: seconds to wait. Returns whether everything has ended; if not, it goes on.
        Requests that are given up raise `QueueClosed`. A signal handler that raises, as Ctrl-C
        does, ends the wait: then what has not started is given up.
        """
        try:
            return self._core.shutdown(cancel_futures, timeout if wait else 0.0)
        except BaseException:
            _lifecycle.give_up(self._core)
            raise

    def __enter__(self) -> BatchQueue:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BatchQueue(device={self._executor.device!r}, max_batch_size={self._max_rows})"


def _reading(collator: Collator, keys: Keys, autocast: tuple[str, ...]) -> tuple[Any, ...] | None:
    """What `_onelane.Front` reads plain tensors with; see there."""
    import torch

    any_autocast = getattr(torch._C, "_is_any_autocast_enabled", None)
    if any_autocast is None:
        return None

    def is_special() -> bool:
        return any_autocast() or _modes.default_device_may_be_set(torch)

    def new_kind(tensor: Any) -> tuple[int, _modes.Modes] | None:
        modes = _modes.capture(autocast)
        if tensor.is_complex() or tensor.is_quantized:
            # Python looks at each one: the numbers of two may mean different things.
            return None
        return keys.number((collator.prepare((tensor,), {})[1], modes)), modes

    return (
        torch.Tensor,
        torch.is_grad_enabled,
        torch.is_inference_mode_enabled,
        is_special,
        contextvars.copy_context,
        new_kind,
        torch.strided,
    )


def _context_key(context: Any) -> Callable[[contextvars.Context], Any] | None:
    """Return what makes the part of a batch key that is the caller's context; None: nothing."""
    if context == "first":
        return None
    if context == "key":
        return lambda present: frozenset(
            (variable, of_context(value)) for variable, value in present.items()
        )
    if not callable(context):
        raise ValueError(
            f"context={context!r}: use 'first', 'key' or a function of a contextvars.Context"
        )
    return lambda present: of_context(context(present))


def _wrapper(home: DeviceExecutor) -> Callable[[Any, Any], Any]:
    """Return what makes a proxy of an object; it does not keep the executor."""
    executor_of = weakref.ref(home)

    def wrap(departure: Any, value: Any) -> Any:
        home = executor_of()
        return value if home is None else lane_on(home).wrap(departure, value)

    return wrap


def _end(timeout: float | None, deadline: float | None) -> float | None:
    """Return when a request must have been answered, in terms of `time.monotonic()`."""
    if timeout is None:
        return deadline
    end = time.monotonic() + timeout
    return end if deadline is None else min(end, deadline)
