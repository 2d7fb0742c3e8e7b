#!/usr/bin/env python3
"""Isolated workers on a GPU: what one request that poisons the device costs, and what a hop costs.

    python3 benches/gpu/isolation.py [--device cuda] [--seconds 1] [--rounds 5] [--out FILE]

Poisoned: 64 requests from 16 threads, one of them an index out of range in an embedding, which is a
device-side assert on CUDA. In process, and in an isolated worker without and with a spare: which
requests are answered right, and 20 good ones after it; seconds from the poison to the next right
answer; GPU memory after the worker's death. Throughput: a 3-layer MLP, one row a request, isolated
over in process, in turns, medians.

Each part runs in a process of its own: a poisoned context does not come back. `--stand-in` has the
culprit abort its process instead, so that the script can be tried without a GPU (`--device cpu`).

Exit codes: 0 when isolated every good request was answered right and the culprit alone failed; 1
when not; 2 when the device is not there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

ROWS, WIDTH, LENGTH = 1000, 64, 8
REQUESTS, THREADS, AFTER = 64, 16, 20
CULPRIT = 37
MLP = (512, 1024, 1024, 512)


def load_embedding() -> Callable[[Any], Any]:
    """Make an embedding of fixed numbers, on the device that the environment names."""
    import torch

    device = os.environ["ISOLATION_DEVICE"]
    stand_in = os.environ.get("ISOLATION_STAND_IN") == "1"
    weight = torch.arange(ROWS * WIDTH, dtype=torch.float32).reshape(ROWS, WIDTH)
    table = torch.nn.Embedding.from_pretrained(weight).to(device)

    def model(indices: torch.Tensor) -> torch.Tensor:
        if stand_in and bool((indices >= ROWS).any()):
            print("a stand-in for a device-side assert", file=sys.stderr, flush=True)
            os.abort()
        with torch.no_grad():
            return table(indices.to(device)).sum(1).cpu()

    return model


def load_mlp() -> Callable[[Any], Any]:
    """Make a 3-layer MLP of fixed numbers; rows on the host in and out."""
    import torch

    device = os.environ["ISOLATION_DEVICE"]
    torch.manual_seed(42)
    layers: list[torch.nn.Module] = []
    for width, following in itertools.pairwise(MLP):
        layers += [torch.nn.Linear(width, following), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1]).to(device).eval()

    def model(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return net(x.to(device)).cpu()

    return model


def gpu_bytes() -> int | None:
    """Return the memory in use on the first GPU, of all processes; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout.strip()
    return int(text) << 20 if text.isdigit() else None


def queue_of(load: Callable[[], Any], isolation: dict[str, Any] | None, **options: Any) -> Any:
    """Make a queue, in process or isolated."""
    import onelane

    device = os.environ["ISOLATION_DEVICE"]
    if isolation is not None:
        # By import path: a child does not run this script, it imports it.
        name = f"isolation:{load.__name__}"
        options["isolation"] = onelane.Isolation(**isolation)
        return onelane.BatchQueue(name, device, **options)
    return onelane.BatchQueue(load, device, factory=True, **options)


def indices(request: int) -> Any:
    """Return the input of a request; the culprit's is out of range."""
    import torch

    first = ROWS if request == CULPRIT else request
    return torch.full((1, LENGTH), first, dtype=torch.int64)


def is_right(request: int, answer: Any) -> bool:
    """Whether it is the answer to this request, by value."""
    import torch

    row = torch.arange(WIDTH, dtype=torch.float32) + request * WIDTH
    return tuple(answer.shape) == (1, WIDTH) and torch.equal(answer[0], row * LENGTH)


def ask(queue: Any, request: int) -> str | None:
    """Ask once; return what is wrong with the answer, or None."""
    try:
        answer = queue(indices(request), timeout=180)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None if is_right(request, answer) else "a wrong answer"


def poisoned(isolation: dict[str, Any] | None) -> dict[str, Any]:
    """Run the 64 requests, then 20 good ones, then the culprit alone and what comes after it."""
    idle = gpu_bytes()
    queue = queue_of(load_embedding, isolation)
    result: dict[str, Any] = {"warm": ask(queue, 0)}
    loaded = gpu_bytes()
    problems: list[str | None] = [None] * REQUESTS
    barrier = threading.Barrier(THREADS)

    def client(thread: int) -> None:
        barrier.wait(timeout=60)
        for request in range(thread, REQUESTS, THREADS):
            problems[request] = ask(queue, request)

    started = time.perf_counter()
    crew = [threading.Thread(target=client, args=(thread,)) for thread in range(THREADS)]
    for member in crew:
        member.start()
    for member in crew:
        member.join()
    result["seconds_of_64"] = time.perf_counter() - started
    good = [problem for request, problem in enumerate(problems) if request != CULPRIT]
    result["right"] = good.count(None)
    result["of"] = len(good)
    result["culprit"] = problems[CULPRIT]
    result["others"] = sorted({problem for problem in good if problem})[:3]
    after = [ask(queue, request) for request in range(AFTER)]
    result["right_after"] = after.count(None)
    result["of_after"] = AFTER
    result["health"] = str(queue.health())
    if isolation is not None:
        result["spare_was_ready"] = has_spare(queue) if isolation.get("spare") else None
        started = time.perf_counter()
        ask(queue, CULPRIT)
        result["seconds_to_the_error"] = time.perf_counter() - started
        result["right_again"] = ask(queue, 1) is None
        result["seconds_to_recover"] = time.perf_counter() - started
        result["stats"] = numbers_of(queue.stats().isolation)
    used = gpu_bytes()
    queue.close()
    closed, since = gpu_bytes(), time.perf_counter()
    while closed is not None and idle is not None and closed > idle + (64 << 20):
        if time.perf_counter() - since > 5:
            break
        closed = gpu_bytes()
    result["gpu_bytes"] = {"idle": idle, "loaded": loaded, "recovered": used, "closed": closed}
    result["seconds_until_memory_is_free"] = time.perf_counter() - since
    return result


def has_spare(queue: Any) -> bool:
    """Wait until the spare is ready; a start may take a while."""
    until = time.perf_counter() + 90
    while not queue.stats().isolation.spare and time.perf_counter() < until:
        time.sleep(0.05)
    return bool(queue.stats().isolation.spare)


def numbers_of(stats: Any) -> dict[str, Any]:
    """Return the plain numbers of statistics."""
    fields = dataclasses.asdict(stats)
    return {name: value for name, value in fields.items() if isinstance(value, (int, float))}


def throughput(clients: list[int], seconds: float, rounds: int) -> dict[str, Any]:
    """Measure requests a second, in process and isolated, in turns."""
    import torch

    x = torch.randn(1, MLP[0], generator=torch.Generator().manual_seed(1))
    with (
        queue_of(load_mlp, None, max_batch_size=256) as near,
        queue_of(load_mlp, {}, max_batch_size=256) as far,
    ):
        if not torch.allclose(near(x), far(x), atol=1e-4):
            raise SystemExit("the isolated model answers with other numbers")
        result: dict[str, Any] = {}
        for count in clients:
            pairs = [
                [rate(queue, x, count, seconds) for queue in (near, far)] for _ in range(rounds)
            ]
            result[str(count)] = {
                "in_process": statistics.median(pair[0] for pair in pairs),
                "isolated": statistics.median(pair[1] for pair in pairs),
                "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
            }
    return result


def rate(queue: Any, x: Any, clients: int, seconds: float) -> float:
    """Return the requests a second of so many threads."""
    counts = [0] * clients
    barrier = threading.Barrier(clients + 1)
    over = threading.Event()

    def client(number: int) -> None:
        queue(x)
        barrier.wait(timeout=60)
        while not over.is_set():
            queue(x)
            counts[number] += 1

    crew = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for member in crew:
        member.start()
    barrier.wait(timeout=60)
    started = time.perf_counter()
    time.sleep(seconds)
    over.set()
    took = time.perf_counter() - started
    for member in crew:
        member.join()
    return sum(counts) / took


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "in process": lambda args: poisoned(None),
    # Without a second try of the culprit: each try would cost one more loss.
    "isolated": lambda args: poisoned({"retries": 0}),
    "isolated, spare": lambda args: poisoned({"retries": 0, "spare": True}),
    "throughput": lambda args: throughput(args.clients, args.seconds, args.rounds),
}


def run_part(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process of its own and return what it found."""
    env = dict(os.environ, ISOLATION_DEVICE=args.device)
    here = os.path.dirname(os.path.abspath(__file__))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [here, env.get("PYTHONPATH")]))
    if args.stand_in:
        env["ISOLATION_STAND_IN"] = "1"
    command = [sys.executable, os.path.abspath(__file__), "--part", name, *args.given]
    try:
        done = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, text=True, timeout=args.limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {args.limit} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return {"failed": f"the process ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def table(results: dict[str, Any]) -> str:
    """Return the results for people."""
    lines = [f"{'poisoned':18} {'right':>9} {'after':>9} {'recovers':>10}  culprit; health"]
    for name in ("in process", "isolated", "isolated, spare"):
        part = results[name]
        if "failed" in part:
            lines.append(f"{name:18} {part['failed']}")
            continue
        right = f"{part['right']} of {part['of']}"
        after = f"{part['right_after']} of {part['of_after']}"
        seconds = part.get("seconds_to_recover")
        recovers = "never" if seconds is None else f"{seconds:.2f} s"
        said = f"{str(part['culprit'])[:60]}; {part['health'][:60]}"
        lines.append(f"{name:18} {right:>9} {after:>9} {recovers:>10}  {said}")
        lines.append(f"{'':18} GPU memory: {part['gpu_bytes']}")
    lines.append(f"{'MLP, clients':18} {'in process':>12} {'isolated':>12} {'ratio':>7}")
    part = results["throughput"]
    if "failed" in part:
        return "\n".join([*lines, part["failed"]])
    for clients, found in part.items():
        near, far = found["in_process"], found["isolated"]
        lines.append(f"{clients:18} {near:12.0f} {far:12.0f} {found['ratio']:7.2f}")
    return "\n".join(lines)


def is_contained(part: dict[str, Any]) -> bool:
    """Whether the good requests were right and the culprit alone failed."""
    return (
        "failed" not in part
        and part["right"] == part["of"]
        and part["right_after"] == part["of_after"]
        and part["culprit"] is not None
        and part["right_again"]
    )


def main() -> int:
    """Run the parts and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--stand-in", action="store_true", help="the culprit aborts its process")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for each part")
    parser.add_argument("--out", help="where to write the JSON, besides stdout")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.given = ["--seconds", str(args.seconds), "--rounds", str(args.rounds)]
    args.given += ["--clients", *map(str, args.clients)]
    if args.part:
        print(json.dumps(PARTS[args.part](args)), flush=True)
        # A poisoned context may hang the interpreter's end.
        os._exit(0)
    results = {name: run_part(name, args) for name in PARTS}
    text = json.dumps({"device": args.device, "stand_in": args.stand_in, "results": results})
    print(text)
    print(table(results))
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    return 0 if all(is_contained(results[name]) for name in ("isolated", "isolated, spare")) else 1


if __name__ == "__main__":
    sys.exit(main())
