"""Lengths: which texts share a batch, and to which shape a batch is filled up.

A device keeps something for each shape that it has seen (MPS a compiled graph and memory), so
lengths and rows are rounded up to a fixed set: at most 96 shapes up to 512 tokens. What waits is
sorted by length and split where the padding of one batch costs more than a second launch.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence

LENGTHS = (8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 448, 512)
ROWS = (1, 2, 4, 8, 16, 32)


def length_bucket(length: int, most: int | None = None) -> int:
    """Return the length that a batch is padded to; never more than `most`, what the model takes."""
    if length <= LENGTHS[-1]:
        found = LENGTHS[bisect_left(LENGTHS, length)]
    else:
        # Long inputs: steps of an eighth of the power of two below.
        step = (1 << (length.bit_length() - 1)) // 8
        found = -(-length // step) * step
    return max(length, min(found, most)) if most else found


def row_bucket(rows: int, most: int = ROWS[-1]) -> int:
    """Return the rows that a batch is filled up to, unless that is more than `most`."""
    if rows >= ROWS[-1]:
        return rows
    found = ROWS[bisect_left(ROWS, rows)]
    return found if found <= most else rows


class LaunchCost:
    """What one more launch costs, in tokens of padding: a line fitted to the batches that ran.

    The time of a batch is taken for `a + b * padded tokens`; a launch costs as much as `a / b`
    tokens. Older batches count less.
    """

    _LEAST, _MOST, _KEEP = 32.0, 2048.0, 0.98

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self.tokens = 192.0

    def rows(self, length: float, most: int, seconds: float, longest: int | None = None) -> int:
        """Return how many rows of a length run in so many seconds: one of `ROWS`, `most` at most.

        By the time that a token has taken on the average; before anything has run it is 8.
        """
        allowed = [rows for rows in ROWS if rows <= most] or [most]
        if not self._x:
            return min(8, allowed[-1])
        each = length_bucket(max(1, round(length)), longest) * self._y / self._x
        return max((rows for rows in allowed if rows * each <= seconds), default=allowed[0])

    def note(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens, padding included, took so long."""
        keep = self._KEEP
        self._n = self._n * keep + 1
        self._x = self._x * keep + tokens
        self._y = self._y * keep + seconds
        self._xx = self._xx * keep + tokens * tokens
        self._xy = self._xy * keep + tokens * seconds
        spread = self._n * self._xx - self._x * self._x
        # With fewer than eight batches, or all of one size, there is no line yet.
        if self._n < 8 or spread < 0.05 * self._n * self._xx:
            return
        slope = (self._n * self._xy - self._x * self._y) / spread
        base = (self._y - slope * self._x) / self._n
        if slope > 0:
            self.tokens = min(max(base / slope, self._LEAST), self._MOST)


def plan(
    lengths: Sequence[float],
    launch: float,
    most_rows: int = ROWS[-1],
    longest: int | None = None,
    *,
    rows: Sequence[int] | None = None,
    rounds: bool = True,
) -> list[list[int]]:
    """Split requests into batches: lists of positions, each batch sorted, the shortest first.

    lengths: of the requests, in tokens. launch: what a launch costs, in tokens. rows: of each
    request, one by default; one of more than `most_rows` is a batch by itself. rounds: whether
    batches are filled up to the buckets. The split with the least cost, padding included.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    wide = [lengths[at] for at in order]
    if rounds:
        wide = [length_bucket(max(1, round(length)), longest) for length in wide]
    upto = list(itertools.accumulate((1 if rows is None else rows[at] for at in order), initial=0))
    # best[n]: the least cost of the n shortest, and where their last batch begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(order) + 1):
        found = (math.inf, end - 1)
        for begin in range(end - 1, -1, -1):
            count = upto[end] - upto[begin]
            if count > most_rows and begin < end - 1:
                break
            filled = row_bucket(count, most_rows) if rounds else count
            found = min(found, (best[begin][0] + launch + filled * wide[end - 1], begin))
        best.append(found)
    batches = []
    end = len(order)
    while end:
        begin = best[end][1]
        batches.append(order[begin:end])
        end = begin
    return batches[::-1]


__all__ = ["LENGTHS", "ROWS", "LaunchCost", "length_bucket", "plan", "row_bucket"]
