"""Statistics and health, as typed values."""

from __future__ import annotations

from dataclasses import dataclass
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
class QueueStats:
    """A snapshot of a queue's counters, taken at one instant.

    ``submitted == completed + failed + cancelled + expired + closed + waiting + running``. A
    request here is one call; `cost` counts rows. Times are in seconds.

    waiting_for_room: requests of callers that wait because the queue is full; not yet submitted.
    engine_losses: how often the model was lost, or could not be built again. memory_splits: batches
    that ran out of memory and were split. ceilings: batch keys whose batches are smaller now for
    that reason; lowest_ceiling: the most requests in a batch of the most limited of them, or None.
    classes: by priority, `"interactive"`, `"normal"` and `"bulk"`.
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

    @classmethod
    def _of(cls, values: dict[str, Any], device: str) -> QueueStats:
        values["shapes"], values["memory"] = _shapes.count(device), _memory.read(device)
        for name in ("batch_size", "wait_s", "service_s"):
            values[name] = Summary(**values[name])
        for name, found in values["classes"].items():
            found["wait_s"] = Summary(**found["wait_s"])
            values["classes"][name] = ClassStats(**found)
        return cls(**values)


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
