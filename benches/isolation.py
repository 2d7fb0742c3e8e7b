#!/usr/bin/env python3
"""What an isolated worker costs, in pairs: the same queue in process and isolated, in turns.

    python benches/isolation.py [--rounds 7] [--torch]

Prints medians over the rounds, and the least and most of them. An engine that takes no time, one
caller: what a hop adds, with a small array, a plain tensor (`--torch`) and 1 MB there and back. An
engine of 1 ms a batch with 64 threads: throughput, isolated over in process. An engine that
computes on one thread: two isolated workers over one. An engine that grows by 40 MiB a batch, with
`max_memory` and a spare: the longest call, and how large the process got.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np

import onelane

sys.path.insert(0, str(Path(__file__).parent))
import isolation_models as models


def queues(model, **settings):
    """The same queue twice: in process, and isolated."""
    made = {"requests": onelane.Items(), "factory": False, **settings}
    inside = onelane.BatchQueue(model, onelane.DeviceExecutor("cpu"), **made)
    outside = onelane.BatchQueue(model, onelane.DeviceExecutor("cpu"), isolation="process", **made)
    return inside, outside


def close(*queues):
    for queue in queues:
        queue.close()
        queue.executor.shutdown()


def latency(queue, x, calls):
    """Median seconds of a call by one caller."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        queue(x)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def throughput(queue, threads, seconds):
    """Requests a second of so many callers."""
    stop, counts = threading.Event(), []

    def caller():
        count = 0
        while not stop.is_set():
            queue(1)
            count += 1
        counts.append(count)

    crew = [threading.Thread(target=caller) for _ in range(threads)]
    start = time.perf_counter()
    for member in crew:
        member.start()
    time.sleep(seconds)
    stop.set()
    for member in crew:
        member.join()
    return sum(counts) / (time.perf_counter() - start)


def say(what, values, unit, scale=1.0):
    low, middle, high = min(values), statistics.median(values), max(values)
    print(
        f"{what:58} {middle * scale:9.2f} {unit:4} [{low * scale:.2f}, {high * scale:.2f}]",
        flush=True,
    )


def added(what, model, x, rounds, calls, **settings):
    inside, outside = queues(model, **settings)
    for queue in (inside, outside):
        latency(queue, x, calls)
    pairs = [(latency(inside, x, calls), latency(outside, x, calls)) for _ in range(rounds)]
    say(f"{what}: in process", [a for a, _ in pairs], "us", 1e6)
    say(f"{what}: added by isolation", [b - a for a, b in pairs], "us", 1e6)
    close(inside, outside)


def copies(rounds):
    """Seconds of the bare copies of 1 MB there and back."""
    a, b, times = np.ones(262144, "f4"), np.empty(262144, "f4"), []
    for _ in range(rounds * 50):
        start = time.perf_counter()
        b[:] = a
        a[:] = b
        times.append(time.perf_counter() - start)
    return times


def growing(calls):
    """What replacing a worker that grows costs the one who calls."""
    isolation = onelane.Isolation(max_memory="600MiB", spare=True)
    device = onelane.DeviceExecutor("cpu")
    queue = onelane.BatchQueue(
        models.grows, device, onelane.Items(), factory=False, isolation=isolation
    )
    times = []
    for number in range(calls):
        start = time.perf_counter()
        assert queue(number) == number
        times.append(time.perf_counter() - start)
    found = queue.stats().isolation
    say("grows 40 MiB a batch: a call", times, "ms", 1e3)
    print(
        f"    {found.recycled_for_memory} workers replaced, the largest had "
        f"{found.max_footprint / 2**20:.0f} MiB; slowest calls in ms: "
        f"{[round(one * 1e3, 1) for one in sorted(times)[-5:]]}",
        flush=True,
    )
    close(queue)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", action="store_true", help="also a plain tensor")
    args = parser.parse_args()
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}, Python {sys.version.split()[0]}")
    identity = models.identity
    added("an array of 64 bytes, one caller", identity, np.zeros(16, "f4"), args.rounds, 500)
    added("1 MB of float32, one caller", identity, np.zeros(262144, "f4"), args.rounds, 100)
    say("two copies of 1 MB", copies(args.rounds), "us", 1e6)
    if args.torch:
        import torch

        x = torch.zeros(1, 16)
        added("a tensor, one caller", identity, x, args.rounds, 500, requests=onelane.Tensors())
    inside, outside = queues(models.waits, max_batch_size=64)
    ratios = []
    for _ in range(args.rounds):
        one = throughput(inside, 64, 1.0)
        ratios.append(throughput(outside, 64, 1.0) / one)
    say("1 ms a batch, 64 threads: isolated over in process", ratios, "x")
    close(inside, outside)
    homes = [onelane.DeviceExecutor("cpu", workers=n, isolation="process") for n in (1, 2)]
    one, two = (
        onelane.BatchQueue(models.burns, home, onelane.Items(), max_batch_size=1, factory=False)
        for home in homes
    )
    ratios = []
    for _ in range(args.rounds):
        single = throughput(one, 8, 2.0)
        ratios.append(throughput(two, 8, 2.0) / single)
    say("computing on one thread: two isolated workers over one", ratios, "x")
    close(one, two)
    growing(200)


if __name__ == "__main__":
    main()
