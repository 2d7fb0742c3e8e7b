"""onelane in KServe's model server: a model whose calls go through one batch queue.

KServe speaks the Open Inference Protocol; the queue batches, bounds, refuses and isolates. This
module needs KServe, `pip install kserve`, and is not imported by onelane itself.

INVARIANT: nothing here blocks the server's event loop: what has no room is refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

try:
    import grpc  # type: ignore[import-untyped, unused-ignore]
    import numpy
    from fastapi import HTTPException
    from fastapi.responses import JSONResponse
    from grpc_interceptor.exceptions import GrpcException  # type: ignore[import-not-found]
    from kserve import Model  # type: ignore[attr-defined, unused-ignore]
    from kserve.errors import (  # type: ignore[import-not-found]
        InferenceError,
        InvalidInput,
        ModelNotFound,
        ModelNotReady,
    )
    from kserve.model_server import app  # type: ignore[import-not-found]
    from kserve.protocol.infer_type import (  # type: ignore[import-not-found]
        InferOutput,
        InferRequest,
        InferResponse,
        to_http_parameters,
    )
    from kserve.utils.numpy_codec import from_np_dtype  # type: ignore[import-not-found]
except ImportError as error:
    raise ImportError(
        f"onelane.kserve needs KServe, which is not installed: pip install kserve ({error})"
    ) from error

from onelane._batch_queue import BatchQueue
from onelane._requests import Items
from onelane._stats import Health
from onelane.errors import (
    DeadlineExceeded,
    EngineLost,
    NotBatchable,
    QueueClosed,
    QueueFull,
    RequestCancelled,
)

_log = logging.getLogger("onelane.kserve")

_CODES = {
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# What KServe knows how to answer, when a model raises it, goes on as it is.
_KNOWN = (
    InvalidInput, InferenceError, ModelNotFound, ModelNotReady, NotImplementedError,
    HTTPException, GrpcException,
)  # fmt: skip
_PRIORITIES = ("interactive", "normal", "bulk")
# Models load one after another: some import PyTorch, and not while another does.
_one_at_a_time = threading.Lock()
# So long an estimate is good for saying when to come again.
_LEFT_S = 1.0


class CallFailed(Exception):
    """A call over HTTP that was refused or has failed: its status, and what the client is told."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, dict(headers or {})


async def _answer(_: Any, failed: CallFailed) -> JSONResponse:
    # As KServe's own errors look.
    return JSONResponse({"error": str(failed)}, failed.status, failed.headers)


app.add_exception_handler(CallFailed, _answer)


class QueueModel(Model):  # type: ignore[misc]
    """A model of KServe's with a `BatchQueue(model, **settings)`: concurrent calls share batches.

    ::

        model = onelane.kserve.QueueModel(
            "minilm", "app.models:load", requests=onelane.Items(), isolation="process"
        )
        kserve.ModelServer().start([model])

    What a request of the queue is, `requests` says:

    - `Tensors`, the default, and `Each`: the whole call. One input is given to the model as it is,
      several as keyword arguments by their names; arrays, whose first dimension is the batch's.
    - `Items`: each row. A call with ten texts is ten requests, which may share batches with other
      calls'. With several inputs an item is a dict of their rows. The first row that fails fails
      its call and is named; what of the call has not started then is not computed.

    A `dict` that the model returns is outputs by name, a tuple is `output-0`, `output-1`, ...; what
    else it returns is `output-0`. BYTES are texts, in both directions.

    The server listens while the model loads; `load()` before it starts has it wait. Until the
    model is there, and when the queue stalls, has failed or was closed, it is not ready. A call is
    answered 429 (RESOURCE_EXHAUSTED) where there is no room, 503 (UNAVAILABLE) by a queue that is
    not ready, 504 (DEADLINE_EXCEEDED) when its deadline passed before it started, 400
    (INVALID_ARGUMENT) if it makes no sense, and 500 (INTERNAL) if the model fails on it.

    name: by which clients call it. model, settings: as for `BatchQueue`.
    encoding: of BYTES; None leaves them bytes.
    request_timeout: seconds after which a call that says nothing else need not start any more.
        Calls say it in the parameter `timeout`, in microseconds, or the header
        `x-request-timeout-ms`; the least counts.
    rebuild_s: seconds for which a model that was lost, and is being built again, counts as ready:
        calls wait for it.

    Use one worker of KServe's (`--workers 1`, the default): another process has another queue.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        *,
        encoding: str | None = "utf-8",
        request_timeout: float | None = None,
        rebuild_s: float = 30.0,
        **settings: Any,
    ) -> None:
        super().__init__(name)
        # Has KServe call `start_engine` beside its servers.
        self.engine = True
        # Has KServe register it; `healthy` says whether it is.
        self.ready = True
        self._model, self._settings = model, {"name": name, **settings}
        self._by_row = isinstance(settings.get("requests"), Items)
        self._capacity: int = settings.get("capacity", 1024)
        self._encoding, self._timeout, self._rebuild_s = encoding, request_timeout, rebuild_s
        self._queue: BatchQueue | None = None
        self._loading, self._stopped = threading.Lock(), False
        self._rebuilding_since: float | None = None
        self._left: tuple[float, float] | None = None

    def load(self) -> bool:
        """Build the queue and its model, once, and return whether it is ready; blocks meanwhile.

        While it is being built, or when it has been stopped, this returns False at once. What the
        model raises when it is built is raised here.
        """
        # KServe calls this on its event loop, too, for calls to a model that is not ready.
        if not self._loading.acquire(blocking=False):
            return False
        try:
            if self._queue is None:
                with _one_at_a_time:
                    if not self._stopped:
                        self._queue = BatchQueue(self._model, **self._settings)
        finally:
            self._loading.release()
        if self._stopped:
            self.stop()
        return self._is_ready()

    async def start_engine(self) -> None:
        """Load on a thread of its own while the server listens; what fails ends the server."""
        if self._queue is None:
            await asyncio.to_thread(self.load)

    @property
    def queue(self) -> BatchQueue:
        """The queue, for its `stats()` and `health()`; raises `QueueClosed` before it is built."""
        if self._queue is None:
            raise QueueClosed(f"the model {self.name} has not been loaded")
        return self._queue

    async def healthy(self) -> bool:
        """Whether calls are answered; KServe's `/v2/models/NAME/ready`."""
        return self._is_ready()

    def _is_ready(self) -> bool:
        if self._queue is None:
            return False
        health = self._queue.health()
        if health.state != "rebuilding":
            self._rebuilding_since = None
            return health.ok
        now = time.monotonic()
        if self._rebuilding_since is None:
            self._rebuilding_since = now
        return now - self._rebuilding_since < self._rebuild_s

    def stop(self) -> None:
        """Refuse new calls; what was accepted is run. Does not wait: KServe waits for its calls."""
        self.ready, self._stopped = False, True
        if self._queue is not None:
            self._queue.shutdown(wait=False)

    def stop_engine(self) -> None:
        """Do nothing; KServe calls it after `stop`."""

    def __reduce__(self) -> Any:
        raise TypeError(
            f"the model {self.name} cannot go to another process: start ModelServer with workers=1"
        )

    async def predict(
        self,
        payload: Any,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        """Answer a call of the Open Inference Protocol; KServe calls this.

        Cancelling it takes what has not started out of the queue.
        """
        if not isinstance(payload, InferRequest):
            raise InvalidInput(
                f"the model {self.name} speaks the Open Inference Protocol: POST to "
                f"/v2/models/{self.name}/infer"
            )
        inputs = _arrays(payload, self._encoding)
        terms = self._terms(payload, headers or {})
        requests = self._rows(inputs) if self._by_row else [_call(inputs)]
        try:
            futures = self._submit(requests, terms)
            results = await self._results(futures)
            outputs = [
                _output(name, array, payload.from_grpc)
                for name, array in _arrays_of(results, self._by_row).items()
            ]
        except (*_KNOWN, asyncio.CancelledError):
            raise
        except Exception as error:
            failure = self._failure(error, payload.from_grpc)
            raise failure from error
        return InferResponse(
            payload.id or str(uuid.uuid4()),
            self.name,
            outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def _rows(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Return the items of a call: a row, or a dict of rows by name."""
        lengths = {name: len(array) if array.ndim else -1 for name, array in inputs.items()}
        rows = min(lengths.values())
        if rows < 1 or any(length != rows for length in lengths.values()):
            raise InvalidInput(
                "each row is a request, so every input needs the same first dimension, of at least "
                f"1: {', '.join(f'{name}: {inputs[name].shape}' for name in inputs)}"
            )
        if rows > self._capacity:
            raise InvalidInput(
                f"{rows} rows are more than the queue holds, {self._capacity}: send them in parts"
            )
        if len(inputs) == 1:
            (array,) = inputs.values()
            return list(array)
        return [{name: array[row] for name, array in inputs.items()} for row in range(rows)]

    def _terms(self, payload: Any, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return how a call wants its requests to be treated."""
        parameters = to_http_parameters(payload.parameters) if payload.parameters else {}
        terms: dict[str, Any] = {"priority": _priority(parameters, headers)}
        said = (
            ("timeout", parameters.get("timeout"), 1e-6),
            ("x-request-timeout-ms", headers.get("x-request-timeout-ms"), 1e-3),
        )
        limits = [] if self._timeout is None else [self._timeout]
        limits += [_number(name, value) * unit for name, value, unit in said if value is not None]
        # As for Triton, 0 is none.
        limits = [limit for limit in limits if limit > 0]
        if limits:
            terms["timeout"] = min(limits)
        return terms

    def _submit(self, requests: Sequence[Any], terms: Mapping[str, Any]) -> list[Future[Any]]:
        """Submit all requests of a call; without room for all of them the call is refused."""
        queue = self.queue
        futures: list[Future[Any]] = []
        try:
            for request in requests:
                futures.append(queue.try_submit(request, **terms))
        except BaseException as error:
            for future in futures:
                future.cancel()
            if isinstance(error, (TypeError, ValueError)):
                raise InvalidInput(str(error)) from error
            raise
        return futures

    async def _results(self, futures: Sequence[Future[Any]]) -> list[Any]:
        """Await what the requests of a call come to; raises what the first that failed raised."""
        waits = [asyncio.wrap_future(future) for future in futures]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_EXCEPTION)
            for row, wait in enumerate(waits):
                error = wait.exception() if wait.done() else None
                if error is not None:
                    if self._by_row and not isinstance(error, _KNOWN):
                        raise _RowFailed(row) from error
                    raise error
            return [wait.result() for wait in waits]
        finally:
            for wait in waits:
                # Of those that have failed, too, somebody has to have seen the exception.
                if not wait.cancel() and not wait.cancelled():
                    wait.exception()

    def _failure(self, error: BaseException, from_grpc: bool) -> Exception:
        """Return what the client is told of an error, by its protocol's means."""
        at = ""
        if isinstance(error, _RowFailed) and error.__cause__ is not None:
            at, error = f"row {error.row}: ", error.__cause__
        status, headers, said = 500, {}, f"{type(error).__name__}: {error}"
        if isinstance(error, QueueFull):
            status, said = 429, f"the queue of {self.name} is full"
            headers["Retry-After"] = str(self._retry_after_s())
        elif isinstance(error, DeadlineExceeded):
            status = 504
        elif isinstance(error, (QueueClosed, RequestCancelled)) or self._is_lost(error):
            status, said = 503, f"{self.name} is not ready: {self._why()}"
        if from_grpc:
            return GrpcException(at + said, _CODES[status])  # type: ignore[no-any-return]
        return CallFailed(status, at + said, headers)

    def _is_lost(self, error: BaseException) -> bool:
        """Whether an error says that the queue has failed, and not the model on this request."""
        return type(error) is EngineLost and not self._is_ready()

    def _why(self) -> str:
        if self._queue is None:
            return "it is loading"
        health: Health = self._queue.health()
        return health.state if health.detail is None else f"{health.state}: {health.detail}"

    def _retry_after_s(self) -> int:
        """Return how long what waits now will take, in seconds."""
        now = time.monotonic()
        if self._left is None or now - self._left[0] > _LEFT_S:
            # Statistics have histograms: not for every refusal of an overload.
            stats = self.queue.stats()
            left = stats.waiting_cost * stats.device_time_s / max(stats.cost, 1)
            self._left = now, left
        return max(1, math.ceil(self._left[1]))


class _RowFailed(Exception):
    """A row of a call has failed; why is its cause."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def _call(inputs: Mapping[str, Any]) -> Any:
    """Return the one request that a call is."""
    if len(inputs) == 1:
        (array,) = inputs.values()
        return array
    return dict(inputs)


def _arrays(payload: Any, encoding: str | None) -> dict[str, Any]:
    """Return the inputs of a call as arrays, by name."""
    arrays: dict[str, Any] = {}
    for given in payload.inputs:
        try:
            array = given.as_numpy()
            if given.datatype == "BYTES":
                array = _texts(array, encoding)
        except InvalidInput:
            raise
        except Exception as error:
            # KServe's reading raises whatever it comes upon.
            raise InvalidInput(f"input {given.name!r} cannot be read: {error}") from error
        arrays[given.name] = array
    if not arrays or len(arrays) != len(payload.inputs):
        names = [given.name for given in payload.inputs]
        raise InvalidInput(f"give one input or more, each with a name of its own: {names}")
    return arrays


def _texts(array: Any, encoding: str | None) -> Any:
    """Return BYTES as what the model wants: over JSON they come as texts, else as bytes."""
    texts = numpy.empty(array.shape, dtype=object)
    for at, value in numpy.ndenumerate(array):
        if encoding is None:
            texts[at] = value.encode() if isinstance(value, str) else value
        else:
            texts[at] = value if isinstance(value, str) else value.decode(encoding)
    return texts


def _arrays_of(results: Sequence[Any], by_row: bool) -> dict[str, Any]:
    """Return what the requests of a call came to as the arrays of its response, by name."""
    named = [_named(result) for result in results]
    arrays = {}
    for name in named[0]:
        try:
            rows = [_array(one[name]) for one in named]
            arrays[name] = numpy.stack(rows) if by_row else rows[0]
        except (KeyError, ValueError) as error:
            raise NotBatchable(
                f"the output {name!r} of the rows cannot be put into one array: {error}"
            ) from error
    return arrays


def _output(name: str, array: Any, from_grpc: bool) -> Any:
    datatype = from_np_dtype(array.dtype)
    if datatype is None:
        raise TypeError(
            f"the model's output {name!r} has the dtype {array.dtype}, which the protocol has no "
            f"name for: return another"
        )
    if not from_grpc:
        return InferOutput(name, list(array.shape), datatype, array)
    # KServe's own conversion for gRPC takes no array.
    output = InferOutput(name, list(array.shape), datatype)
    output.set_data_from_numpy(array, binary_data=True)
    return output


def _named(result: Any) -> dict[str, Any]:
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items()}
    parts = result if isinstance(result, tuple) else (result,)
    return {f"output-{i}": part for i, part in enumerate(parts)}


def _array(value: Any) -> Any:
    """Return one output as an array; KServe sends those of texts as BYTES."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # Which arrays do not have.
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array = numpy.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def _priority(parameters: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    named = headers.get("x-priority")
    if named is not None:
        if named not in _PRIORITIES:
            raise InvalidInput(f"x-priority: {named}: use one of {', '.join(_PRIORITIES)}")
        return named
    number = int(_number("priority", parameters.get("priority", 0)))
    # As for Triton: 1 is the most urgent, 0 is the default.
    return "normal" if number == 0 else _PRIORITIES[min(number, 3) - 1]


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < math.inf:
        raise InvalidInput(f"{name}: {value!r}: give a number of at least 0")
    return number


__all__ = ["CallFailed", "QueueModel"]
