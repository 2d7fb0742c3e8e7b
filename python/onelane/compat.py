"""The batch queue of dropbox/dML's PyTorch fork, `torch.mps.BatchQueue`, without its faults.

For code that was written against it: `from onelane.compat import BatchQueue, batch_inference`.
Operations are functions; they run one after the other on the worker, and each is answered when it
is done. `onelane.BatchQueue` merges requests into one computation, which this interface cannot.

INVARIANT: what `submit` has returned a future for is answered: an operation is counted before it is
handed over, and `stop` waits until none is left.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from onelane import _devices
from onelane._executor import DeviceExecutor, executor
from onelane.errors import ForkedProcess, QueueClosed

_MOST_WORKERS = 3


class _Run:
    """From a start to the next stop: its executor, and the operations accepted meanwhile."""

    def __init__(self, home: DeviceExecutor) -> None:
        self.home = home
        self.submitted = self.started = self.completed = self.cancelled = 0


class MPSBatchQueue:
    """Runs operations from many threads on the worker of a device.

    ::

        queue = MPSBatchQueue(batch_size=8, num_workers=1)
        queue.start()
        future = queue.submit(tensor, lambda x: model(x).cpu())
        queue.stop()

    batch_size: as given; operations run one by one in any case.
    num_workers: 1 to 3. One shares the device's one worker with everything else in the process.
        More are threads of their own: on MPS they can corrupt results.
    batch_timeout_ms: accepted; it delays nothing, as in the original, where it is how often an idle
        worker looks.
    device: the device; default as for `onelane.BatchQueue`.

    It can be started again after it has been stopped. Also a context manager: started, and stopped.
    """

    def __init__(
        self,
        batch_size: int = 8,
        num_workers: int = 1,
        batch_timeout_ms: float = 10,
        device: Any = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: use at least 1")
        if not 1 <= num_workers <= _MOST_WORKERS:
            raise ValueError(f"num_workers={num_workers}: use 1 to {_MOST_WORKERS}; 1 is safe")
        if batch_timeout_ms < 0:
            raise ValueError(f"batch_timeout_ms={batch_timeout_ms}: use 0 or more")
        self._device = _devices.canonical(_devices.default() if device is None else device)
        self._batch_size, self._num_workers = batch_size, num_workers
        # Guards the numbers of all runs, and which one is on; nothing is called under it.
        self._state = threading.Condition()
        self._run: _Run | None = None
        # The present run, and those that still have operations under way; the others' numbers.
        self._runs: list[_Run] = []
        self._earlier = {"submitted": 0, "completed": 0}

    def start(self) -> None:
        """Start the workers; nothing happens if they run already."""
        if self._run is not None:
            return
        if self._num_workers == 1:
            home = executor(self._device)
        else:
            home = DeviceExecutor(self._device, self._num_workers)
        with self._state:
            is_first = self._run is None
            if is_first:
                self._run = _Run(home)
                self._runs = [*self._unfinished(), self._run]
        if not is_first and self._num_workers > 1:
            home.shutdown()

    def submit(self, inputs: Any, op: Callable[[Any], Any]) -> Future[Any]:
        """Run `op(inputs)` on a worker and return the future of its result.

        inputs: a tensor, given to `op` as it is, or a sequence of tensors, given as a list. It runs
        with the caller's modes and context variables. On the worker it is run before this returns.

        Blocks while 16,384 calls of the device wait. Raises `QueueClosed`, a `RuntimeError`, if the
        queue is not running.
        """
        if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes)):
            inputs = list(inputs)
        with self._state:
            run = self._run
            if run is None:
                raise QueueClosed(f"{type(self).__name__} is not running: call start() first")
            run.submitted += 1
        try:
            future = run.home.submit(self._operate, run, inputs, op)
        except BaseException:
            with self._state:
                run.submitted -= 1
                self._state.notify_all()
            raise
        future.add_done_callback(lambda done: self._count(run, done))
        return future

    def _operate(self, run: _Run, inputs: Any, op: Callable[[Any], Any]) -> Any:
        with self._state:
            run.started += 1
        result = op(inputs)
        _devices.synchronize(self._device)
        return result

    def _count(self, run: _Run, future: Future[Any]) -> None:
        with self._state:
            run.completed += 1
            run.cancelled += future.cancelled()
            self._state.notify_all()

    def stop(self) -> None:
        """Refuse new operations, run all that were submitted, and wait for them.

        Called by an operation, it does not wait.
        """
        run = self._run
        if run is None:
            return
        home = run.home
        if home._core.stale:
            raise ForkedProcess(
                "this queue belongs to the parent process: make one in the child of a fork"
            )
        with self._state:
            if self._run is run:
                self._run = None
            if not home.is_worker:
                self._state.wait_for(lambda: run.completed == run.submitted)
        if self._num_workers > 1:
            home.shutdown(wait=not home.is_worker)

    def _unfinished(self) -> Iterator[_Run]:
        """Yield the runs that have operations under way, and count the others."""
        for run in self._runs:
            if run.completed < run.submitted:
                yield run
            else:
                self._earlier["submitted"] += run.submitted
                self._earlier["completed"] += run.completed

    @property
    def is_running(self) -> bool:
        """Whether operations are accepted."""
        return self._run is not None

    @property
    def submitted_requests(self) -> int:
        """Operations accepted since this object was made."""
        with self._state:
            return self._earlier["submitted"] + sum(run.submitted for run in self._runs)

    @property
    def completed_requests(self) -> int:
        """Operations whose future is done: with a result, an error or a cancellation."""
        with self._state:
            return self._earlier["completed"] + sum(run.completed for run in self._runs)

    @property
    def pending_requests(self) -> int:
        """Operations that wait, without those that run."""
        with self._state:
            return sum(run.submitted - run.started - run.cancelled for run in self._runs)

    @property
    def batch_size(self) -> int:
        """What was given."""
        return self._batch_size

    @property
    def num_workers(self) -> int:
        """The number of workers."""
        return self._num_workers

    def __enter__(self) -> MPSBatchQueue:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


# `torch.mps` has it by this name.
BatchQueue = MPSBatchQueue

_singleton: MPSBatchQueue | None = None
_singleton_lock = threading.Lock()


def get_mps_batch_queue() -> MPSBatchQueue:
    """Return the process's queue, made on first use; it has still to be started."""
    global _singleton
    with _singleton_lock:
        if _singleton is None:
            _singleton = MPSBatchQueue()
        return _singleton


def configure_batch_queue(
    batch_size: int = 8,
    num_workers: int = 1,
    batch_timeout_ms: float = 10,
    device: Any = None,
) -> MPSBatchQueue:
    """Replace the process's queue by one with these settings; the old one is stopped.

    The new one is started if the old one was running.
    """
    global _singleton
    made = MPSBatchQueue(batch_size, num_workers, batch_timeout_ms, device)
    with _singleton_lock:
        old, _singleton = _singleton, made
    if old is not None and old.is_running:
        old.stop()
        made.start()
    return made


configure_mps_batch_queue = configure_batch_queue


@contextlib.contextmanager
def batch_inference(
    batch_size: int = 8, num_workers: int = 1, device: Any = None
) -> Iterator[MPSBatchQueue]:
    """Have the device to oneself for a `with` block.

    ::

        with batch_inference(batch_size=8):
            results = model(inputs)

    The worker runs nothing of others' meanwhile, and other blocks wait their turn, so that what
    the block does to the device by itself is never done by two threads at a time. It is done by the
    calling thread, not by the worker: an `onelane.audit` reports it. The queue that the block is
    given is running, and its operations run on the worker. Several workers cannot be held, so
    `num_workers` is 1.
    """
    if num_workers != 1:
        raise ValueError(f"num_workers={num_workers}: the block has one worker to itself: use 1")
    with MPSBatchQueue(batch_size, num_workers, device=device) as queue:
        run = queue._run
        assert run is not None
        with run.home.hold():
            yield queue


__all__ = [
    "BatchQueue",
    "MPSBatchQueue",
    "batch_inference",
    "configure_batch_queue",
    "configure_mps_batch_queue",
    "get_mps_batch_queue",
]
