"""One model on several devices of a machine: a queue on each; who has least to do is next.

INVARIANT: a request is in one queue; what a queue promises of it, holds.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from onelane import _training
from onelane._batch_queue import BatchQueue, Priority, _end
from onelane._executor import DeviceExecutor, executor
from onelane._requests import Requests
from onelane._stats import Health, QueueStats
from onelane.errors import EngineLost, QueueClosed

# Where requests go when no replica is ready: to one that may yet answer.
_SECOND_CHOICES = ("rebuilding", "stalled")
_STATES = ("ready", *_SECOND_CHOICES, "failed", "closed")


class Replicas:
    """One model on several devices, for who outgrows one: a `BatchQueue` on each.

    ::

        replicas = onelane.Replicas(load, ["cuda:0", "cuda:1"], max_batch_size=32)
        y = replicas(x)                      # as with a BatchQueue
        future = replicas.submit(x)
        y = await replicas.infer(x)

    Each request goes to the queue that has least to do: the cost of what waits there, and the
    requests that wait for room or run. Equals take turns. A replica that is not ready (its model is
    being built again, it stalls, or has failed) gets none while another is; what it had accepted
    stays there.

    model: a function without parameters or a class that makes the model, called once for each
        device on its worker, or an import path with `isolation=`; or a function that is the model,
        and keeps nothing. The first is built alone, then the others at the same time.
    devices: names, `torch.device`s or `DeviceExecutor`s, each with a worker of its own: for several
        replicas on the CPU give a `DeviceExecutor("cpu")` for each.
    requests, settings: as for `BatchQueue`, for each of them: `capacity=1024` holds 1024 in each.
    """

    def __init__(
        self,
        model: Callable[..., Any] | str,
        devices: Iterable[Any],
        requests: Requests | None = None,
        *,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        if _training.is_module(model):
            raise TypeError(
                f"one {type(model).__name__} cannot be on several devices: give a function without "
                f"parameters that makes it"
            )
        homes = _executors(devices)
        self._name = name or str(getattr(model, "__name__", model))
        self._max_batch_size: int = settings.get("max_batch_size", 32)
        self._turn = itertools.count()

        def build(number: int) -> BatchQueue:
            called = f"{self._name}[{number}]"
            return BatchQueue(model, homes[number], requests, name=called, **settings)

        # What is wrong with all of them is told once, and what they import is there.
        queues = [build(0)]
        with ThreadPoolExecutor(len(homes), thread_name_prefix="onelane replicas") as crew:
            building = [crew.submit(build, number) for number in range(1, len(homes))]
        failed = [future.exception() for future in building]
        queues += [future.result() for future in building if future.exception() is None]
        self._queues = tuple(queues)
        for error in failed:
            if error is not None:
                self.shutdown(cancel_futures=True)
                raise error

    @property
    def name(self) -> str:
        """What it is called in errors; its queues are `name[0]`, `name[1]`, ..."""
        return self._name

    @property
    def queues(self) -> tuple[BatchQueue, ...]:
        """The queues, in the order of the devices."""
        return self._queues

    def pick(self) -> BatchQueue:
        """Return the queue that has least to do now.

        Raises `EngineLost` if all have failed, and `QueueClosed` if they have been closed.
        """
        found = self._least("ready")
        for state in _SECOND_CHOICES:
            found = found or self._least(state)
        if found is not None:
            return found
        if any(queue.health().state == "failed" for queue in self._queues):
            raise EngineLost(f"no replica of {self._name} is left: {self.health().detail}")
        raise QueueClosed(f"the replicas of {self._name} have been closed")

    def _least(self, state: str) -> BatchQueue | None:
        """Return the queue in that state that has least to do, if there is one."""
        count = len(self._queues)
        first = next(self._turn)
        found, least = None, 0
        for number in range(first, first + count):
            queue = self._queues[number % count]
            if queue._core.health()[0] != state:
                continue
            load = queue._core.load()
            if found is None or load < least:
                found, least = queue, load
            if least == 0:
                break
        return found

    def __call__(
        self,
        *inputs: Any,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        **named: Any,
    ) -> Any:
        """Return the model's response to one request; as with a `BatchQueue`."""
        terms: Any = {"timeout": timeout, "deadline": deadline, "priority": priority}
        return self.pick()(*inputs, **terms, **named)

    def submit(
        self,
        *inputs: Any,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        **named: Any,
    ) -> Future[Any]:
        """Submit one request and return its future; as with a `BatchQueue`."""
        terms: Any = {"timeout": timeout, "deadline": deadline, "priority": priority}
        return self.pick().submit(*inputs, **terms, **named)

    def try_submit(
        self,
        *inputs: Any,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        **named: Any,
    ) -> Future[Any]:
        """Do what `submit` does if there is room now; raises `QueueFull` if there is none."""
        terms: Any = {"timeout": timeout, "deadline": deadline, "priority": priority}
        return self.pick().try_submit(*inputs, **terms, **named)

    def submit_many(
        self,
        inputs: Iterable[Any],
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
    ) -> list[Future[Any]]:
        """Submit several requests and return their futures, in order.

        Up to `max_batch_size` of them go to a replica together: all of those are accepted, or none.
        If some are not, those that were accepted before are cancelled, and this raises.
        """
        end = _end(timeout, deadline)
        futures: list[Future[Any]] = []
        source = iter(inputs)
        try:
            while part := list(itertools.islice(source, self._max_batch_size)):
                futures += self.pick().submit_many(part, deadline=end, priority=priority)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return futures

    def infer(
        self,
        *inputs: Any,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        **named: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Return what is awaited for the model's response to one request; never blocks the loop.

        The replica is chosen, and the input is read, when this is awaited; timeout and deadline
        count from the call. Cancelling the task cancels the request.
        """
        return self._infer(inputs, named, _end(timeout, deadline), priority)

    async def _infer(
        self,
        inputs: tuple[Any, ...],
        named: dict[str, Any],
        end: float | None,
        priority: Priority,
    ) -> Any:
        terms: Any = {"deadline": end, "priority": priority}
        return await self.pick().infer(*inputs, **terms, **named)

    def stats(self) -> tuple[QueueStats, ...]:
        """Return a snapshot of the counters of each queue, in the order of the devices."""
        return tuple(queue.stats() for queue in self._queues)

    def health(self) -> Health:
        """Return how the best of the replicas is: whether requests are answered.

        `detail` names each replica that is not ready, and says why.
        """
        every = [(queue, queue.health()) for queue in self._queues]
        best = min((health for _, health in every), key=lambda one: _STATES.index(one.state))
        worse = [
            f"{queue.name} on {queue.executor.device} is {health.state}"
            + (f": {health.detail}" if health.detail else "")
            for queue, health in every
            if not health.ok
        ]
        if not worse or best.state == "closed":
            return best
        said = "; ".join(worse)
        detail = f"degraded: {said}" if best.ok else said
        return Health(best.state, detail, best.running_for_s, best.waits_for)

    def close(self) -> None:
        """Refuse new requests, run what was accepted, drop the models, and wait."""
        self.shutdown()

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> bool:
        """Shut every queue down, at the same time; see `BatchQueue.shutdown`.

        timeout: seconds to wait for all of them. Returns whether everything has ended.
        """
        for queue in self._queues:
            queue.shutdown(wait=False, cancel_futures=cancel_futures)
        if not wait:
            timeout = 0.0
        end = None if timeout is None else time.monotonic() + timeout
        ended = True
        for queue in self._queues:
            left = None if end is None else max(0.0, end - time.monotonic())
            ended = queue.shutdown(cancel_futures=cancel_futures, timeout=left) and ended
        return ended

    def __enter__(self) -> Replicas:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        devices = [queue.executor.device for queue in self._queues]
        return f"Replicas({self._name!r}, devices={devices})"


def _executors(devices: Iterable[Any]) -> list[DeviceExecutor]:
    """Return the executor of each device, no two of which may be the same."""
    if isinstance(devices, (str, DeviceExecutor)):
        raise TypeError(f"devices={devices!r}: give a list of them")
    homes: list[DeviceExecutor] = []
    for device in devices:
        home = device if isinstance(device, DeviceExecutor) else executor(device)
        if home in homes:
            raise ValueError(
                f"the device {home.device!r} is there twice, and has one worker: its replicas "
                f"would run in turn. If the device bears that, give each a "
                f"DeviceExecutor({home.device!r}) of its own"
            )
        homes.append(home)
    if not homes:
        raise ValueError("devices=[]: give one device or more")
    return homes


__all__ = ["Replicas"]
