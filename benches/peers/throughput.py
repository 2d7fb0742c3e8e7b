#!/usr/bin/env python3
"""What a shared PyTorch model gives to many threads: onelane beside what people write by hand.

    python3 benches/peers/throughput.py [--device cpu] [--threads 1,8,64] [--seconds 2] [--runs 3]

One model (MLP 512-1024-1024-512, fp32, seeded), one row of 512 numbers a request, host tensor in
and out. Closed loop: each client thread asks, waits, asks again. Strategies, all in one run,
medians of several rounds:

    direct      every thread calls the model
    lock        threading.Lock around the model
    pool        ThreadPoolExecutor(max_workers=1)
    handwritten a thread with a queue: takes what waits (up to 256), torch.cat, split, Future
    batched     the package `batched`, where it is installed
    onelane     onelane.BatchQueue, max_batch_size=256
    offline     the limit: one thread, whole batches of 64 and 256, no queue
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch

import onelane

WIDTH, LIMIT = 512, 256
Ask = Callable[[torch.Tensor], torch.Tensor]


def make_model(device: str) -> torch.nn.Module:
    """The same weights each time, in evaluation mode."""
    torch.manual_seed(42)
    layers = [
        torch.nn.Linear(WIDTH, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, WIDTH),
    ]
    return torch.nn.Sequential(*layers).to(device).eval()


def direct(device: str) -> tuple[Ask, Callable[[], None]]:
    """Every thread calls the model."""
    model = make_model(device)

    def ask(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(x.to(device)).cpu()

    return ask, lambda: None


def lock(device: str) -> tuple[Ask, Callable[[], None]]:
    """A lock around the model."""
    call, _ = direct(device)
    guard = threading.Lock()

    def ask(x: torch.Tensor) -> torch.Tensor:
        with guard:
            return call(x)

    return ask, lambda: None


def pool(device: str) -> tuple[Ask, Callable[[], None]]:
    """A thread pool of one."""
    call, _ = direct(device)
    executor = ThreadPoolExecutor(max_workers=1)
    return lambda x: executor.submit(call, x).result(), executor.shutdown


def handwritten(device: str) -> tuple[Ask, Callable[[], None]]:
    """What people write: a queue, a thread that takes what waits, cat, split, futures."""
    call, _ = direct(device)
    waiting: queue.Queue[Any] = queue.Queue()

    def loop() -> None:
        while (first := waiting.get()) is not None:
            batch = [first]
            with suppress(queue.Empty):
                while len(batch) < LIMIT:
                    item = waiting.get_nowait()
                    if item is None:
                        return
                    batch.append(item)
            rows = call(torch.cat([x for x, _ in batch]))
            for (_, future), row in zip(batch, rows.split(1), strict=True):
                future.set_result(row)

    thread = threading.Thread(target=loop)
    thread.start()

    def ask(x: torch.Tensor) -> torch.Tensor:
        future: Future[torch.Tensor] = Future()
        waiting.put((x, future))
        return future.result()

    def stop() -> None:
        waiting.put(None)
        thread.join()

    return ask, stop


def batched_package(device: str) -> tuple[Ask, Callable[[], None]] | None:
    """The package `batched`; None where it is not installed."""
    try:
        import batched
    except ImportError:
        return None
    call, _ = direct(device)
    ask_one = batched.dynamically(
        lambda rows: list(call(torch.stack(rows))), batch_size=LIMIT, timeout_ms=0.0
    )
    return lambda x: ask_one(x[0])[None], lambda: None


def through_onelane(device: str) -> tuple[Ask, Callable[[], None]]:
    """The batch queue."""
    model = make_model("cpu")
    lane = onelane.BatchQueue(model, device, max_batch_size=LIMIT)

    def ask(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return lane(x)

    return ask, lane.shutdown


STRATEGIES = {
    "direct": direct,
    "lock": lock,
    "pool": pool,
    "handwritten": handwritten,
    "batched": batched_package,
    "onelane": through_onelane,
}


def closed_loop(ask: Ask, threads: int, seconds: float) -> float:
    """Requests per second that `threads` clients get."""
    x = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = ask(x)
    stop = threading.Event()
    counts = [0] * threads
    barrier = threading.Barrier(threads + 1)

    def client(number: int) -> None:
        barrier.wait()
        while not stop.is_set():
            y = ask(x)
            counts[number] += 1
        assert torch.allclose(y, expected, atol=1e-3), "a wrong answer"

    crew = [threading.Thread(target=client, args=(n,)) for n in range(threads)]
    for member in crew:
        member.start()
    barrier.wait()
    started = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    for member in crew:
        member.join()
    return sum(counts) / (time.perf_counter() - started)


def offline(device: str, rows: int, seconds: float) -> float:
    """Rows per second in whole batches from one thread: the limit."""
    ask, _ = direct(device)
    x = torch.randn(rows, WIDTH)
    for _ in range(3):
        ask(x)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        ask(x)
        done += rows
    return done / (time.perf_counter() - started)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    table: dict[str, dict[str, list[float]]] = {}
    counts = [int(n) for n in args.threads.split(",")]
    for _ in range(args.runs):
        for threads in counts:
            for name, make in STRATEGIES.items():
                made = make(args.device)
                if made is None:
                    continue
                ask, stop = made
                rate = closed_loop(ask, threads, args.seconds)
                stop()
                table.setdefault(name, {}).setdefault(str(threads), []).append(rate)
        for rows in (64, 256):
            rate = offline(args.device, rows, args.seconds)
            table.setdefault("offline", {}).setdefault(f"batch {rows}", []).append(rate)
    medians = {n: {k: statistics.median(v) for k, v in row.items()} for n, row in table.items()}
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    if args.json:
        print(json.dumps({"device": where, "torch": torch.__version__, "req_per_s": medians}))
        return 0
    print(f"{where}, torch {torch.__version__}, requests/s, median of {args.runs}")
    for name, row in medians.items():
        print(
            f"{name:12}",
            "  ".join(
                f"{k} threads {v:,.0f}" if k.isdigit() else f"{k} {v:,.0f}" for k, v in row.items()
            ),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
