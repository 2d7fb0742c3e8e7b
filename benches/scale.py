"""What several replicas give, and what stands between them and a caller.

    python benches/scale.py                                   # every part that can run here
    python benches/scale.py --part replicas --rounds 5
    python benches/scale.py --part start --onelane BINARY --model DIR

Wants a machine with little else to do. Ray's parts need `pip install "ray[serve]"`; `make
bench-scale` makes an environment with it.

- replicas: requests a second of `onelane.Replicas` on one and on two CPU workers, with a model that
  waits for 5 ms a batch; and what choosing among two and eight costs.
- ray: the same of one and of two replicas of Ray Serve, with lists of 256 a call: two calls under
  way for each replica, and all calls at once.
- overhead: the time of one call after another, to a bare deployment of Ray's and to one with a
  queue, whose model does nothing.
- router: calls a second through one handle to a bare deployment, all at once.
- start: seconds from the start of `onelane serve` until it is ready, and its memory then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onelane

REQUESTS = 20_000
PER_CALL = 256
PER_REPLICA = 2
CALLS = 1_000
BATCH = 32


def sleeps(items: list[Any]) -> list[Any]:
    """Wait for a device for 5 ms a batch."""
    time.sleep(0.005)
    return items


def nothing(items: list[Any]) -> list[Any]:
    """Do nothing."""
    return items


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rates(work: Callable[[], None], count: int, rounds: int) -> list[float]:
    """How many a second, in each round; the first, that warms up, is not counted."""
    work()
    return [round(count / timed(work), 1) for _ in range(rounds)]


def compared(one: list[float], two: list[float]) -> dict[str, Any]:
    ratio = statistics.median(two) / statistics.median(one)
    return {"one": one, "two": two, "ratio_of_medians": round(ratio, 3)}


def replicas(rounds: int) -> dict[str, Any]:
    found = []
    for count in (1, 2):
        devices = [onelane.DeviceExecutor("cpu") for _ in range(count)]
        settings = {"max_batch_size": BATCH, "factory": False, "capacity": REQUESTS}
        with onelane.Replicas(sleeps, devices, onelane.Items(), **settings) as made:

            def work(made: onelane.Replicas = made) -> None:
                futures = made.submit_many(range(REQUESTS))
                assert [future.result() for future in futures] == list(range(REQUESTS))

            found.append(rates(work, REQUESTS, rounds))
        for device in devices:
            device.shutdown()
    return {**compared(*found), "pick_us": {count: pick_us(count) for count in (2, 8)}}


def pick_us(count: int) -> float:
    """What choosing costs where none is idle, so that all are looked at."""
    gate = threading.Event()

    def waits(items: list[Any]) -> list[Any]:
        gate.wait()
        return items

    devices = [onelane.DeviceExecutor("cpu") for _ in range(count)]
    with onelane.Replicas(waits, devices, onelane.Items(), factory=False) as made:
        for queue in made.queues:
            queue.submit(0)
        took = timed(lambda: [made.pick() for _ in range(CALLS)] and None)
        gate.set()
    for device in devices:
        device.shutdown()
    return round(took / CALLS * 1e6, 2)


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"location": "NoServer"})
    try:
        yield serve
    finally:
        serve.shutdown()
        ray.shutdown()


def with_queue(serve: Any, model: Any, count: int = 1, **more: Any) -> Any:
    from onelane import ray

    settings = {"requests": onelane.Items(), "device": "cpu", "factory": False, **more}
    app = ray.application(model, max_batch_size=BATCH, options={"num_replicas": count}, **settings)
    return serve.run(app, name="scale", route_prefix=None)


def bare(serve: Any) -> Any:
    class Bare:
        async def __call__(self, request: Any) -> Any:
            return request

    deployment = serve.deployment(max_ongoing_requests=96)(Bare)
    return serve.run(deployment.bind(), name="scale", route_prefix=None)


def ray(rounds: int) -> dict[str, Any]:
    from onelane.ray import infer_many

    asked = list(range(REQUESTS))
    parts = [asked[at : at + PER_CALL] for at in range(0, REQUESTS, PER_CALL)]

    async def some_at_a_time(handle: Any, callers: int) -> None:
        left = iter(parts)

        async def ask() -> None:
            for part in left:
                assert await infer_many(handle, part, per_call=PER_CALL) == part

        await asyncio.gather(*(ask() for _ in range(callers)))

    async def all_at_once(handle: Any) -> None:
        assert await infer_many(handle, asked, per_call=PER_CALL) == asked

    some, every = [], []
    with cluster() as serve:
        for count in (1, 2):
            handle = with_queue(serve, sleeps, count, per_call=PER_CALL)

            def work(handle: Any = handle, callers: int = PER_REPLICA * count) -> None:
                asyncio.run(some_at_a_time(handle, callers))

            some.append(rates(work, REQUESTS, rounds))
            every.append(
                rates(lambda h=handle: asyncio.run(all_at_once(h)), REQUESTS, rounds)  # type: ignore[misc]
            )
            serve.delete("scale")
    return {"some_at_a_time": compared(*some), "all_at_once": compared(*every)}


def overhead(rounds: int) -> dict[str, Any]:
    """Milliseconds a call, one after another; each round asks both, in turn."""

    async def one_by_one(handle: Any) -> None:
        for number in range(CALLS):
            assert await handle.remote(number) == number

    found: dict[str, list[float]] = {"bare_ms": [], "onelane_ms": []}
    with cluster() as serve:
        for _ in range(rounds):
            for name, start in (
                ("bare_ms", bare),
                ("onelane_ms", lambda serve: with_queue(serve, nothing)),
            ):
                handle = start(serve)
                asyncio.run(one_by_one(handle))
                took = timed(lambda handle=handle: asyncio.run(one_by_one(handle)))  # type: ignore[misc]
                found[name].append(round(took / CALLS * 1e3, 4))
                serve.delete("scale")
    added = statistics.median(found["onelane_ms"]) - statistics.median(found["bare_ms"])
    return {**found, "added_ms": round(added, 4)}


def router(rounds: int) -> dict[str, Any]:
    async def at_once(handle: Any) -> None:
        async def ask(number: int) -> None:
            assert await handle.remote(number) == number

        await asyncio.gather(*(ask(number) for number in range(CALLS)))

    with cluster() as serve:
        start = time.perf_counter()
        handle = bare(serve)
        started_s = round(time.perf_counter() - start, 2)
        found = rates(lambda: asyncio.run(at_once(handle)), CALLS, rounds)
    return {"calls_a_second": found, "replica_started_s": started_s}


def start(rounds: int, onelane_binary: str, model: str) -> dict[str, Any]:
    found: dict[str, list[float]] = {"ready_s": [], "resident_mb": []}
    for _ in range(rounds):
        begun = time.perf_counter()
        command = [onelane_binary, "serve", "--model-id", f"m={model}", "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            while "listening on" not in line:
                assert line, "the server has ended"
                line = process.stderr.readline()
            address = line.split("listening on ")[1].strip()
            url = address if address.startswith("http") else f"http://{address}"
            while not is_ready(f"{url}/ready"):
                assert process.poll() is None, "the server has ended"
                time.sleep(0.005)
            found["ready_s"].append(round(time.perf_counter() - begun, 3))
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            found["resident_mb"].append(round(int(resident.split()[1]) * 1024 / 1e6, 1))
        finally:
            process.kill()
            process.wait()
    return found


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


def main() -> None:
    parts: dict[str, Callable[[int], dict[str, Any]]] = {
        "replicas": replicas, "ray": ray, "overhead": overhead, "router": router,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=[*parts, "start"], action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--onelane", help="the binary, for the part start")
    parser.add_argument("--model", help="a model's folder, for the part start")
    given = parser.parse_args()
    if given.part and "start" in given.part and not (given.onelane and given.model):
        parser.error("--part start needs --onelane BINARY and --model DIR")
    if given.onelane and given.model:
        parts["start"] = lambda rounds: start(rounds, given.onelane, given.model)
    for name in given.part or parts:
        print(json.dumps({"part": name, **parts[name](given.rounds)}), flush=True)


if __name__ == "__main__":
    main()
