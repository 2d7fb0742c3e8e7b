"""A SentenceTransformer behind a batch queue that pads: many tasks, few shapes, one owner.

pip install onelane sentence-transformers
python examples/sentence_transformer.py MODEL [device]

MODEL: a folder with a sentence embedding model. Texts become tokens on a few threads, each with a
tokenizer of its own (a fast one keeps state between calls), so that the event loop stays free.
Requests are dicts of tokens. Those whose lengths fall into one bucket share a batch, and only the
embedding leaves the worker.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

import onelane

PAD = onelane.Pad(
    dim=1,
    buckets=(16, 32, 64, 128, 256),
    mask="attention_mask",
    rows=(1, 2, 4, 8, 16, 32),
)
TEXTS = [" ".join(["one lane for many threads"] * (i % 9 + 1)) for i in range(240)]


class Encoder:
    """Tokens in, embeddings out. Made, called and dropped on the worker."""

    def __init__(self, path: str, device: str) -> None:
        self.model = SentenceTransformer(path, device=device).eval()
        self.device = self.model.device

    def __call__(self, **tokens: torch.Tensor) -> torch.Tensor:
        tokens = {name: tensor.to(self.device) for name, tensor in tokens.items()}
        embedding: torch.Tensor = self.model(tokens)["sentence_embedding"]
        return embedding


class Embedder:
    """What a service keeps: `await embedder.embed("text")`, from any event loop."""

    def __init__(self, path: str, device: str) -> None:
        self.queue = onelane.BatchQueue(
            lambda: Encoder(path, device), device, onelane.Tensors(pad=PAD), max_batch_size=32
        )
        self._path, self._of_thread = path, threading.local()
        self._pool = ThreadPoolExecutor(2, "tokenise")

    def _tokenise(self, text: str) -> dict[str, torch.Tensor]:
        tokenizer: Any = getattr(self._of_thread, "tokenizer", None)
        if tokenizer is None:
            tokenizer = self._of_thread.tokenizer = AutoTokenizer.from_pretrained(self._path)
        tokens = tokenizer(text, truncation=True, max_length=PAD.buckets[-1], return_tensors="pt")
        return dict(tokens)

    async def embed(self, text: str) -> torch.Tensor:
        """Return the embedding of a text."""
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._pool, self._tokenise, text)
        with torch.inference_mode():
            # Read at the call; nothing is awaited inside of the block, see docs/python.md.
            answer = self.queue.infer(tokens)
        embedding: torch.Tensor = (await answer)[0]
        return embedding

    def close(self) -> None:
        """Run what was accepted and free the model on its worker."""
        self.queue.close()
        self._pool.shutdown()


def with_a_lock(path: str, device: str) -> tuple[list[torch.Tensor], float]:
    """Embed the texts from 24 threads, one after the other; returns the seconds it took, too."""
    model, lock = SentenceTransformer(path, device=device), threading.Lock()

    def embed(text: str) -> torch.Tensor:
        with lock:
            embedding: torch.Tensor = model.encode(text, convert_to_tensor=True).cpu()
        return embedding

    embed("warm")
    with ThreadPoolExecutor(24) as pool:
        started = time.perf_counter()
        embeddings = list(pool.map(embed, TEXTS))
        return embeddings, time.perf_counter() - started


def main(path: str, device: str) -> None:
    """Compare embeddings and speed with those of a lock around `encode`."""
    expected, lock_s = with_a_lock(path, device)
    embedder = Embedder(path, device)

    async def clients() -> tuple[list[torch.Tensor], float]:
        at_a_time = asyncio.Semaphore(24)

        async def client(text: str) -> torch.Tensor:
            async with at_a_time:
                return await embedder.embed(text)

        await embedder.embed("warm")
        started = time.perf_counter()
        found = await asyncio.gather(*(client(text) for text in TEXTS))
        return found, time.perf_counter() - started

    embeddings, queue_s = asyncio.run(clients())
    stats = embedder.queue.stats()
    embedder.close()
    worst = max(float((a - b).abs().max()) for a, b in zip(embeddings, expected, strict=True))
    print(f"{len(TEXTS)} texts, greatest difference {worst:.1e}")
    print(f"{stats.completed} requests in {stats.batches} batches on {device}")
    print(f"padding: {stats.padding_waste:.0%} of the tokens computed")
    print(f"a lock: {len(TEXTS) / lock_s:.0f} texts/s, the queue: {len(TEXTS) / queue_s:.0f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "cpu")
