"""What is asked of a test, what it gave, and how its results are compared with golden ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from correctness.case import ROTATIONS, Case


@dataclass
class Result:
    """What one test gave at one number of threads; the differences are None if not finite."""

    name: str
    threads: int
    passed: bool = False
    max_diff: float | None = None
    thread_diff: float | None = None
    tolerance: float = 0.0
    seconds: float = 0.0
    batches: dict[str, float] | None = None
    errors: list[str] = field(default_factory=list)


class Plan(NamedTuple):
    """One test at one number of threads."""

    case: Case
    threads: int
    iterations: int
    relative: float
    absolute: float
    stall_after: float


class Comparison:
    """Collects the results of a run. Used by one thread only.

    Invariant: a run passes only if every thread was checked in every iteration.
    """

    def __init__(self, plan: Plan, golden: Sequence[Tensor]) -> None:
        self.plan = plan
        self.golden = golden
        self.golden_is_finite = [bool(x.isfinite().all()) for x in golden]
        self.checks = 0
        self.errors: list[str] = []
        self.max_diff: float | None = 0.0
        # For each rotation, the least and the greatest value of each element over all results.
        self.bounds: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, thread: int, iteration: int, result: object) -> None:
        """Take in a result on the host, or the exception that came in its place."""
        self.checks += 1
        fault = self._fault(thread % ROTATIONS, result)
        if fault is not None:
            self.errors.append(f"thread {thread}, iteration {iteration}: {fault}")

    def result(self, seconds: float) -> Result:
        """The result of the whole run."""
        expected = self.plan.threads * self.plan.iterations
        if self.checks < expected:
            self.errors.append(f"{expected - self.checks} of {expected} results never came")
        listed = self.errors[:5]
        if len(self.errors) > 5:
            listed.append(f"and {len(self.errors) - 5} more")
        spread = [(high - low).max().item() for low, high in self.bounds.values()]
        finite = all(x < float("inf") for x in spread)
        return Result(
            self.plan.case.name,
            self.plan.threads,
            passed=not self.errors,
            max_diff=self.max_diff if self.bounds else None,
            thread_diff=max(spread) if spread and finite and self.plan.threads > 1 else None,
            tolerance=self.plan.absolute,
            seconds=seconds,
            errors=listed,
        )

    def _fault(self, rotation: int, result: object) -> str | None:
        if isinstance(result, Exception):
            return f"{type(result).__name__}: {result}"
        if not isinstance(result, Tensor):
            return f"the result is a {type(result).__name__}, not a tensor"
        golden = self.golden[rotation]
        if result.shape != golden.shape:
            return f"the shape is {tuple(result.shape)}, but should be {tuple(golden.shape)}"
        result = result.float()
        if rotation not in self.bounds:
            self.bounds[rotation] = (result, result)
        elif not torch.equal(result, self.bounds[rotation][0]):
            low, high = self.bounds[rotation]
            self.bounds[rotation] = (torch.minimum(low, result), torch.maximum(high, result))
        if torch.equal(result, golden):  # NaN equals nothing
            return None if self.golden_is_finite[rotation] else self._not_finite()
        differences = (result - golden).abs()
        greatest = differences.max().item()
        if not greatest < float("inf"):
            return self._not_finite()
        if self.max_diff is not None:
            self.max_diff = max(self.max_diff, greatest)
        outside = differences > self.plan.absolute + self.plan.relative * golden.abs()
        count = int(outside.sum())
        if count == 0:
            return None
        return f"{count} of {golden.numel()} elements are off by up to {greatest:.3g}"

    def _not_finite(self) -> str:
        self.max_diff = None
        return "the result has values that are not finite"
