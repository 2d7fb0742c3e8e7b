"""Chaos with isolated workers: `python tests/chaos.py --isolate [--seconds 600] [--seed 1]`.

The clients of `chaos.py` use queues whose models run in child processes. Requests segfault, abort,
exit, kill, hang, poison and bloat their workers; others kill, stop and break them from outside;
queues are shut down and made anew. Each request has a number, from which its response is computed
and what it does to its worker is known, so that these must hold:

- what harms nobody gets its response, unless its own client has cancelled it, set it a time, or
  shut its queue down;
- only what harms a worker gets `EngineCrashed`, `EngineHung` or `EngineLost`;
- nothing is answered twice, or not at all;
- afterwards this process has as many descriptors, threads and children, and /dev/shm and the
  folder for temporary files have the same names, as before.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

import chaos
import chaos_kinds
import onelane
from isolated_models import Poison, fault

# A worker that is stopped, or hangs, is killed after so long. A lone request is run again more
# often than usual: where starts are slow it may be struck from outside several times, while the
# other worker of its queue goes on.
ISOLATION = {"hang_s": 5.0, "start_s": 60.0, "max_memory": "200MiB", "retries": 4}
# A request may wait for several starts and hangs of others before it.
chaos.HANG_S = 240.0
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP)


class Lists(chaos_kinds.Kind):
    spare = False

    def make(self, device):
        isolation = onelane.Isolation(**ISOLATION, spare=self.spare)
        return onelane.BatchQueue(
            "isolated_models:chaos", device, onelane.Items(), capacity=128, factory=False,
            isolation=isolation,
        )  # fmt: skip

    def request(self, number, rows):
        return number

    def is_right(self, response, number, rows):
        return response == number * 2


class Arrays(Lists):
    spare = True

    def request(self, number, rows):
        return np.full((rows, 100), number)

    def is_right(self, response, number, rows):
        return response.shape == (rows, 100) and bool((response == number * 2).all())


class Home:
    """An executor with isolated queues."""

    def __init__(self, kinds, workers):
        self.device = onelane.DeviceExecutor("cpu", workers=workers)
        self.places = [chaos.Place(kind, self) for kind in kinds]


class World(chaos.World):
    """All there is, and what has come of it."""

    def __init__(self, seconds, seed):
        self.seed, self.limit, self.end = seed, sys.maxsize, time.monotonic() + seconds
        self.homes = [Home((Lists(), Arrays()), 1), Home((Lists(),), 2)]
        self.numbers = itertools.count(1)
        self.stop = threading.Event()
        self.wrong, self.counts = [], []
        self.restarts = Counter()
        self.losses = Counter()

    def close(self):
        for home in self.homes:
            for place in home.places:
                place.queue.close()
                self.note(place.queue)
            home.device.shutdown()

    def note(self, queue):
        """Add up what has become of a queue's workers, at its end."""
        found = queue.stats().isolation
        for name in ("starts", "crashes", "hangs", "poisonings", "retries", "protocol_errors"):
            self.losses[name] += getattr(found, name)
        self.losses["recycled"] += found.recycled


class Faults:
    """What clients expect of requests that harm their workers."""

    def answered(self, response, place, number, rows):
        if fault(number) is not None or number % 97 == 0:
            self.world.fail(f"{self.name}: request {number} should have failed")
        if not place.kind.is_right(response, number, rows):
            self.world.fail(f"{self.name}: request {number} of {rows} rows got {response!r}")
        self.count["completed"] += 1

    def failed(self, error, number):
        if isinstance(error, Poison):
            if error.args != (number,) or number % 97:
                self.world.fail(f"{self.name}: request {number} got the exception {error!r}")
        elif isinstance(error, onelane.EngineLost):
            what = fault(number)
            right = {"hang": onelane.EngineHung, "poison": onelane.EngineLost}
            if what is None or not (
                isinstance(error, right.get(what, onelane.EngineCrashed)) or is_struck(error)
            ):
                self.world.fail(f"{self.name}: request {number} ({what}) got {error!r}")
        else:
            super().failed(error, number)
            return
        self.count["errors"] += 1


def is_struck(error):
    """Whether a worker may have been struck from outside before it did what would have ended it."""
    return isinstance(error, onelane.EngineHung) or getattr(error, "signal", None) in SIGNALS


class Thread(Faults, chaos.Thread):
    """A client thread."""

    def ways(self):
        return ((self.call, 50), (self.submit, 20), (self.group, 10), (self.map, 4))


class Task(Faults, chaos.Task):
    """A client task."""

    async def call(self):
        await self.infer()


def killer(world):
    """Breaks workers from outside, each time when somebody has been answered since the last."""
    rng = random.Random(f"{world.seed} killer")
    try:
        while not world.stop.wait(rng.uniform(0.1, 1.5)):
            place = world.place(rng)
            with suppress(onelane.OnelaneError):
                stats = place.queue.stats()
                if stats.isolation.pids:
                    with suppress(ProcessLookupError):
                        os.kill(rng.choice(stats.isolation.pids), rng.choice(SIGNALS))
                    world.restarts["signals"] += 1
                # Three kills of one start in a row would rightly be an error.
                queue, until = place.queue, time.monotonic() + chaos.HANG_S
                while place.queue is queue and queue.stats().completed == stats.completed:
                    if world.stop.wait(0.02):
                        return
                    if time.monotonic() > until:
                        raise chaos_kinds.Wrong("a queue has answered nothing since a signal")
    except BaseException as error:
        world.fail(f"killer: {type(error).__name__}: {error}")
        raise


def restarter(world):
    """Shuts queues down, and makes them anew."""
    rng = random.Random(f"{world.seed} restarter")
    try:
        while not world.stop.wait(rng.uniform(1.0, 6.0)):
            place = world.place(rng)
            old = place.queue
            place.queue = place.kind.make(place.home.device)
            if not old.shutdown(cancel_futures=rng.random() < 0.5, timeout=chaos.HANG_S):
                raise chaos_kinds.Wrong("a queue was not shut down in time")
            world.note(old)
            world.restarts["queues"] += 1
    except BaseException as error:
        world.fail(f"restarter: {type(error).__name__}: {error}")
        raise


def surroundings():
    """What this process holds, and the names that it could have left."""
    files = sorted(os.listdir(tempfile.gettempdir()))
    found = {"threads": threading.active_count(), "files": files}
    if sys.platform == "linux":
        # Names that are not ours may be other programs'; what is mapped here is not.
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped = [line.split()[-1] for line in maps if "/dev/shm" in line]
        found |= {
            "threads": len(os.listdir("/proc/self/task")),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "shared memory": sorted([*filter(ours, os.listdir("/dev/shm")), *mapped]),
            "children": sorted(
                child
                for task in os.listdir("/proc/self/task")
                for child in Path(f"/proc/self/task/{task}/children").read_text().split()
            ),
        }
    return found


def settled(before):
    """Return how this process differs from what it was, once it has had the time to end things."""
    end = time.monotonic() + 15
    while True:
        with suppress(FileNotFoundError):
            now = surroundings()
            others = {"files"}  # other programs have temporary files, too
            names = [name for name in before if name not in others and before[name] != now[name]]
            left = [name for name in now["files"] if name not in before["files"] and ours(name)]
            if not names and not left:
                return []
        if time.monotonic() > end:
            return [f"{name}: {before[name]} became {now[name]}" for name in names] + left
        time.sleep(0.05)


def ours(name):
    return name.startswith("onelane")


def run(seconds, seed, threads=8, tasks=8, quiet=False):
    """Run it; returns the totals and a list of what went wrong."""
    # Threads that stay, such as the one for deadlines, are there before.
    first = World(0, seed)
    assert first.homes[0].places[0].queue.submit(1, timeout=chaos.HANG_S).result() == 2
    first.close()
    before = surroundings()
    faulthandler.dump_traceback_later(chaos.HANG_S, exit=True)
    began = time.monotonic()
    world = World(seconds, seed)
    crew = [threading.Thread(target=Thread(world, f"thread {n}").run) for n in range(threads)]
    crew += [
        threading.Thread(target=event_loop, args=(world, f"task {n}", tasks)) for n in range(2)
    ]
    crew += [threading.Thread(target=killer, args=(world,))]
    crew += [threading.Thread(target=restarter, args=(world,))]
    for member in crew:
        member.start()
    memory = chaos.watch(world, quiet)
    faulthandler.dump_traceback_later(2 * chaos.HANG_S, exit=True)
    for member in crew:
        member.join()
    world.close()
    faulthandler.cancel_dump_traceback_later()
    total = world.total()
    answered = sum(total[outcome] for outcome in chaos.OUTCOMES)
    wrong = list(world.wrong)
    if total["submitted"] != answered:
        wrong.append(f"{total['submitted']} were submitted and {answered} answered")
    wrong += settled(before)
    gc.collect()
    early, late = max(memory[: max(len(memory) // 3, 1)], default=0), chaos.resident()
    if late > early + chaos.GROWTH:
        wrong.append(f"resident memory grew from {early >> 20} to {late >> 20} MiB")
    report = {name: total[name] for name in ("submitted", *chaos.OUTCOMES)}
    report |= {
        "seconds": round(time.monotonic() - began, 1),
        "restarts": dict(world.restarts),
        "workers": dict(world.losses),
        "rss_early_mib": early >> 20,
        "rss_end_mib": late >> 20,
    }
    return report, wrong


def event_loop(world, name, tasks):
    """A thread with an event loop full of client tasks."""

    async def run():
        await asyncio.gather(*(Task(world, f"{name}.{n}").run() for n in range(tasks)))

    asyncio.run(run())


def main(arguments):
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=8, help="in each of two event loops")
    args = parser.parse_args(arguments)
    report, wrong = run(args.seconds, args.seed, args.threads, args.tasks)
    for name, value in report.items():
        print(f"{name:14} {value:,}" if isinstance(value, int) else f"{name:14} {value}")
    for text in wrong[:20]:
        print("WRONG:", text, file=sys.stderr)
    return 1 if wrong else 0
