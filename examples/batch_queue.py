"""One model, eight threads and two hundred tasks: requests that wait together run as one batch.

pip install onelane torch
python examples/batch_queue.py [device]
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

import onelane


def main(device: str | None) -> None:
    """Compare the answers through a queue with the model's own."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 8)
    ).eval()
    inputs = [torch.randn(1 + i % 4, 64) for i in range(200)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]

    with onelane.BatchQueue(model, device, max_batch_size=64) as queue:
        with ThreadPoolExecutor(8) as pool:
            by_threads = list(pool.map(queue, inputs))

        async def tasks() -> list[torch.Tensor]:
            return await asyncio.gather(*(queue.infer(x) for x in inputs))

        by_tasks = asyncio.run(tasks())
        stats = queue.stats()

    for name, results in (("threads", by_threads), ("tasks", by_tasks)):
        worst = max(float((a - b).abs().max()) for a, b in zip(results, expected, strict=True))
        print(f"{name}: 200 requests, greatest difference {worst:.1e}")
    print(f"{stats.completed} requests in {stats.batches} batches on {queue.executor.device}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
