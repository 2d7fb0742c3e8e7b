"""The tests through onelane: golden results on its worker, requests to its BatchQueue."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, TimeoutError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from correctness.case import Case, Inputs
from correctness.crew import Hung
from correctness.device import Device
from correctness.outcome import Plan

# The most elements of the first input in a batch (128 MiB of fp32), and the most requests.
BATCH_ELEMENTS, BATCH_REQUESTS = 32 << 20, 8


def import_onelane() -> Any:
    """The package onelane. Raises ValueError, with what to do, if it is not installed."""
    try:
        onelane: Any = importlib.import_module("onelane")
        onelane.BatchQueue  # noqa: B018 - a folder of that name is not the package
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--use-batching needs onelane ({error}). Install it from the root of its repository "
            "with `pip install .`"
        ) from error
    return onelane


class Queued(NamedTuple):
    """A queue for a test, with the golden results that were computed before it existed."""

    golden: list[Tensor]
    # Submits one request and waits for its response.
    infer: Callable[[Inputs], object]
    # How many batches have run, and how many requests they held on average.
    batches: Callable[[], tuple[int, float]]


@contextlib.contextmanager
def batch_queue(
    plan: Plan, device: Device, workers: int, samples: list[Inputs]
) -> Iterator[Queued]:
    """A queue for a test, on the device's executor. Nothing but its workers touches the device."""
    onelane = import_onelane()
    name = str(device.torch)
    # With one worker, the executor that all of the process shares.
    executor = onelane.executor(name) if workers == 1 else onelane.DeviceExecutor(name, workers)
    # Matrix products bring a right operand each: such requests cannot share a batch.
    settings = {
        "max_batch_size": rows_in_a_batch(plan.case),
        "requests": onelane.Tensors() if plan.case.stacks else onelane.Each(),
    }
    hung = False
    try:
        golden = wait(executor.submit(golden_results, plan.case, device, samples), plan.stall_after)
        queue = onelane.BatchQueue(plan.case.module, executor, factory=True, **settings)

        def infer(inputs: Inputs) -> object:
            with torch.no_grad():
                return queue(*inputs)

        def batches() -> tuple[int, float]:
            stats = queue.stats()
            return stats.batches, stats.batch_size.mean

        try:
            yield Queued(golden, infer, batches)
        except Hung:
            hung = True
            raise
        finally:
            # A worker that hangs would never let go of what it holds.
            queue.shutdown(wait=not hung, cancel_futures=hung)
    finally:
        if workers > 1:
            executor.shutdown(wait=not hung)


def wait(future: Future[list[Tensor]], stall_after: float) -> list[Tensor]:
    """The future's result. Raises Hung if it does not come."""
    try:
        return future.result(stall_after)
    except TimeoutError:
        if future.done():
            raise
        raise Hung(f"hung: the golden result did not come within {stall_after:g} s") from None


def golden_results(case: Case, device: Device, samples: list[Inputs]) -> list[Tensor]:
    """The results on the host, one after another. Runs on a worker; the module dies there."""
    module = case.module().to(device.torch)
    results = []
    for inputs in samples:
        with torch.no_grad():
            result: Tensor = module(*(x.to(device.torch) for x in inputs))
        device.synchronise()
        results.append(result.to("cpu", copy=True))
    return results


def rows_in_a_batch(case: Case) -> int:
    """How many rows the requests of a batch may have together, and one request at the least."""
    rows, *rest = case.shapes[0]
    return max(rows, min(rows * BATCH_REQUESTS, BATCH_ELEMENTS // math.prod(rest)))
