"""The function that patch 035 changes: its known texts, and their patched form.

The patch file in this folder is the only place where the change is written down.
Which texts it may be applied to is a table of hashes here: a function that is not
in the table, patched or not, is `State.UNKNOWN` and is never touched.
"""

from __future__ import annotations

import ast
import enum
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from onelane.patch035 import unified_diff
from onelane.patch035.unified_diff import Hunk

FUNCTION = "_in_projection_packed"
PATCH_FILE = Path(__file__).with_name("035-mps-in-projection-packed-mps-parallel.patch")

# SHA-256 of the whole text of the function, read from the Linux wheels of these
# releases. The three differ in a type annotation and in comments for a type checker.
KNOWN_TEXTS = {
    "1cdfe30d622629daf4b951506c939e2fd80351194055335074c358bd40ae8bce": "2.9",
    "b782615876f7534c409b4354503e92819bd3e466ec778ec1b3132b4733345d7f": "2.10 and 2.11",
    "1d4e5f79ec9903bfb784bb48d384a1b4826adfae9d5b24fdb17d6590b6044551": "2.12 to 2.15",
}
KNOWN_SERIES = ("2.9", "2.10", "2.11", "2.12", "2.13", "2.14", "2.15")


class State(enum.Enum):
    """How a text of the function stands to patch 035."""

    UNPATCHED = "unpatched"
    PATCHED = "patched"
    UNKNOWN = "unknown"


@functools.cache
def hunks() -> Sequence[Hunk]:
    """The hunks of the shipped patch file."""
    return tuple(unified_diff.parse(PATCH_FILE.read_text(encoding="utf-8")))


def state_of(function: str) -> State:
    """Say whether a text of the function is a known one, a known one patched, or neither."""
    if _is_known(function):
        return State.UNPATCHED
    try:
        original = unified_diff.revert(hunks(), function)
    except unified_diff.DiffDoesNotFit:
        return State.UNKNOWN
    return State.PATCHED if _is_known(original) else State.UNKNOWN


def patched(function: str) -> str:
    """The patched form of an unpatched text of the function."""
    return unified_diff.apply(hunks(), function)


def unpatched(function: str) -> str:
    """The original form of a patched text of the function."""
    return unified_diff.revert(hunks(), function)


def is_known_version(version: str | None) -> bool:
    """Whether a PyTorch version, for example "2.15.0+cu130", is one that we looked at."""
    return version is not None and ".".join(version.split(".")[:2]) in KNOWN_SERIES


def find_function(module: str) -> slice | None:
    """Where the function stands in the text of torch/nn/functional.py, in characters.

    None if the text does not parse, or defines the function never or twice.
    """
    try:
        tree = ast.parse(module)
    except SyntaxError:
        return None
    found = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == FUNCTION
    ]
    if len(found) != 1 or found[0].end_lineno is None:
        return None
    lines = module.splitlines(keepends=True)
    begin = sum(map(len, lines[: found[0].lineno - 1]))
    return slice(begin, begin + sum(map(len, lines[found[0].lineno - 1 : found[0].end_lineno])))


def _is_known(function: str) -> bool:
    return hashlib.sha256(function.encode()).hexdigest() in KNOWN_TEXTS
