"""Statistics and health, as typed values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Summary:
    """What a histogram says, in the unit of its values; quantiles to two digits."""

    count: int
    mean: float
    p50: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class QueueStats:
    """A snapshot of a queue's counters, taken at one instant.

    ``submitted == completed + failed + cancelled + expired + closed + waiting + running``. A
    request here is one call; `cost` counts rows. Times are in seconds.
    """

    submitted: int
    refused: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    closed: int
    waiting: int
    waiting_cost: int
    running: int
    batches: int
    engine_losses: int
    device_time_s: float
    cost: int
    padded_cost: int
    padding_waste: float
    batch_size: Summary
    wait_s: Summary
    service_s: Summary

    @classmethod
    def _of(cls, values: dict[str, Any]) -> QueueStats:
        for name in ("batch_size", "wait_s", "service_s"):
            values[name] = Summary(**values[name])
        return cls(**values)


@dataclass(frozen=True)
class Health:
    """How a queue or an executor is.

    `stalled`: a batch has run for longer than 30 s (`running_for_s` says how long); it may still
    end. `failed`: every request is refused; `detail` says why.
    """

    state: Literal["ready", "stalled", "failed"]
    detail: str | None = None
    running_for_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether requests are being answered."""
        return self.state == "ready"
