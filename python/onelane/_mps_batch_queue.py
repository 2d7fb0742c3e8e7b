"""The batch queue of dropbox/dML's PyTorch fork, `torch.mps.BatchQueue`, without its faults.

Operations are functions; they run one after the other on the worker. A `BatchQueue` of this package
merges requests into one computation, which this interface cannot.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from onelane import _devices, _failure, _modes, _onelane
from onelane._executor import DeviceExecutor, executor
from onelane._future import RequestFuture
from onelane.errors import QueueClosed

_MOST_WORKERS = 3


class _Operation:
    """One submitted operation."""

    __slots__ = ("context", "inputs", "modes", "op")

    def __init__(self, inputs: Any, op: Callable[[Any], Any], modes: _modes.Modes) -> None:
        self.inputs, self.op, self.modes = inputs, op, modes
        self.context = contextvars.copy_context()

    def run(self) -> Any:
        with _modes.applied(self.modes):
            return self.op(self.inputs)


class MPSBatchQueue:
    """Runs operations from many threads on the worker of a device.

    ::

        queue = onelane.MPSBatchQueue(batch_size=8, num_workers=1)
        queue.start()
        future = queue.submit(tensor, lambda x: model(x).cpu())
        queue.stop()

    batch_size: the most operations that run between two synchronisations of the device.
    num_workers: 1 to 3. One shares the device's one worker with everything else in the process.
        More are threads of their own: on MPS they can corrupt results.
    batch_timeout_ms: the longest that a worker waits for a batch to fill. The original's default is
        kept; 0 never waits.
    device: the device; default as for `BatchQueue`.

    It can be started again after it has been stopped.
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
        self._batch_timeout_ms = batch_timeout_ms
        self._autocast = _devices.autocast_types(self._device)
        # `_lock` guards starting and stopping; submissions do not take it.
        self._lock = threading.Lock()
        self._core: _onelane.Queue | None = None
        self._home: DeviceExecutor | None = None
        self._counting = threading.Lock()
        self._submitted = self._completed = 0

    def start(self) -> None:
        """Start the workers; nothing happens if they run already."""
        with self._lock:
            if self._core is not None:
                return
            if self._num_workers == 1:
                self._home = executor(self._device)
            else:
                self._home = DeviceExecutor(self._device, self._num_workers)
            self._core = _onelane.Queue(
                self._home._core,
                lambda: self._run,
                name="MPSBatchQueue",
                max_batch_size=self._batch_size,
                capacity=1 << 40,
                idempotent=False,
            )

    def submit(self, inputs: Any, op: Callable[[Any], Any]) -> Future[Any]:
        """Run `op(inputs)` on a worker and return the future of its result.

        inputs: a tensor, given to `op` as it is, or a sequence of tensors, given as a list.

        Raises `QueueClosed`, a `RuntimeError`, if the queue is not running.
        """
        core = self._core
        if core is None:
            raise QueueClosed("MPSBatchQueue is not running: call start() first")
        if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes)):
            inputs = list(inputs)
        future = RequestFuture()
        operation = _Operation(inputs, op, _modes.capture(self._autocast))
        with self._counting:
            self._submitted += 1
        try:
            # The core accepts and stops under one lock: either this is accepted and will be
            # answered, or it raises.
            future._ticket = core.submit((operation, 0, 1), 1, None, future)
        except BaseException:
            with self._counting:
                self._submitted -= 1
            raise
        future.add_done_callback(self._count)
        return future

    def stop(self) -> None:
        """Refuse new operations, run all that were submitted, and wait for them."""
        with self._lock:
            core, self._core = self._core, None
            home, self._home = self._home, None
            if core is None:
                return
            core.shutdown(False, None)
            if home is not None and self._num_workers > 1:
                home.shutdown()

    def _run(self, operations: list[_Operation]) -> tuple[list[Any], int]:
        results: list[Any] = []
        for operation in operations:
            try:
                results.append(operation.context.run(operation.run))
            except BaseException as error:
                # Only this one fails; the others are not run again.
                _failure.leave(error)
                results.append(_onelane.Failure(error))
        _devices.synchronize(self._device)
        return results, len(results)

    def _count(self, _future: Future[Any]) -> None:
        with self._counting:
            self._completed += 1

    @property
    def is_running(self) -> bool:
        """Whether operations are accepted."""
        return self._core is not None

    @property
    def submitted_requests(self) -> int:
        """Operations accepted since this object was made."""
        return self._submitted

    @property
    def completed_requests(self) -> int:
        """Operations whose future is done: with a result, an error or a cancellation."""
        return self._completed

    @property
    def pending_requests(self) -> int:
        """Operations that wait or run."""
        with self._counting:
            return self._submitted - self._completed

    @property
    def batch_size(self) -> int:
        """The most operations between two synchronisations."""
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


_singleton: MPSBatchQueue | None = None
_singleton_lock = threading.Lock()


def get_mps_batch_queue() -> MPSBatchQueue:
    """Return the process's queue, made on first use; it has still to be started."""
    global _singleton
    with _singleton_lock:
        if _singleton is None:
            _singleton = MPSBatchQueue()
        return _singleton


def configure_mps_batch_queue(
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
