"""Which hazards of PyTorch's mps device apply to which version, as far as is known.

Read in the macOS wheels of 2.13.0 to 2.15.0 and in public issues; not run on a Mac by us.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["applies", "fixed", "masked", "differs"]


@dataclass(frozen=True)
class Hazard:
    """Something that goes wrong on a version of PyTorch. `cure`: what to do about it."""

    name: str
    what: str
    cure: str
    verdict: Callable[[tuple[int, int]], Verdict]
    source: str


def _below(*fixed: int) -> Callable[[tuple[int, int]], Verdict]:
    return lambda at: "applies" if at < fixed else "fixed"


def _always(at: tuple[int, int]) -> Verdict:
    return "applies"


HAZARDS = (
    Hazard(
        "two-threads-abort",
        "two threads that use the device abort the process, or crash in caches without a lock",
        "use the device through its worker: onelane.install() or onelane.guard()",
        _below(2, 15),
        "pytorch#197805, #167541; fixed in the 2.15 wheel",
    ),
    Hazard(
        "transposed-matmul",
        "a product of a transposed view is silently wrong, with one thread, too",
        "update PyTorch to 2.14 or later, or call .contiguous() on transposed operands",
        lambda at: "fixed" if at < (2, 7) else "applies" if at < (2, 14) else "masked",
        "pytorch#193487; masked from 2.14 on",
    ),
    Hazard(
        "memory-per-shape",
        "reserved memory is the sum over all input shapes",
        "round lengths and rows up: onelane.install(), or onelane.Tensors(pad=onelane.Pad(...))",
        lambda at: "applies" if at < (2, 14) else "differs",
        "pytorch#188045; from 2.14 on heaps split and coalesce (#190438)",
    ),
    Hazard(
        "graphs-per-shape",
        "a compiled graph is kept for each input shape, without a bound",
        "as above; onelane.hygiene() gives them back, on PyTorch 2.13 and later",
        _always,
        "pytorch#132596",
    ),
    Hazard(
        "empty-cache-keeps-graphs",
        "empty_cache() does not give compiled graphs back",
        "update PyTorch to 2.13 or later",
        _below(2, 13),
        "read in the wheels",
    ),
    Hazard(
        "freed-memory-crosses-streams",
        "freed memory goes to another stream while a command still reads it: wrong numbers with "
        "more than one stream",
        "keep to one stream (the default), or use PyTorch 2.14 or later",
        _below(2, 14),
        "pytorch#190375",
    ),
    Hazard(
        "asynchronous-loading",
        "transformers loads weights in threads of its own",
        "set HF_DEACTIVATE_ASYNC_LOAD=1; onelane.install() and guard() do",
        _always,
        "transformers",
    ),
    Hazard(
        "shared-tokenizers",
        "threads that share a fast tokenizer get each other's padding, without an exception; on "
        "every device",
        "onelane.install() gives each a lock; else a tokenizer for each thread",
        _always,
        "measured here",
    ),
    Hazard(
        "autorelease",
        "a long-lived thread without an autorelease pool keeps what Objective-C releases later",
        "onelane's workers have a pool around each batch and call",
        _always,
        "candle#2271",
    ),
    Hazard(
        "functions-off-the-worker",
        "torch.mps.synchronize() and its like from a thread that does not own the device",
        "device.call(torch.mps.synchronize); onelane.audit() finds such calls",
        _always,
        "pytorch#197805",
    ),
)


def numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


__all__ = ["HAZARDS", "Hazard", "Verdict", "numbers"]
