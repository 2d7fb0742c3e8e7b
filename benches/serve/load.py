"""Load on embedding servers: one text a call from many clients, each waiting for its answer.

    python benches/serve/load.py --onelane target/release/onelane --model DIR
    python benches/serve/load.py --onelane ... --model DIR --part interactive

Parts: `throughput` (the server beside `onelane embed` of the same texts, and beside TEI, infinity
and vLLM if their programs are on the PATH, and mosec if this Python has it), `interactive` (latency
of single urgent texts beside a full indexing load), `overload` (four times as many calls as the
server can answer: what it still answers, how true its Retry-After is, its memory). Nothing but the
standard library; JSON on stdout.
Figures want a machine that is otherwise idle.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORDS = [
    "the",
    "a",
    "model",
    "text",
    "queue",
    "batch",
    "device",
    "one",
    "lane",
    "runs",
    "many",
    "short",
    "words",
    "of",
    "all",
    "kinds",
]


def texts(count: int, seed: int) -> list[str]:
    """Short texts of 3 to 40 words, the same for each seed."""
    pick = random.Random(seed)
    return [" ".join(pick.choices(WORDS, k=pick.randint(3, 40))) for _ in range(count)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], port: int, health: str) -> Iterator[int]:
    """A server's process, from when it says that it is healthy."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"{command[0]} did not become ready in two minutes")
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


class Client:
    """One connection that is kept, one call at a time."""

    def __init__(self, port: int, headers: str = "") -> None:
        self.port, self.headers = port, headers

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def embed(self, batch: list[str]) -> float:
        """Seconds that a call took."""
        body = json.dumps({"model": "model", "input": batch}).encode()
        head = (
            "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"{self.headers}content-length: {len(body)}\r\n\r\n"
        )
        start = time.perf_counter()
        self.writer.write(head.encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        status = answer.split(b" ", 2)[1]
        length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
        await self.reader.readexactly(length)
        if status != b"200":
            raise SystemExit(f"the server answered {status.decode()}")
        return time.perf_counter() - start


async def closed_loop(port: int, work: list[str], clients: int) -> tuple[float, list[float]]:
    """Texts a second and the latencies, of clients that take one text after the other."""
    left, latencies = iter(work), []

    async def one() -> None:
        async with Client(port) as client:
            for text in left:
                latencies.append(await client.embed([text]))

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return len(work) / (time.perf_counter() - start), latencies


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def in_process(onelane: str, model: str, work: list[str]) -> float:
    """Texts a second of `onelane embed`, by its own summary, without the loading."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts")
        file.write_text("\n".join(work))
        command = [onelane, "embed", "--model", model, "--threads", "64", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stderr.rsplit("(", 1)[1].split(" texts/s")[0])


def ours(onelane: str, model: str, port: int) -> list[str]:
    return [
        onelane,
        "serve",
        "--model-id",
        f"model={model}",
        "--port",
        str(port),
        "--drain-delay",
        "0",
    ]


def others(model: str, port: int) -> dict[str, tuple[list[str], str]]:
    """Peers that are installed: how they are started, and where they say that they are healthy."""
    known = {
        "TEI": (["text-embeddings-router", "--model-id", model, "--port", str(port)], "/health"),
        "infinity": (
            [
                "infinity_emb",
                "v2",
                "--model-id",
                model,
                "--served-model-name",
                "model",
                "--url-prefix",
                "/v1",
                "--port",
                str(port),
                "--device",
                "cpu",
            ],
            "/health",
        ),
        "vLLM": (
            ["vllm", "serve", model, "--served-model-name", "model", "--port", str(port)],
            "/health",
        ),
    }
    found = {name: how for name, how in known.items() if shutil.which(how[0][0])}
    # A library and no program: the script that serves it is the other benchmark's.
    if all(importlib.util.find_spec(name) for name in ("mosec", "sentence_transformers")):
        script = Path(__file__).parents[1] / "side-by-side/servers/mosec_server.py"
        command = ["env", f"MODEL={model}", sys.executable, str(script)]
        found["mosec"] = ([*command, "--address", "127.0.0.1", "--port", str(port)], "/metrics")
    return found


def throughput(args: argparse.Namespace) -> dict[str, object]:
    work = texts(args.texts, 1)
    rounds = []
    for _ in range(args.rounds):
        port = free_port()
        result: dict[str, float] = {"in process": in_process(args.onelane, args.model, work)}
        servers = {"onelane": (ours(args.onelane, args.model, port), "/ready")}
        servers.update(others(args.model, port))
        for name, (command, health) in servers.items():
            with running(command, port, health):
                asyncio.run(closed_loop(port, work[:100], args.clients))
                rate, latencies = asyncio.run(closed_loop(port, work, args.clients))
            result[name] = rate
            result[f"{name} p99 ms"] = p99(latencies) * 1e3
        rounds.append(result)
    median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    ratios = {f"onelane / {n}": median["onelane"] / median[n] for n in median if "p99" not in n}
    return {"texts/s": median, "ratios": ratios, "rounds": args.rounds}


async def beside_indexing(port: int, count: int) -> list[float]:
    """Latencies of urgent texts while four clients index in calls of 256."""
    stop = asyncio.Event()
    work = texts(1024, 2)

    async def index(seed: int) -> None:
        async with Client(port, "x-priority: bulk\r\n") as client:
            while not stop.is_set():
                await client.embed(work[seed * 256 : seed * 256 + 256])

    indexing = [asyncio.create_task(index(seed)) for seed in range(4)]
    latencies = []
    async with Client(port, "x-priority: interactive\r\n") as client:
        for text in texts(count, 3):
            await asyncio.sleep(0.05)
            latencies.append(await client.embed([text]))
    stop.set()
    await asyncio.gather(*indexing)
    return latencies


def interactive(args: argparse.Namespace) -> dict[str, object]:
    port = free_port()
    with running(ours(args.onelane, args.model, port), port, "/ready"):
        latencies = asyncio.run(beside_indexing(port, 200))
        stats = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/stats"))
    batch = stats["models"][0]["service_ms"]
    limit = 2 * batch["p99"] + 20
    found = p99(latencies) * 1e3
    return {
        "p99 ms": found,
        "batch ms": batch,
        "two batches and 20 ms": limit,
        "within": found <= limit,
    }


class Overload:
    """Calls of one text that come at a steady rate, whatever becomes of those before."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[Client] = []
        # When a call began, its status, its latency, and the wait that a refusal told, in seconds.
        self.calls: list[tuple[float, int, float, float]] = []

    async def call(self, text: str) -> None:
        client = self.idle.pop() if self.idle else await Client(self.port).__aenter__()
        body = json.dumps({"model": "model", "input": [text]}).encode()
        head = (
            "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        start = time.perf_counter()
        client.writer.write(head.encode() + body)
        answer = (await client.reader.readuntil(b"\r\n\r\n")).lower()
        await client.reader.readexactly(int(field(answer, b"content-length")))
        wait = field(answer, b"retry-after-ms") / 1e3 if b"retry-after-ms" in answer else 0.0
        status = int(answer.split(b" ", 2)[1])
        self.calls.append((start, status, time.perf_counter() - start, wait))
        self.idle.append(client)

    async def run(self, rate: float, seconds: float) -> None:
        work, begin = texts(1000, 4), time.perf_counter()
        calls = []
        for i in range(int(rate * seconds)):
            due = begin + i / rate - time.perf_counter()
            # As often as not it is late: then it does not sleep, but lets the others run.
            await asyncio.sleep(max(due, 0))
            calls.append(asyncio.create_task(self.call(work[i % len(work)])))
        await asyncio.gather(*calls)
        for client in self.idle:
            client.writer.close()


def field(head: bytes, name: bytes) -> float:
    return float(head.split(name + b":")[1].split(b"\r\n")[0])


def resident(pid: int) -> float:
    """Megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def overload(args: argparse.Namespace) -> dict[str, object]:
    port, seconds = free_port(), 15.0
    command = [*ours(args.onelane, args.model, port), "--max-concurrent-requests", "256"]
    with running(command, port, "/ready") as pid:
        asyncio.run(closed_loop(port, texts(args.texts, 1), args.clients))
        best, _ = asyncio.run(closed_loop(port, texts(args.texts, 1), args.clients))
        before = resident(pid)
        load = Overload(port)
        asyncio.run(load.run(4 * best, seconds))
        after = resident(pid)
    # Without the start, when the queue fills, and the end, when it empties.
    first = min(start for start, *_ in load.calls)
    last = max(start for start, *_ in load.calls)
    steady = [c for c in load.calls if first + 3 <= c[0] <= last]
    answered = sorted((start, latency) for start, status, latency, _ in steady if status == 200)
    in_window = [c for c in load.calls if c[1] == 200 and first + 3 <= c[0] + c[2] <= last]
    ratios = []
    for start, status, _, told in steady:
        if status == 429:
            near = min(bisect.bisect_left(answered, (start, 0.0)), len(answered) - 1)
            ratios.append(told / answered[near][1])
    return {
        "best texts/s": best,
        "calls/s": len(load.calls) / (last - first),
        "answered/s": len(in_window) / (last - first - 3),
        "goodput of best": len(in_window) / (last - first - 3) / best,
        "refused": sum(c[1] == 429 for c in steady) / len(steady),
        "other statuses": sorted({c[1] for c in load.calls} - {200, 429}),
        "Retry-After of the true wait, median": statistics.median(ratios),
        "within a factor of two": sum(0.5 <= r <= 2 for r in ratios) / len(ratios),
        "MB before and after": [before, after],
    }


PARTS = {"throughput": throughput, "interactive": interactive, "overload": overload}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onelane", required=True, help="the binary")
    parser.add_argument("--model", required=True, help="the model's folder")
    parser.add_argument("--part", choices=list(PARTS), default="throughput")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.model = os.path.abspath(args.model)
    json.dump(PARTS[args.part](args), sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
