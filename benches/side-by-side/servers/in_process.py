"""Without a server: threads of one process share a sentence-transformers model.

    python in_process.py --model DIR --reference FILE.npz --way lock|guard --threads 64 --seconds S

JSON on stdout: texts a second, and answers that differ from the reference.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from figures import WRONG


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--way", choices=("lock", "guard"), required=True)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    reference = np.load(args.reference)
    texts, expected = [str(text) for text in reference["texts"]], reference["embeddings"]
    if args.way == "guard":
        import onelane

        encode = onelane.guard(
            lambda: SentenceTransformer(args.model, device="cpu"), "cpu", batch={"encode": 32}
        ).encode
    else:
        model, lock = SentenceTransformer(args.model, device="cpu"), threading.Lock()

        def encode(text: str) -> np.ndarray:
            with lock:
                return model.encode(text)

    encode(texts[0])
    numbers, begin = itertools.count(), time.perf_counter()
    done: list[tuple[float, float, float]] = []

    def ask() -> None:
        while (sent := time.perf_counter() - begin) < args.seconds:
            at = next(numbers) % len(texts)
            difference = float(np.abs(encode(texts[at]) - expected[at]).max())
            done.append((sent, time.perf_counter() - begin, difference))

    threads = [threading.Thread(target=ask) for _ in range(args.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waits = [(ended - sent) * 1e3 for sent, ended, _ in done]
    found = {
        "texts_s": sum(ended <= args.seconds for _, ended, _ in done) / args.seconds,
        "closed_p50_ms": float(np.percentile(waits, 50)),
        "closed_p99_ms": float(np.percentile(waits, 99)),
        "checked": len(done),
        "wrong": sum(difference > WRONG for *_, difference in done),
        "largest_difference": max(difference for *_, difference in done),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
