"""The checks: what each runs, what is expected of which PyTorch, and what would refute us.

INVARIANT: a judgement looks at what a child observed and nothing else, so that each can be tested
with an observation that refutes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["as expected", "refuted", "unclear", "not run"]


@dataclass(frozen=True)
class Observed:
    """What a child did. `end`: "clean", "abort" (signal or Apple's text), "hang", "error", or
    "not run" with the reason in `text`. figures: what the check measured.
    """

    end: str
    text: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """What a check runs on. `torch`: its version, on the simulated device the profile's."""

    torch: tuple[int, int]
    simulated: str | None = None

    def __str__(self) -> str:
        version = ".".join(map(str, self.torch))
        return f"{self.simulated} (simulated)" if self.simulated else f"torch {version}"


@dataclass(frozen=True)
class Check:
    """One claim. `profiles`: of the simulated device that it runs on; empty: only on a Mac."""

    name: str
    runs: str
    expected: str
    refuted_if: str
    judge: Callable[[Observed, Condition], Verdict]
    profiles: tuple[str, ...] = ()


PROFILE_VERSIONS = {
    "upstream-2.14": (2, 14),
    "upstream-2.15": (2, 15),
    "2.15-user-streams": (2, 15),
    "fork-2.9.1": (2, 9),
}
_STOCK = ("upstream-2.14", "upstream-2.15")


def _aborts_below_2_15(seen: Observed, on: Condition) -> Verdict:
    if seen.end not in ("clean", "abort", "hang"):
        return "unclear"
    ended = seen.end != "clean"
    return "as expected" if ended == (on.torch < (2, 15)) else "refuted"


def _may_abort_below_2_15(seen: Observed, on: Condition) -> Verdict:
    """A race: below 2.15 one clean run says nothing."""
    if seen.end == "clean":
        return "as expected" if on.torch >= (2, 15) else "unclear"
    if seen.end in ("abort", "hang"):
        return "refuted" if on.torch >= (2, 15) else "as expected"
    return "unclear"


def _clean(seen: Observed, on: Condition) -> Verdict:
    return "as expected" if seen.end == "clean" else "refuted"


def _passes(seen: Observed, on: Condition) -> Verdict:
    """All iterations of all cases pass."""
    cases = seen.figures.get("passed")
    if seen.end != "clean" or not cases:
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    return "as expected" if all(a == b for a, b in cases.values()) else "refuted"


def _ten_direct(seen: Observed, on: Condition) -> Verdict:
    if seen.end in ("abort", "hang"):
        return "refuted" if on.torch >= (2, 15) else "as expected"
    return _passes(seen, on)


def _fork(seen: Observed, on: Condition) -> Verdict:
    cases = seen.figures.get("passed", {})
    if seen.end != "clean" or not cases:
        return "unclear"
    kept, width = cases["projection kept"], cases["width 128"]
    loops = cases["patch 035 in loops"]
    met = kept[0] == kept[1] and width[0] == width[1] and loops[0] < loops[1]
    return "as expected" if met else "refuted"


def _matmul(seen: Observed, on: Condition) -> Verdict:
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    wrong = seen.figures["wrong"] > 0
    if on.torch >= (2, 14):
        return "refuted" if wrong else "as expected"
    # It depends on the allocator's state: right results say nothing.
    return "as expected" if wrong else "unclear"


def _shapes(seen: Observed, on: Condition) -> Verdict:
    figures = seen.figures
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    flat = figures["bucketed at the end"] <= 1.05 * figures["bucketed after 100"]
    rises = figures["plain at the end"] > 1.05 * figures["plain after 100"]
    if not flat:
        return "refuted"
    return "as expected" if rises else "unclear"


def _given_back(seen: Observed, on: Condition) -> Verdict:
    figures = seen.figures
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    grown = figures["full"] - figures["start"]
    if grown <= 0:
        return "unclear"
    if on.torch < (2, 13):
        return "as expected"
    return "as expected" if figures["full"] - figures["emptied"] >= 0.5 * grown else "refuted"


def _no_lines(seen: Observed, on: Condition) -> Verdict:
    if seen.end != "clean":
        return "unclear"
    return "as expected" if seen.figures["lines"] == 0 else "refuted"


def _isolation(seen: Observed, on: Condition) -> Verdict:
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    figures = seen.figures
    alone = figures["others right"] == figures["others"]
    said = (figures["abort"], figures["hang"]) == ("EngineCrashed", "EngineHung")
    return "as expected" if alone and said else "refuted"


def _recycled(seen: Observed, on: Condition) -> Verdict:
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    figures = seen.figures
    if figures["lost"]:
        return "refuted"
    flat = figures["most at the end"] <= 1.05 * figures["most in the first third"]
    return "as expected" if flat and figures["replaced"] >= 2 else "refuted"


def _pool(seen: Observed, on: Condition) -> Verdict:
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    ours, none = seen.figures["with our pool"], seen.figures["without"]
    if ours >= 2 << 20 and ours > none / 4:
        return "refuted"
    # A thread that leaves nothing behind shows nothing of a pool.
    return "as expected" if ours < 2 << 20 <= none / 4 else "unclear"


def _throughput(seen: Observed, on: Condition) -> Verdict:
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    ratio = seen.figures["queue"] / seen.figures["lock"]
    return "as expected" if ratio >= 2 else "refuted" if ratio < 1 else "unclear"


def _install(seen: Observed, on: Condition) -> Verdict:
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    figures = seen.figures
    fine = not figures["findings"] and figures["difference"] <= 1e-4 and figures["shapes"] <= 96
    fine = fine and figures["streamed"] in (None, "as alone")
    return "as expected" if fine else "refuted"


def _release(seen: Observed, on: Condition) -> Verdict:
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    figures = seen.figures
    grown = figures["after 20"] - figures["after 2"]
    return "as expected" if grown <= figures["one model"] else "refuted"


def _mlx(seen: Observed, on: Condition) -> Verdict:
    if seen.end != "clean":
        return "refuted" if seen.end in ("abort", "hang") else "unclear"
    return "as expected" if seen.figures["through the worker"] == "right" else "refuted"


CHECKS = (
    Check(
        "arange2", "two threads loop torch.arange(256, device='mps').cpu()",
        "aborts below 2.15, clean from 2.15 on", "2.14 is clean, or 2.15 aborts",
        _aborts_below_2_15, _STOCK,
    ),
    Check(
        "sync2", "two threads loop a product and torch.mps.synchronize()",
        "aborts or hangs below 2.15, clean from 2.15 on", "2.15 aborts", _may_abort_below_2_15,
        _STOCK,
    ),
    Check(
        "first-use", "four threads use fresh kernels at once",
        "may crash below 2.15, clean from 2.15 on", "2.15 crashes", _may_abort_below_2_15, _STOCK,
    ),
    Check(
        "arange-worker", "the three above, through one executor", "clean on every version",
        "any abort", _clean, _STOCK,
    ),
    Check(
        "ten-direct", "the ten tests, 8 threads, each on the device itself",
        "10 of 10 from 2.15 on; a crash is possible below", "wrong numbers on one stream, or a "
        "crash from 2.15 on", _ten_direct, _STOCK,
    ),
    Check(
        "ten-queue", "the ten tests, 8 threads, one worker", "10 of 10 on every version",
        "below 10, or an abort", _passes, _STOCK,
    ),
    Check(
        "user-streams", "the minimal race, MultiheadAttention and an encoder layer, a stream a "
        "thread, 30 times", "30 of 30 each, with PyTorch 2.14 or later",
        "one fails: the allocator is not the cause, or #190375 was misread", _passes,
        ("2.15-user-streams",),
    ),
    Check(
        "fork-only", "the fork: the race with its projection kept; with width 128; patch 035 in "
        "threads that loop", "30 of 30, 30 of 30, fails for some",
        "either of the first fails, or the last passes always", _fork, ("fork-2.9.1",),
    ),
    Check(
        "wrong-matmul", "products of transposed views after allocations of other sizes, one "
        "thread (in the way of pytorch#193487)", "right from 2.14 on; may be wrong below",
        "wrong from 2.14 on", _matmul, _STOCK,
    ),
    Check(
        "async-load", "from_pretrained(device_map='mps') ten times on the worker, with "
        "HF_DEACTIVATE_ASYNC_LOAD=1", "clean", "any crash", _clean,
    ),
    Check(
        "shapes", "300 batches of random lengths: as they are; and rounded to buckets",
        "memory rises; is flat after the first 100", "rounded, it rises by more than 5% in the "
        "last 200", _shapes, ("upstream-2.15",),
    ),
    Check(
        "graphs-vs-pool", "300 lengths, then empty_cache() on the worker",
        "memory falls near what it was at the start, from 2.13 on", "less than half comes back",
        _given_back, ("upstream-2.15",),
    ),
    Check(
        "shapes-recycled", "300 batches of random lengths in an isolated worker that is replaced "
        "after each 100", "its memory is never above that of the first 100; no request fails",
        "it rises by more than 5% beyond that, or a worker is lost", _recycled,
        ("upstream-2.15",),
    ),
    Check(
        "candle-pool", "50,000 objects left to the autorelease pool, as candle's products do, on a "
        "worker and on a thread without a pool", "less than 2 MB against some 23 MB",
        "the worker's memory rises alike", _pool,
    ),
    Check(
        "missing-pools", "2,000 products on a worker under OBJC_DEBUG_MISSING_POOLS=YES",
        "no line of Objective-C's", "any line", _no_lines,
    ),
    Check(
        "isolation", "an engine in a child process that aborts for one request of eight, and "
        "hangs for another", "these two alone fail, with EngineCrashed and EngineHung",
        "anything else", _isolation, ("upstream-2.15",),
    ),
    Check(
        "throughput", "single texts from 8 threads for 10 s each: under a lock, and through "
        "install()", "the queue answers at least twice as many", "the queue answers fewer",
        _throughput,
    ),
    Check(
        "install-E2E", "SentenceTransformer and CrossEncoder from 8 threads, and generate() with "
        "a streamer in a thread (on a Mac), under audit", "no abort, within 1e-4 of alone, the "
        "text of alone, no finding, at most 96 shapes", "any finding, or a difference", _install,
        _STOCK,
    ),
    Check(
        "release", "a model is loaded and dropped 20 times under install()",
        "memory on the device stays", "it grows by more than one model", _release,
        ("upstream-2.15",),
    ),
    Check(
        "mlx", "an MLX array that the worker made, used there and elsewhere",
        "right through the worker; an error elsewhere from 0.31.2 on", "wrong through the worker",
        _mlx,
    ),
)  # fmt: skip

BY_NAME = {check.name: check for check in CHECKS}

__all__ = ["BY_NAME", "CHECKS", "PROFILE_VERSIONS", "Check", "Condition", "Observed", "Verdict"]
