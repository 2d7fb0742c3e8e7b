#!/usr/bin/env python3
"""Whether memory stays flat over many requests through each front of the Python package.

    HF_HUB_OFFLINE=1 python3 benches/flat.py [--requests 100000] [--only NAME ...] [--json]

Each front in a process of its own: a tenth of the requests first, to warm up, then the others; the
resident set after the tenth, in the middle, and at the end. Exit 0: none has grown by more than 2%
and 4 MiB from the tenth to the end; 1: one has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_LIMIT_S = 1200
_AT_ONCE = 64


class Object:
    """What is guarded."""

    def encode(self, texts):
        return [text.upper() for text in texts]

    def one(self, x):
        return x + 1

    def stream(self, count):
        yield from range(count)


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096
    from onelane import _memory

    return _memory.footprint() or 0


def _on_threads(ask: Callable[[int], object]) -> Callable[[int], None]:
    def run(count: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda at: [ask(i) for i in range(at, count, 8)] and None, range(8)))

    return run


def _futures(submit: Callable[[int], object]) -> Callable[[int], None]:
    def run(count: int) -> None:
        waiting: deque = deque()
        for at in range(count):
            waiting.append(submit(at))
            if len(waiting) == _AT_ONCE:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()

    return run


def _tasks(ask: Callable[[int], object]) -> Callable[[int], None]:
    async def all_of(count: int) -> None:
        left = iter(range(count))

        async def client() -> None:
            for at in left:
                await ask(at)

        await asyncio.gather(*(client() for _ in range(_AT_ONCE)))

    return lambda count: asyncio.run(all_of(count))


def fronts() -> dict[str, Callable[[int], None]]:
    """Return what makes so many requests through each front, by name."""
    import torch

    import onelane

    device = onelane.DeviceExecutor("cpu")
    queue = onelane.BatchQueue(torch.nn.Linear(8, 8).eval(), device)
    items = onelane.BatchQueue(list, device, onelane.Items(), factory=False)
    guarded = onelane.guard(Object, device, batch={"encode": 32})
    guarded.encode("learn")
    x = torch.ones(1, 8)

    def many(count: int) -> None:
        for _ in range(count // _AT_ONCE):
            for future in queue.submit_many([x] * _AT_ONCE):
                future.result()

    def mapped(count: int) -> None:
        for _ in queue.map(x for _ in range(count)):
            pass

    def streamed(count: int) -> None:
        for _ in range(count // 10):
            for _ in guarded.stream(9):
                pass

    async def from_task(at: int) -> object:
        return await guarded.encode.acall(f"text {at}")

    return {
        "queue(x)": _on_threads(lambda at: queue(x)),
        "queue.submit": _futures(lambda at: queue.submit(x)),
        "queue.submit_many": many,
        "queue.map": mapped,
        "queue.infer": _tasks(lambda at: queue.infer(x)),
        "queue(item)": _on_threads(items),
        "device.call": _on_threads(lambda at: device.call(abs, at)),
        "device.submit": _futures(lambda at: device.submit(abs, at)),
        "device.acall": _tasks(lambda at: device.acall(abs, at)),
        "guarded call": _on_threads(guarded.one),
        "guarded acall": _tasks(guarded.one.acall),
        "batched call": _on_threads(lambda at: guarded.encode(f"text {at}")),
        "batched acall": _tasks(from_task),
        "stream": streamed,
    }


def measure(name: str, requests: int) -> dict[str, float]:
    """Measure one front, in this process."""
    run = fronts()[name]
    # In parts of one size, so that what is allowed to wait is the same.
    part, seen, began = requests // 10, [], time.perf_counter()
    for _ in range(10):
        run(part)
        seen.append(resident())
    return {
        "requests": requests,
        "after a tenth": seen[0],
        "in the middle": seen[4],
        "at the end": seen[-1],
        "seconds": time.perf_counter() - began,
    }


def is_flat(figures: dict[str, float]) -> bool:
    """Whether a front's memory has stayed."""
    grown = figures["at the end"] - figures["after a tenth"]
    return grown <= max(0.02 * figures["after a tenth"], 4 << 20)


def main() -> int:
    """Measure all fronts, and print what each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--front", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.front:
        print(json.dumps(measure(options.front, options.requests)))
        return 0
    found = {}
    for name in options.only or fronts():
        command = [sys.executable, __file__, "--front", name, "--requests", str(options.requests)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=_LIMIT_S
        )
        found[name] = figures = json.loads(done.stdout.strip().splitlines()[-1])
        mib = [figures[at] / 2**20 for at in ("after a tenth", "in the middle", "at the end")]
        said = "flat" if is_flat(figures) else "GROWS"
        print(
            f"{name:<18} {mib[0]:7.1f} {mib[1]:7.1f} {mib[2]:7.1f} MiB  {figures['seconds']:6.1f} s"
            f"  {said}",
            file=sys.stderr if options.json else sys.stdout,
            flush=True,
        )
    if options.json:
        print(json.dumps(found))
    return 0 if all(map(is_flat, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
