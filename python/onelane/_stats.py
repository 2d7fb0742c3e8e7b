"""Statistics and health, as typed values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from onelane import _memory, _shapes
from onelane._memory import Memory


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
class IsolationStats:
    """What has become of the isolated workers of a queue. All counts only grow.

    starts: processes started; failed_starts: those of them that did not become ready. Lost because
    the process ended (crashes), did not answer in time (hangs), its device was poisoned
    (poisonings), or it sent what cannot be understood (protocol_errors). retries: lone requests run
    again in a fresh worker. recycled_for_*: replaced for their memory, number of batches or age.
    stuck: killed, and not dead. footprint: bytes of those that live now, all together;
    max_footprint: the most that one had after a batch, 0 where `max_memory` is not set.
    last_start_s: how long the last start took. pids: of those that live. spare: one waits, warm.
    """

    starts: int
    failed_starts: int
    crashes: int
    hangs: int
    poisonings: int
    protocol_errors: int
    retries: int
    recycled_for_memory: int
    recycled_for_batches: int
    recycled_for_age: int
    stuck: int
    footprint: int
    max_footprint: int
    last_start_s: float
    pids: tuple[int, ...]
    spare: bool

    @property
    def losses(self) -> int:
        """Workers lost after they had become ready, whatever the cause."""
        return self.crashes + self.hangs + self.poisonings + self.protocol_errors

    @property
    def recycled(self) -> int:
        """Workers replaced, whatever the cause."""
        return self.recycled_for_memory + self.recycled_for_batches + self.recycled_for_age


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
    classes: by priority, `"interactive"`, `"normal"` and `"bulk"`. isolation: of the isolated
    workers, or None.
    shapes: distinct shapes of inputs that the device has seen, where they are counted: in batches
    on mps, and in what `install` batches. memory: of the device after its last batch, and of the
    process now.
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
    shapes: int
    memory: Memory
    histograms: QueueHistograms = field(repr=False)
    isolation: IsolationStats | None = None

    @classmethod
    def _of(cls, values: dict[str, Any], device: str) -> QueueStats:
        values["shapes"], values["memory"] = _shapes.count(device), _memory.read(device)
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

    calls: of the calls that are not batched.
    batched: of the methods whose calls are batched, by name.
    """

    calls: QueueStats
    batched: dict[str, QueueStats]


@dataclass(frozen=True)
class Health:
    """How a queue or an executor is.

    `rebuilding`: the model was lost and is being built again; requests wait for it. `stalled`: a
    batch has run for longer than `stall_after` of the queue, or of the executor, says
    (`running_for_s` says how long, `waits_for` names the device that its worker waits for, if it
    does); it may still end. `failed`: every request is refused; `detail` says why. `closed`: it has
    been shut down. `detail` of an executor that works names those of its queues that have failed.
    """

    state: Literal["ready", "rebuilding", "stalled", "failed", "closed"]
    detail: str | None = None
    running_for_s: float | None = None
    waits_for: str | None = None

    @property
    def ok(self) -> bool:
        """Whether requests are being answered."""
        return self.state == "ready"
