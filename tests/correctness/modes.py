"""The three modes: threads on the device, threads on a queue, one thread against the CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from correctness.case import ROTATIONS, Inputs
from correctness.crew import crew
from correctness.device import Device
from correctness.outcome import Comparison, Plan, Result
from correctness.through_queue import batch_queue


def compute(module: nn.Module, inputs: Inputs, device: Device) -> Tensor:
    """Run a module on inputs that are on the device; the result comes back to the host."""
    with torch.no_grad():
        result: Tensor = module(*inputs)
    device.synchronise()
    # A copy on the CPU, too: a result that shares memory with another must not change later.
    return result.to("cpu", copy=True)


def upload(inputs: Inputs, device: Device, dtype: torch.dtype = torch.float32) -> Inputs:
    """A copy of the inputs on the device, also where the device is the CPU."""
    return tuple(x.to(device.torch, dtype, copy=True) for x in inputs)


def samples_of(plan: Plan) -> list[Inputs]:
    """The different inputs of a run, on the host; thread t uses number t mod ROTATIONS."""
    return [plan.case.inputs(rotation) for rotation in range(min(plan.threads, ROTATIONS))]


def golden_results(plan: Plan, device: Device, samples: list[Inputs]) -> list[Tensor]:
    """The result for each sample, computed one after another by one spawned thread."""
    results: list[Tensor] = []
    member = device.party(1)

    def body(thread: int, give: Callable[[object], None]) -> None:
        with member(thread):
            compute_all(give)

    def compute_all(give: Callable[[object], None]) -> None:
        module = plan.case.module().to(device.torch)
        for inputs in samples:
            give(compute(module, upload(inputs, device), device))

    def take(_: int, given: object) -> None:
        if not isinstance(given, Tensor):
            raise RuntimeError(f"golden result: {given}")
        results.append(given)

    crew(1, body, take, plan.stall_after)
    return results


def run_direct(plan: Plan, device: Device) -> Result:
    """Threads call the device directly, all at once, each with a module of its own."""
    samples = samples_of(plan)
    comparison = Comparison(plan, golden_results(plan, device, samples))
    modules = [plan.case.module().to(device.torch) for _ in range(plan.threads)]
    device.synchronise()
    member, meet = device.party(plan.threads), device.meeting(plan.threads)

    def body(thread: int, give: Callable[[object], None]) -> None:
        with member(thread):
            iterate(thread, give)

    def iterate(thread: int, give: Callable[[object], None]) -> None:
        for _ in range(plan.iterations):
            failure: Exception | None = None
            inputs: Inputs = ()
            try:
                inputs = upload(samples[thread % ROTATIONS], device)
                device.synchronise()
            except Exception as error:
                failure = error
            # Every thread meets in every iteration, whatever failed in it before.
            meet()
            try:
                give(failure or compute(modules[thread], inputs, device))
            except Exception as error:
                give(error)

    return collect(plan, comparison, body)


def run_batched(plan: Plan, device: Device, workers: int) -> Result:
    """Threads submit to a queue, whose worker owns the device."""
    samples = samples_of(plan)
    with batch_queue(plan, device, workers, samples) as queued:
        meeting = threading.Barrier(plan.threads)

        def body(thread: int, give: Callable[[object], None]) -> None:
            for _ in range(plan.iterations):
                meeting.wait()
                try:
                    give(queued.infer(samples[thread % ROTATIONS]))
                except Exception as error:
                    give(error)

        result = collect(plan, Comparison(plan, queued.golden), body)
        count, mean_size = queued.batches()
        result.batches = {"count": count, "mean_size": mean_size}
        return result


def collect(
    plan: Plan, comparison: Comparison, body: Callable[[int, Callable[[object], None]], None]
) -> Result:
    """Run a crew and compare what it gives."""
    started = time.perf_counter()
    given = [0] * plan.threads

    def take(thread: int, result: object) -> None:
        comparison.add(thread, given[thread], result)
        given[thread] += 1

    crew(plan.threads, body, take, plan.stall_after)
    return comparison.result(time.perf_counter() - started)


def run_single(plan: Plan, device: Device, dtype: torch.dtype) -> Result:
    """One thread; the device against fp32 on the CPU, on inputs and weights rounded to `dtype`."""
    rounded = tuple(x.to(dtype).float() for x in plan.case.inputs(0))
    with torch.no_grad():
        golden = plan.case.module().to(dtype).float()(*rounded)
    comparison = Comparison(plan, [golden])
    started = time.perf_counter()
    module = plan.case.module().to(device.torch, dtype)
    for iteration in range(plan.iterations):
        inputs = upload(rounded, device, dtype)
        comparison.add(0, iteration, compute(module, inputs, device))
    return comparison.result(time.perf_counter() - started)
