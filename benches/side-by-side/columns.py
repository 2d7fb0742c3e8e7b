"""The columns of the table: what each shows of a server's figures, and which way is better.

A value that is not there is None; its cell says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Found = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of each server."""

    head: str
    value: Callable[[Found], float | None]
    # 1: more is better; -1: less is; 0: neither.
    better: int
    form: str = "{:.0f}"
    # What is said where there is none though the load ran.
    none: str = "none"

    def cell(self, found: Found) -> str:
        value = self.of(found)
        return self.none if value is None else self.form.format(value)

    def of(self, found: Found) -> float | None:
        try:
            return self.value(found)
        except (KeyError, TypeError, IndexError):
            return None


def worst_poison(found: Found) -> tuple[str, Found] | None:
    """The poisoned request that did most harm: by innocents, then by time."""
    kinds = {k: v for k, v in found["poison"].items() if isinstance(v, dict) and k != "none"}
    if not kinds:
        return None

    def harm(item: tuple[str, Found]) -> tuple[float, float]:
        took = item[1]["recovery_s"]
        return (took is None, item[1]["innocents_failed"], took or 0)  # type: ignore[return-value]

    return max(kinds.items(), key=harm)


def _poison(key: str) -> Callable[[Found], float | None]:
    def value(found: Found) -> float | None:
        worst = worst_poison(found)
        return None if worst is None else worst[1][key]

    return value


def columns(shares: list[str]) -> list[Column]:
    """The table's columns, for open loops at these shares of our throughput."""
    opened = []
    for share in shares:
        for key, head in (("p50_ms", "p50"), ("p99_ms", "p99")):
            opened.append(
                Column(
                    f"{head} at {share}, ms",
                    lambda f, s=share, k=key: f["open"][s][k],  # type: ignore[misc]
                    -1,
                    none="no answer",
                )
            )
    return [
        Column("texts/s", lambda f: f["closed"]["texts_s"], 1),
        *opened,
        Column("goodput at overload, texts/s", lambda f: f["overload"]["goodput"], 1),
        Column("of its own best", lambda f: f["overload"]["of_throughput"], 1, "{:.0%}"),
        Column("recovery, s", _poison("recovery_s"), -1, "{:.2f}", "never"),
        Column("innocents failed", _poison("innocents_failed"), -1),
        Column("MB before", lambda f: f["memory"]["before_mb"], -1),
        Column("MB grown", lambda f: f["memory"]["grown_mb"], -1, "{:+.0f}"),
        Column("wrong answers", lambda f: f["wrong"]["wrong"], -1),
    ]
