#!/usr/bin/env python3
"""One model on several GPUs of a machine: what a second one gives, and what a poisoned one costs.

    python3 benches/gpu/replicas.py [--devices cuda:0 cuda:1] [--requests 640] [--rounds 3]

Throughput: a model that keeps a GPU busy for milliseconds a request, on the first device and on all
of them, in turns, in process and isolated; each answer says on which device it was computed. The
factory says `cuda` alone: it is the worker that has the device. Poisoned: isolated, 16 threads, one
request with an index out of range, which is a device-side assert on CUDA: which requests are
answered right, and when all devices are ready again.

Each part runs in a process of its own. `--devices cpu cpu --small` tries the script without a GPU:
two workers, and the culprit aborts its process.

Exit codes: 0 when every good request was answered right on the devices that were asked for, and the
culprit alone failed; 1 when not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

ROWS, KINDS, THREADS = 1000, 20, 16


def load() -> Callable[[Any], Any]:
    """Make the same numbers on whichever device the worker has."""
    import torch

    small = os.environ.get("REPLICAS_SMALL") == "1"
    width, layers = (16, 1) if small else (2048, 8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(42)
    blocks: list[torch.nn.Module] = [torch.nn.Embedding(ROWS, width, device=device)]
    for _ in range(layers):
        blocks += [
            torch.nn.Linear(width, 4 * width, device=device), torch.nn.ReLU(),
            torch.nn.Linear(4 * width, width, device=device),
        ]  # fmt: skip
    net = torch.nn.Sequential(*blocks).eval()
    number = next(net.parameters()).device.index or 0

    def model(indices: torch.Tensor) -> torch.Tensor:
        if device == "cpu" and bool((indices >= ROWS).any()):
            print("a stand-in for a device-side assert", file=sys.stderr, flush=True)
            os.abort()
        with torch.no_grad():
            pooled = net(indices.to(device)).mean(1).cpu()
        return torch.cat([pooled, torch.full((len(pooled), 1), float(number))], 1)

    return model


def replicas_of(args: argparse.Namespace, isolated: bool, count: int) -> Any:
    """Make replicas on the first `count` devices."""
    import onelane

    names = args.devices[:count]
    devices = [onelane.DeviceExecutor(name) if name == "cpu" else name for name in names]
    # By import path: a child does not run this script, it imports it.
    options: dict[str, Any] = {"max_batch_size": 16}
    if isolated:
        return onelane.Replicas(
            "replicas:load", devices, isolation=onelane.Isolation(retries=0), **options
        )
    return onelane.Replicas(load, devices, factory=True, **options)


def indices(kind: int) -> Any:
    """Return the input of a request of one of the kinds."""
    import torch

    return torch.full((1, 512), kind, dtype=torch.int64)


class Reference:
    """What each kind is answered with, alone on the first device."""

    def __init__(self, queue: Any) -> None:
        self._answers = [queue(indices(kind))[:, :-1] for kind in range(KINDS)]

    def is_right(self, kind: int, answer: Any) -> bool:
        """Whether it is the answer to this kind, by value."""
        import torch

        # Batches of other sizes sum in other orders.
        return torch.allclose(answer[:, :-1], self._answers[kind], rtol=1e-3, atol=1e-4)


def device_of(answer: Any) -> int:
    """Return the number of the device that an answer was computed on."""
    return int(answer[0, -1])


def throughput(args: argparse.Namespace, isolated: bool) -> dict[str, Any]:
    """Measure requests a second on one device and on all."""
    counts = (1, len(args.devices))
    made = [replicas_of(args, isolated, counts[0])]
    reference = Reference(made[0].queues[0])
    rates: dict[int, list[float]] = {count: [] for count in counts}
    wrong, seen = 0, Counter[int]()
    for _ in range(args.rounds):
        for count in counts:
            # One at a time: the devices are the same.
            made[-1].close()
            made.append(replicas_of(args, isolated, count))
            kinds = [number % KINDS for number in range(args.requests)]
            inputs = [indices(kind) for kind in kinds]
            for future in made[-1].submit_many(inputs[: 32 * count]):
                future.result()
            started = time.perf_counter()
            answers = [future.result() for future in made[-1].submit_many(inputs)]
            rates[count].append(round(len(answers) / (time.perf_counter() - started), 1))
            wrong += sum(not reference.is_right(*pair) for pair in zip(kinds, answers, strict=True))
            if count > 1:
                seen.update(map(device_of, answers))
    made[-1].close()
    one, all_of_them = (statistics.median(rates[count]) for count in counts)
    return {
        "per_s": rates, "ratio_of_medians": round(all_of_them / one, 3), "wrong": wrong,
        "answers_by_device": dict(sorted(seen.items())),
        "right": wrong == 0 and (len(seen) == len(args.devices) or "cpu" in args.devices),
    }  # fmt: skip


def poisoned(args: argparse.Namespace) -> dict[str, Any]:
    """Ask from 16 threads; one request in the middle poisons its device."""
    replicas = replicas_of(args, True, len(args.devices))
    reference = Reference(replicas.queues[0])
    culprit = args.requests // 2
    problems: list[str | None] = [None] * args.requests
    found: dict[str, Any] = {}
    failed_at: list[float] = []

    def ask(request: int) -> str | None:
        kind = ROWS if request == culprit else request % KINDS
        try:
            answer = replicas(indices(kind), timeout=180)
        except Exception as error:
            if request == culprit:
                failed_at.append(time.perf_counter())
                found["health_then"] = str(replicas.health())[:200]
            return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        return None if reference.is_right(kind, answer) else "a wrong answer"

    def client(thread: int) -> None:
        for request in range(thread, args.requests, THREADS):
            problems[request] = ask(request)

    crew = [threading.Thread(target=client, args=(thread,)) for thread in range(THREADS)]
    for member in crew:
        member.start()
    for member in crew:
        member.join()
    while not all(queue.health().ok for queue in replicas.queues):
        time.sleep(0.01)
        if failed_at and time.perf_counter() - failed_at[0] > 120:
            break
    found["all_ready_after_s"] = round(time.perf_counter() - failed_at[0], 2) if failed_at else None
    good = [problem for request, problem in enumerate(problems) if request != culprit]
    found.update(
        answered_right=good.count(None), of=len(good), culprit=problems[culprit],
        others=sorted({problem for problem in good if problem})[:3],
        losses=[queue.stats().isolation.losses for queue in replicas.queues],
    )  # fmt: skip
    found["right"] = good.count(None) == len(good) and problems[culprit] is not None
    replicas.close()
    return found


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "in process": lambda args: throughput(args, isolated=False),
    "isolated": lambda args: throughput(args, isolated=True),
    "poisoned": poisoned,
}


def run_part(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process of its own and return what it found."""
    env = dict(os.environ, REPLICAS_SMALL="1" if args.small else "0")
    here = os.path.dirname(os.path.abspath(__file__))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [here, env.get("PYTHONPATH")]))
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--part", name]
    try:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        return {"right": False, "failed": "not done within 240 s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return {"right": False, "failed": f"the process ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main() -> int:
    """Run the parts and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", nargs="+", default=["cuda:0", "cuda:1"])
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args)), flush=True)
        return 0
    right = True
    for name in PARTS:
        found = run_part(name, args)
        right &= found["right"]
        print(json.dumps({"part": name, **found}), flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
