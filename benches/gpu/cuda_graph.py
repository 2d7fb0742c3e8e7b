#!/usr/bin/env python3
"""A race on real hardware: a CUDA graph with static buffers, replayed by many threads.

    python3 benches/gpu/cuda_graph.py [--threads 8] [--iterations 30] [--json]

A captured CUDA graph reads and writes the same memory each time. Whoever replays it copies an
input in, replays, and copies the output out; when two threads do so at once, one gets the other's
numbers.
The same engine is called in three ways: directly by all threads, through `onelane.executor`, and
through `onelane.BatchQueue`. An iteration passes when every thread's output is within 1e-3 of the
one computed alone.

Exit codes: 0 when both ways through onelane pass every iteration; 1 when not; 2 without CUDA.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable

import torch

import onelane

ROWS, WIDTH = 64, 512
TOLERANCE = 1e-3


class GraphEngine:
    """A three-layer MLP, captured once as a CUDA graph over static buffers."""

    def __init__(self) -> None:
        torch.manual_seed(42)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 1024),
            torch.nn.ReLU(),
            torch.nn.Linear(1024, 1024),
            torch.nn.ReLU(),
            torch.nn.Linear(1024, WIDTH),
        ).to("cuda")
        self.input = torch.zeros(ROWS, WIDTH, device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):
                self.model(self.input)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.output = self.model(self.input)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(64, 512) on the host in, (64, 512) on the host out."""
        self.input.copy_(x, non_blocking=True)
        self.graph.replay()
        return self.output.clone().cpu()


def run(ask: Callable[[torch.Tensor], torch.Tensor], threads: int, iterations: int) -> dict:
    """Ask from all threads at once, again and again; count the iterations that are right."""
    inputs = [
        [
            torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(i * 1000 + t))
            for t in range(threads)
        ]
        for i in range(iterations)
    ]
    expected = [[ask(x) for x in row] for row in inputs]
    barrier = threading.Barrier(threads)
    differences = [[0.0] * threads for _ in range(iterations)]

    def client(thread: int) -> None:
        for i in range(iterations):
            barrier.wait(timeout=60)
            try:
                got = ask(inputs[i][thread])
                differences[i][thread] = (got - expected[i][thread]).abs().max().item()
            except Exception as error:
                print(f"thread {thread}: {error}", file=sys.stderr)
                differences[i][thread] = float("inf")

    crew = [threading.Thread(target=client, args=(t,)) for t in range(threads)]
    for member in crew:
        member.start()
    for member in crew:
        member.join()
    passed = sum(all(d <= TOLERANCE for d in row) for row in differences)
    return {"passed": passed, "of": iterations, "max_diff": max(map(max, differences))}


def main() -> int:
    """Run the three ways and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("this needs a CUDA device", file=sys.stderr)
        return 2
    results = {}
    results["directly"] = run(GraphEngine(), args.threads, args.iterations)
    device = onelane.executor("cuda")
    engine = device.call(GraphEngine)
    results["executor"] = run(lambda x: device.call(engine, x), args.threads, args.iterations)
    with onelane.BatchQueue(GraphEngine, "cuda", requests=onelane.Each(), factory=True) as queue:
        results["batch queue"] = run(queue, args.threads, args.iterations)
    where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.threads} threads"
    if args.json:
        print(json.dumps({"device": where, "results": results}))
    else:
        print(where)
        for way, result in results.items():
            print(
                f"{way:12} {result['passed']:3} of {result['of']} pass, "
                f"max difference {result['max_diff']:.3g}"
            )
    safe = [results["executor"], results["batch queue"]]
    return 0 if all(r["passed"] == r["of"] for r in safe) else 1


if __name__ == "__main__":
    sys.exit(main())
