"""The terms of a guarded call: until when, how urgent, and whether it waits for room."""

from __future__ import annotations

import math
import time
from typing import Literal, NamedTuple

Priority = Literal["interactive", "normal", "bulk"]


class Terms(NamedTuple):
    """How a guarded call is to be treated.

    deadline: an instant of `time.monotonic()`. wait: for room; else `QueueFull`.
    """

    deadline: float | None = None
    priority: Priority = "normal"
    wait: bool = True

    def left(self) -> float | None:
        """Return the seconds until the deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


class Options(NamedTuple):
    """What a caller has said of the calls of a method; a timeout counts from each call."""

    timeout: float | None
    deadline: float | None
    priority: Priority
    wait: bool

    def begin(self) -> Terms:
        """Return the terms of a call that is made now."""
        deadline = self.deadline
        if self.timeout is not None:
            until = time.monotonic() + self.timeout
            deadline = until if deadline is None else min(deadline, until)
        return Terms(deadline, self.priority, self.wait)


def options(
    timeout: float | None, deadline: float | None, priority: Priority, wait: bool
) -> Options:
    """Return options that have been checked."""
    for name, value in (("timeout", timeout), ("deadline", deadline)):
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(f"{name}={value!r}: use a number of seconds")
    if priority not in ("interactive", "normal", "bulk"):
        raise ValueError(f"priority={priority!r}: use 'interactive', 'normal' or 'bulk'")
    return Options(timeout, deadline, priority, bool(wait))


def seconds(name: str, value: object) -> float:
    """Return a setting that is a time and more than nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: use a number of seconds")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r}: use a number of seconds greater than 0")
    return float(value)


NORMAL = Terms()

__all__ = ["NORMAL", "Options", "Priority", "Terms", "options", "seconds"]
