"""A unified diff, applied strictly.

``patch(1)`` moves and bends a hunk until it fits. Here a hunk fits only where its
old lines stand exactly as written and nowhere else, so a diff is applied as it
was meant or not at all. Line numbers in the diff are not used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")


class DiffDoesNotFit(ValueError):
    """A hunk's old lines are missing, or stand in more than one place."""


@dataclass(frozen=True)
class Hunk:
    """Old lines and the new lines that take their place, context included."""

    old: tuple[str, ...]
    new: tuple[str, ...]

    def reversed(self) -> Hunk:
        """The hunk that undoes this one."""
        return Hunk(self.new, self.old)


def parse(diff: str) -> list[Hunk]:
    """Read the hunks of a unified diff of one file; text before them is skipped.

    Raises ValueError if a hunk is shorter or longer than its heading says.
    """
    hunks: list[Hunk] = []
    lines = diff.splitlines(keepends=True)
    i = 0
    while i < len(lines):
        heading = _HUNK.match(lines[i])
        i += 1
        if heading is None:
            if hunks:
                raise ValueError(f"line {i} of the diff belongs to no hunk: {lines[i - 1]!r}")
            continue
        old_left, new_left = (1 if n is None else int(n) for n in heading.groups())
        old: list[str] = []
        new: list[str] = []
        while old_left > 0 or new_left > 0:
            if i == len(lines) or lines[i][0] not in " -+":
                raise ValueError(f"the hunk ends too early, before line {i + 1} of the diff")
            mark, text = lines[i][0], lines[i][1:]
            if mark in " -":
                old.append(text)
                old_left -= 1
            if mark in " +":
                new.append(text)
                new_left -= 1
            i += 1
        if old_left < 0 or new_left < 0:
            raise ValueError(f"the hunk that ends at line {i} of the diff is too long")
        hunks.append(Hunk(tuple(old), tuple(new)))
    if not hunks:
        raise ValueError("the diff has no hunks")
    return hunks


def apply(hunks: Sequence[Hunk], text: str) -> str:
    """Return `text` with every hunk applied, or raise DiffDoesNotFit."""
    lines = text.splitlines(keepends=True)
    start = 0
    for hunk in hunks:
        size = len(hunk.old)
        places = [
            at
            for at in range(start, len(lines) - size + 1)
            if tuple(lines[at : at + size]) == hunk.old
        ]
        if len(places) != 1:
            raise DiffDoesNotFit(f"a hunk fits {len(places)} places, and must fit exactly one")
        at = places[0]
        lines[at : at + size] = hunk.new
        start = at + len(hunk.new)
    return "".join(lines)


def revert(hunks: Sequence[Hunk], text: str) -> str:
    """Return `text` with every hunk undone, or raise DiffDoesNotFit."""
    return apply([hunk.reversed() for hunk in hunks], text)
