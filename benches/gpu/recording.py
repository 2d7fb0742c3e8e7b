#!/usr/bin/env python3
"""What recording a shape takes, and what replaying it brings to a client that calls alone.

    python3 benches/gpu/recording.py

A small fp32 model, host tensors in and out, on a CUDA device: milliseconds of the first call of
each number of rows, and of each of 200 calls after it, without and with `cuda_graphs=True`.
"""

from __future__ import annotations

import sys
import time

import torch

import onelane

ROWS = (2, 3, 4, 5, 8, 16, 32, 64, 128, 256)
CALLS = 200


def measure(cuda_graphs: bool) -> tuple[list[float], list[float]]:
    """The first call, and the mean of those after it, for each number of rows."""
    layers = [torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1024)]
    model = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(1024, 512))
    first, then = [], []
    requests = onelane.Tensors(cuda_graphs=cuda_graphs)
    with onelane.BatchQueue(model, "cuda", requests, max_batch_size=256) as queue:
        queue(torch.zeros(1, 512))
        for rows in ROWS:
            x = torch.randn(rows, 512)
            started = time.perf_counter()
            queue(x)
            first.append(1e3 * (time.perf_counter() - started))
            started = time.perf_counter()
            for _ in range(CALLS):
                queue(x)
            then.append(1e3 * (time.perf_counter() - started) / CALLS)
    return first, then


def main() -> int:
    """Measure and print."""
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, rows {ROWS}")
    for cuda_graphs in (False, True):
        first, then = measure(cuda_graphs)
        print(f"cuda_graphs={cuda_graphs}: first, ms", *(f"{ms:.1f}" for ms in first))
        print(f"{'':17} then, ms ", *(f"{ms:.3f}" for ms in then))
    return 0


if __name__ == "__main__":
    sys.exit(main())
