#!/usr/bin/env python3
"""What a shared PyTorch model gives to many clients: onelane beside what people write by hand.

    python3 benches/peers/throughput.py [--device cpu] [--model mlp] [--clients 1,8,64]
        [--fronts threads,groups,tasks] [--seconds 1] [--runs 3] [--json]

One seeded fp32 model, one row of 512 numbers a request, host tensor in and out. Closed loop: each
client asks, waits, asks again. Three fronts:

    threads     a client is a thread that asks for one response at a time (`queue(x)`)
    groups      a client is a thread that hands in 64 requests and waits for all (`submit_many`)
    tasks       a client is a task of one asyncio event loop (`await queue.infer(x)`)

Strategies:

    direct      every client calls the model
    lock        threading.Lock around the model; tasks go through asyncio.to_thread
    pool        ThreadPoolExecutor(max_workers=1)
    handwritten a queue and one consumer: takes what waits (up to 256), torch.cat, split, futures
    batched     the package `batched`, where it is installed
    onelane     onelane.BatchQueue, max_batch_size=256
    onelane-views  the same, Tensors(copy=False): responses are views, as those of `handwritten`
    onelane-graphs, onelane-graphs-views  these, Tensors(cuda_graphs=True); on CUDA only
    offline     the limit: one thread, whole batches of 64 and 256, no queue

All strategies take turns in one process, in another order each round. The figure to trust is the
ratio: onelane (each of its kinds) to the other in the same round, the median over all rounds.
Models: `mlp` is 512-1024-1024-512, `linear` is 512-512, `identity` is no work at all, so that only
the queue counts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch

import onelane

WIDTH, LIMIT, GROUP = 512, 256, 64
Tensor = torch.Tensor


class Model(torch.nn.Module):
    """The same weights each time; inference mode is entered once a call, in all strategies."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(42)
        sizes = {"mlp": (WIDTH, 1024, 1024, WIDTH), "linear": (WIDTH, WIDTH), "identity": ()}[name]
        layers: list[torch.nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        self.layers = torch.nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.layers(x)


class Direct:
    """Every client calls the model."""

    def __init__(self, model: str, device: str) -> None:
        self.device = device
        self.model = Model(model).to(device).eval()

    def compute(self, x: Tensor) -> Tensor:
        """Rows in, rows out."""
        return self.model(x.to(self.device)).cpu()

    def ask(self, x: Tensor) -> Tensor:
        """One response."""
        return self.compute(x)

    def ask_many(self, xs: list[Tensor]) -> list[Tensor]:
        """Many responses."""
        return [self.ask(x) for x in xs]

    async def ask_async(self, x: Tensor) -> Tensor:
        """One response, for a task."""
        return await asyncio.to_thread(self.ask, x)

    def close(self) -> None:
        """End what was started."""


class Lock(Direct):
    """A lock around the model."""

    def __init__(self, model: str, device: str) -> None:
        super().__init__(model, device)
        self.lock = threading.Lock()

    def ask(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.compute(x)


class Pool(Direct):
    """A thread pool of one."""

    def __init__(self, model: str, device: str) -> None:
        super().__init__(model, device)
        self.pool = ThreadPoolExecutor(max_workers=1)

    def ask(self, x: Tensor) -> Tensor:
        return self.pool.submit(self.compute, x).result()

    def ask_many(self, xs: list[Tensor]) -> list[Tensor]:
        return [future.result() for future in [self.pool.submit(self.compute, x) for x in xs]]

    async def ask_async(self, x: Tensor) -> Tensor:
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.compute, x)

    def close(self) -> None:
        self.pool.shutdown()


class Handwritten(Direct):
    """What people write: a queue, a thread that takes what waits, cat, split, futures."""

    def __init__(self, model: str, device: str) -> None:
        super().__init__(model, device)
        self.waiting: queue.Queue[Any] = queue.Queue()
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()
        self.tasks_waiting: asyncio.Queue[Any] | None = None

    def loop(self) -> None:
        """The consumer."""
        while (first := self.waiting.get()) is not None:
            batch = [first]
            with suppress(queue.Empty):
                while len(batch) < LIMIT:
                    item = self.waiting.get_nowait()
                    if item is None:
                        return
                    batch.append(item)
            rows = self.compute(torch.cat([x for x, _ in batch]))
            for (_, future), row in zip(batch, rows.split(1), strict=True):
                future.set_result(row)

    def put(self, x: Tensor) -> Future[Tensor]:
        """Hand in one request."""
        future: Future[Tensor] = Future()
        self.waiting.put((x, future))
        return future

    def ask(self, x: Tensor) -> Tensor:
        return self.put(x).result()

    def ask_many(self, xs: list[Tensor]) -> list[Tensor]:
        return [future.result() for future in [self.put(x) for x in xs]]

    async def task_loop(self, waiting: asyncio.Queue[Any]) -> None:
        """The consumer of an event loop: the model runs in a thread, so that the loop goes on."""
        while True:
            batch = [await waiting.get()]
            while len(batch) < LIMIT and not waiting.empty():
                batch.append(waiting.get_nowait())
            rows = await asyncio.to_thread(self.compute, torch.cat([x for x, _ in batch]))
            for (_, future), row in zip(batch, rows.split(1), strict=True):
                future.set_result(row)

    async def ask_async(self, x: Tensor) -> Tensor:
        if self.tasks_waiting is None:
            self.tasks_waiting = asyncio.Queue()
            self.consumer = asyncio.create_task(self.task_loop(self.tasks_waiting))
        future = asyncio.get_running_loop().create_future()
        self.tasks_waiting.put_nowait((x, future))
        return await future

    def close(self) -> None:
        self.waiting.put(None)
        self.thread.join()


class Batched(Direct):
    """The package `batched`."""

    def __init__(self, model: str, device: str) -> None:
        super().__init__(model, device)
        import batched
        import batched.aio

        def rows(parts: list[Tensor]) -> list[Tensor]:
            return list(self.compute(torch.stack(parts)))

        self.threads = batched.dynamically(rows, batch_size=LIMIT, timeout_ms=0.0)
        self.tasks = batched.aio.dynamically(rows, batch_size=LIMIT, timeout_ms=0.0)

    def ask(self, x: Tensor) -> Tensor:
        return self.threads(x[0])[None]

    def ask_many(self, xs: list[Tensor]) -> list[Tensor]:
        return [y[None] for y in self.threads([x[0] for x in xs])]

    async def ask_async(self, x: Tensor) -> Tensor:
        return (await self.tasks(x[0]))[None]


class Onelane:
    """The batch queue."""

    copy = True
    cuda_graphs = False

    def __init__(self, model: str, device: str) -> None:
        self.queue = onelane.BatchQueue(
            Model(model).eval(),
            device,
            onelane.Tensors(copy=self.copy, cuda_graphs=self.cuda_graphs),
            max_batch_size=LIMIT,
        )
        self.ask = self.queue
        self.ask_async = self.queue.infer

    def ask_many(self, xs: list[Tensor]) -> list[Tensor]:
        """Many responses."""
        return [future.result() for future in self.queue.submit_many(xs)]

    def close(self) -> None:
        """Close the queue."""
        self.batch = self.queue.stats().batch_size.mean
        self.queue.close()


class OnelaneViews(Onelane):
    """The batch queue, whose responses are views of one copy."""

    copy = False


class OnelaneGraphs(Onelane):
    """The batch queue, which records what the model does."""

    cuda_graphs = True


class OnelaneGraphsViews(OnelaneGraphs):
    """Both."""

    copy = False


STRATEGIES: dict[str, Callable[[str, str], Any]] = {
    "direct": Direct,
    "lock": Lock,
    "pool": Pool,
    "handwritten": Handwritten,
    "batched": Batched,
    "onelane": Onelane,
    "onelane-views": OnelaneViews,
    "onelane-graphs": OnelaneGraphs,
    "onelane-graphs-views": OnelaneGraphsViews,
}
# Those that only CUDA has.
GRAPHS = ("onelane-graphs", "onelane-graphs-views")
# Those that are compared to all others.
OURS = ("onelane", "onelane-views", *GRAPHS)


def check(y: Tensor, expected: Tensor) -> None:
    """Every client's last answer is looked at."""
    assert torch.allclose(y, expected, atol=1e-3), "a wrong answer"


def by_threads(strategy: Any, clients: int, seconds: float, group: int) -> float:
    """Requests per second that threads get; `group` requests at a time, or one."""
    x = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = strategy.ask(x)
    stop = threading.Event()
    counts = [0] * clients
    barrier = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        barrier.wait()
        ask, done = strategy.ask, 1
        y = ask(x)
        while not stop.is_set():
            y = ask(x)
            done += 1
        counts[number] = done
        check(y, expected)

    def group_client(number: int) -> None:
        xs = [x] * group
        barrier.wait()
        ys, done = strategy.ask_many(xs), group
        while not stop.is_set():
            ys = strategy.ask_many(xs)
            done += group
        counts[number] = done
        for y in ys:
            check(y, expected)

    crew = [
        threading.Thread(target=group_client if group > 1 else client, args=(n,))
        for n in range(clients)
    ]
    for member in crew:
        member.start()
    barrier.wait()
    started = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    for member in crew:
        member.join()
    return sum(counts) / (time.perf_counter() - started)


def by_tasks(strategy: Any, clients: int, seconds: float) -> float:
    """Requests per second that the tasks of one event loop get."""
    x = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))

    async def client(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            y = await strategy.ask_async(x)
            done += 1
        check(y, expected)
        return done

    async def run() -> float:
        started = time.perf_counter()
        counts = await asyncio.gather(*(client(started + seconds) for _ in range(clients)))
        rate = sum(counts) / (time.perf_counter() - started)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return rate

    expected = strategy.ask(x)
    return asyncio.run(run())


FRONTS: dict[str, Callable[[Any, int, float], float]] = {
    "threads": lambda strategy, n, s: by_threads(strategy, n, s, 1),
    "groups": lambda strategy, n, s: by_threads(strategy, n, s, GROUP),
    "tasks": by_tasks,
}


def offline(model: str, device: str, rows: int, seconds: float) -> float:
    """Rows per second in whole batches from one thread: the limit."""
    ask = Direct(model, device).ask
    x = torch.randn(rows, WIDTH)
    for _ in range(3):
        ask(x)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        ask(x)
        done += rows
    return done / (time.perf_counter() - started)


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of an argument that names some of `known`, with commas between."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            wrong = f"unknown: {', '.join(unknown)}" if unknown else "names nothing"
            raise argparse.ArgumentTypeError(f"{wrong}; use some of {','.join(known)}")
        return names

    return parse


def counts(text: str) -> list[int]:
    """The type of an argument that is some numbers of clients, with commas between."""
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers from 1 on, as in 1,8,64")
    return [int(part) for part in text.split(",")]


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """All rates, by front and clients, then by strategy, one a round."""
    table: dict[str, dict[str, list[float]]] = {}
    names = list(args.strategies)
    if not args.device.startswith("cuda"):
        names = [name for name in names if name not in GRAPHS]
    for name in list(names):
        if name == "batched":
            try:
                import batched  # noqa: F401
            except ImportError:
                print("the package `batched` is not installed: left out", file=sys.stderr)
                names.remove(name)
    for turn in range(args.runs):
        for front in args.fronts:
            for clients in args.clients:
                row = table.setdefault(f"{front} {clients}", {})
                for at in range(len(names)):
                    name = names[(at + turn) % len(names)]
                    strategy = STRATEGIES[name](args.model, args.device)
                    rate = FRONTS[front](strategy, clients, args.seconds)
                    strategy.close()
                    row.setdefault(name, []).append(rate)
                    if name == "onelane":
                        row.setdefault("(batch)", []).append(strategy.batch)
        for rows in (64, 256):
            row = table.setdefault(f"offline {rows}", {})
            rate = offline(args.model, args.device, rows, args.seconds / 2)
            row.setdefault("offline", []).append(rate)
    return table


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="mlp", choices=("mlp", "linear", "identity"))
    parser.add_argument(
        "--clients", "--threads", type=counts, default="1,8,64", help="numbers of clients"
    )
    parser.add_argument("--fronts", type=names_of(FRONTS), default=",".join(FRONTS))
    parser.add_argument("--strategies", type=names_of(STRATEGIES), default=",".join(STRATEGIES))
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--torch-threads", type=int, default=0, help="0: as PyTorch has it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    table = measure(args)
    medians = {
        at: {name: statistics.median(rates) for name, rates in row.items()}
        for at, row in table.items()
    }
    ratios = {
        ours: {
            at: {
                name: statistics.median(a / b for a, b in zip(row[ours], rates, strict=True))
                for name, rates in row.items()
                if name not in (ours, "(batch)")
            }
            for at, row in table.items()
            if ours in row
        }
        for ours in OURS
    }
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    if args.json:
        about = {"device": where, "model": args.model, "torch": torch.__version__}
        compared = {f"{ours}_to": by_place for ours, by_place in ratios.items()}
        print(json.dumps({**about, "req_per_s": medians, **compared}))
        return 0
    print(f"{where}, {args.model}, torch {torch.__version__}, requests/s, median of {args.runs}")
    for at, row in medians.items():
        print(f"{at:12}", "  ".join(f"{name} {rate:,.0f}" for name, rate in row.items()))
        for ours in OURS:
            if at in ratios[ours]:
                text = "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios[ours][at].items())
                print(f"{'':12} {ours} to: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
