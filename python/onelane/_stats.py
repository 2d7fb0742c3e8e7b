"""Statistics and health, as typed values."""

from __future__ import annotations

from dataclasses import dataclass, field
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
class ClassStats:
    """What waits of one priority class; times in seconds."""

    waiting: int
    oldest_wait_s: float
    wait_s: Summary


@dataclass(frozen=True)
class Histogram:
    """A histogram as monitoring systems take it.

    buckets: upper bounds, rising, each with the number of values up to it; they double from one to
    the next, and the counts are right to two digits of the value. sum: of the values.
    """

    count: int
    sum: float
    buckets: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class QueueHistograms:
    """The histograms of a queue since it was made; times in seconds.

    batch_size: requests in a batch. batch_cost: cost of a batch, without padding. service_s: what
    a batch takes. wait_s: from acceptance to the start of the batch, by priority, `"interactive"`,
    `"normal"` and `"bulk"`.
    """

    batch_size: Histogram
    batch_cost: Histogram
    service_s: Histogram
    wait_s: dict[str, Histogram]


@dataclass(frozen=True)
class QueueStats:
    """A snapshot of a queue's counters and histograms, taken at one instant.

    ``submitted == completed + failed + cancelled + expired + closed + waiting + running``. A
    request here is one call. Times are in seconds.

    cost, padded_cost: of what was computed: rows, or what `cost` of its requests says.
    padding_waste: the part of what was computed that was padding, from 0 to 1. With a `Pad` it
    counts elements along the padded dimension: rows times their padded length, against rows times
    their own. Else it is of the cost.
    waiting_for_room: requests of callers that wait because the queue is full; not yet submitted.
    engine_losses: how often the model was lost, or could not be built again. memory_splits: batches
    that ran out of memory and were split. ceilings: batch keys whose batches are smaller now for
    that reason; lowest_ceiling: the most requests in a batch of the most limited of them, or None.
    classes: by priority, `"interactive"`, `"normal"` and `"bulk"`.
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
    waiting_for_room: int
    running: int
    batches: int
    engine_losses: int
    memory_splits: int
    ceilings: int
    lowest_ceiling: int | None
    device_time_s: float
    cost: int
    padded_cost: int
    padding_waste: float
    batch_size: Summary
    wait_s: Summary
    service_s: Summary
    classes: dict[str, ClassStats]
    histograms: QueueHistograms = field(repr=False)

    @classmethod
    def _of(cls, values: dict[str, Any]) -> QueueStats:
        for name in ("batch_size", "wait_s", "service_s"):
            values[name] = Summary(**values[name])
        for name, found in values["classes"].items():
            found["wait_s"] = Summary(**found["wait_s"])
            values["classes"][name] = ClassStats(**found)
        found = values["histograms"]
        found["wait_s"] = {name: Histogram(**one) for name, one in found["wait_s"].items()}
        for name in ("batch_size", "batch_cost", "service_s"):
            found[name] = Histogram(**found[name])
        values["histograms"] = QueueHistograms(**found)
        return cls(**values)


@dataclass(frozen=True)
class GuardStats:
    """What `onelane.stats` says of a guarded object.

    calls: of its calls, those of batched methods left out.
    batched: of the methods whose calls are batched, by name.
    """

    calls: QueueStats
    batched: dict[str, QueueStats]


@dataclass(frozen=True)
class Health:
    """How a queue or an executor is.

    `rebuilding`: the model was lost and is being built again; requests wait for it. `stalled`: a
    batch has run for longer than 30 s (`running_for_s` says how long, `waits_for` names the device
    that its worker waits for, if it does); it may still end. `failed`: every request is refused;
    `detail` says why. `closed`: it has been shut down.
    """

    state: Literal["ready", "rebuilding", "stalled", "failed", "closed"]
    detail: str | None = None
    running_for_s: float | None = None
    waits_for: str | None = None

    @property
    def ok(self) -> bool:
        """Whether requests are being answered."""
        return self.state == "ready"
