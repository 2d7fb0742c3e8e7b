"""From what was seen of each request to the figures of the page.

Nothing here asks a server or reads a clock. Instants and durations are seconds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# The largest difference of a component from what sentence-transformers gives alone.
WRONG = 1e-4


@dataclass(frozen=True)
class Seen:
    """One request, as its client saw it."""

    text: str
    planned: float  # when it was to be sent
    ended: float  # when the answer was there, or the client gave up
    status: int  # of HTTP; 0: no answer
    body: bytes = b""
    sent: float = 0.0

    @property
    def good(self) -> bool:
        return self.status == 200

    @property
    def latency(self) -> float:
        """From when it was planned: what a late client or a full server delays counts."""
        return self.ended - self.planned


def throughput(seen: Sequence[Seen], seconds: float) -> float:
    """Answers a second, of those that came before the end."""
    return sum(one.good and one.ended <= seconds for one in seen) / seconds


def latencies(seen: Sequence[Seen]) -> dict[str, float | None]:
    """Percentiles in ms. Who got no good answer waited for ever: None, if a percentile is there."""
    if not seen:
        raise ValueError("no request was planned: give a higher rate or more seconds")
    waited = [one.latency * 1e3 if one.good else np.inf for one in seen]
    found = np.percentile(waited, [50, 99], method="higher")
    return {
        "p50_ms": float(found[0]) if np.isfinite(found[0]) else None,
        "p99_ms": float(found[1]) if np.isfinite(found[1]) else None,
        "failed": sum(not one.good for one in seen) / len(seen),
    }


def goodput(seen: Sequence[Seen], seconds: float, within: float) -> float:
    """Good answers a second within the limit, of what was planned in so many seconds."""
    return sum(one.good and one.latency <= within for one in seen) / seconds


def statuses(seen: Sequence[Seen]) -> dict[str, int]:
    return {str(code or "none"): n for code, n in sorted(Counter(s.status for s in seen).items())}


def embedding(body: bytes) -> np.ndarray:
    """The first embedding of an answer in OpenAI's form."""
    return np.asarray(json.loads(body)["data"][0]["embedding"], dtype=np.float64)


def wrong_answers(
    seen: Sequence[Seen], reference: Mapping[str, np.ndarray]
) -> dict[str, int | float]:
    """Compare each good answer with the reference of its text."""
    wrong, largest, checked = 0, 0.0, 0
    for one in seen:
        if not one.good:
            continue
        checked += 1
        expected = reference[one.text]
        try:
            found = embedding(one.body)
        except (ValueError, KeyError, IndexError, TypeError):
            wrong += 1
            continue
        if found.shape != expected.shape or not np.isfinite(found).all():
            wrong += 1
            continue
        difference = float(np.abs(found - expected).max())
        largest = max(largest, difference)
        wrong += difference > WRONG
    return {"checked": checked, "wrong": wrong, "largest_difference": largest}


def recovery_time(seen: Sequence[Seen], poisoned: float, in_a_row: int = 20) -> float | None:
    """Seconds from the poisoned request until so many good answers in a row; None: never.

    Counted are answers to what was sent after it. Any failure begins the count anew.
    """
    row = 0
    for one in sorted(seen, key=lambda one: one.ended):
        if one.ended < poisoned:
            continue
        if not one.good:
            row = 0
        elif one.sent >= poisoned:
            row += 1
            if row == in_a_row:
                return one.ended - poisoned
    return None


def innocents(seen: Sequence[Seen], poisoned: float) -> int:
    """Good requests that failed when the poisoned one came, or after it."""
    return sum(not one.good and one.ended >= poisoned for one in seen)
