#!/usr/bin/env python3
"""Chaos: threads and tasks do everything at once to several queues; nothing may be lost.

    python tests/chaos.py [--requests 1000000] [--seed 1] [--seconds 600]
    python tests/chaos.py --isolate [--seconds 600]     # in child processes, which are killed

Threads and tasks call, submit, submit groups, map, infer, cancel, set timeouts and deadlines, and
call guarded objects and executors, while models are slow or raise, and queues and executors are
shut down, drained or not, and made anew. Each request has a number, and its response is computed
from it, so that a response, or an exception, that belongs to another request is seen. At the end

    submitted = completed + errors + cancelled + expired + refused

must hold, each future must have been resolved once, every queue's own statistics must add up, and
resident memory must not have grown. Exit status 1 otherwise, or when nothing is answered for a
minute: then all stacks are printed. The operations of one seed are the same each time, their
interleaving is not.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import itertools
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path

import torch

import onelane
from chaos_kinds import KINDS, Guarded, Poison, Wrong

# Without an answer for so long, something hangs.
HANG_S = 60.0
# What resident memory may grow by between the first third of a run and its end.
GROWTH = 64 * 2**20
OUTCOMES = ("completed", "errors", "cancelled", "expired", "refused")


class Place:
    """A queue that is shut down and made anew, on an executor that is too."""

    def __init__(self, kind, home):
        self.kind, self.home = kind, home
        self.queue = kind.make(home.device)


class Home:
    """An executor that is shut down and made anew, with its queues."""

    def __init__(self, kinds, workers):
        self.workers = workers
        self.device = onelane.DeviceExecutor("cpu", workers=workers)
        self.guarded = onelane.guard(Guarded(), self.device)
        self.places = [Place(kind, self) for kind in kinds]

    def restart(self, rng):
        old = self.device
        self.device = onelane.DeviceExecutor("cpu", workers=self.workers)
        self.guarded = onelane.guard(Guarded(), self.device)
        for place in self.places:
            place.queue = place.kind.make(self.device)
        old.shutdown(cancel_futures=rng.random() < 0.5)


class World:
    """All there is, and what has come of it."""

    def __init__(self, requests, seconds, seed):
        self.seed, self.limit, self.end = seed, requests, time.monotonic() + seconds
        self.homes = [Home(KINDS[:4], 1), Home(KINDS[4:], 1), Home((KINDS[0], KINDS[4]), 2)]
        self.numbers = itertools.count(1)
        self.stop = threading.Event()
        self.wrong = []
        self.counts = []
        self.restarts = Counter()

    def counter(self):
        count = Counter()
        self.counts.append(count)
        return count

    def total(self):
        return sum((Counter(dict(count)) for count in self.counts), Counter())

    def place(self, rng):
        return rng.choice(rng.choice(self.homes).places)

    def fail(self, text):
        self.wrong.append(text)
        self.stop.set()

    def running(self):
        return not self.stop.is_set()


class Client:
    """What threads and tasks have in common: numbers, counting, looking at outcomes."""

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.rng = random.Random(f"{world.seed} {name}")
        self.count = world.counter()

    def new(self, place):
        number = next(self.world.numbers)
        rows = self.rng.choice((1, 1, 1, 2, 5))
        self.count["submitted"] += 1
        return number, rows, place.kind.request(number, rows)

    def limits(self):
        terms = {}
        if self.rng.random() < 0.1:
            terms["timeout"] = self.rng.choice((0.0, 0.0005, 0.005, 30.0))
        if self.rng.random() < 0.05:
            terms["deadline"] = time.monotonic() + self.rng.choice((-1.0, 0.001, 30.0))
        if self.rng.random() < 0.2:
            terms["priority"] = self.rng.choice(("interactive", "normal", "bulk"))
        return terms

    def answered(self, response, place, number, rows):
        if not place.kind.is_right(response, number, rows):
            self.world.fail(f"{self.name}: request {number} of {rows} rows got {response!r}")
        if number % 97 == 0:
            self.world.fail(f"{self.name}: request {number} should have failed")
        self.count["completed"] += 1

    def failed(self, error, number):
        """Count what came instead of a response."""
        if isinstance(error, Poison):
            if error.args[0][:1] != [number] or number % 97:
                self.world.fail(f"{self.name}: request {number} got the exception {error!r}")
            self.count["errors"] += 1
        elif isinstance(error, (CancelledError, asyncio.CancelledError)):
            self.count["cancelled"] += 1
        elif isinstance(error, (onelane.DeadlineExceeded, asyncio.TimeoutError)):
            self.count["expired"] += 1
        elif isinstance(error, (onelane.QueueClosed, onelane.QueueFull)) or (
            isinstance(error, RuntimeError) and "shutdown" in str(error)
        ):
            self.count["refused"] += 1
        else:
            self.world.fail(f"{self.name}: request {number} got {type(error).__name__}: {error}")
            self.count["errors"] += 1


class Thread(Client):
    """A client thread."""

    def ways(self):
        return (
            (self.call, 50), (self.submit, 15), (self.group, 8), (self.map, 2),
            (self.guard, 6), (self.execute, 6),
        )  # fmt: skip

    def run(self):
        names, weights = zip(*self.ways(), strict=True)
        try:
            while self.world.running():
                self.rng.choices(names, weights)[0]()
        except BaseException as error:
            self.world.fail(f"{self.name}: {type(error).__name__}: {error}")
            raise

    def call(self):
        place = self.world.place(self.rng)
        for _ in range(10):
            number, rows, x = self.new(place)
            try:
                response = place.queue(x, **self.limits())
            except Exception as error:
                self.failed(error, number)
            else:
                self.answered(response, place, number, rows)

    def watch(self, future, number):
        """Have it seen when a future is resolved twice."""
        seen = itertools.count()

        def called(_):
            if next(seen):
                self.world.fail(f"{self.name}: the future of request {number} was resolved twice")

        future.add_done_callback(called)

    def collect(self, future, place, number, rows):
        if self.rng.random() < 0.1:
            with suppress(FutureTimeout, CancelledError, Exception):
                future.result(self.rng.choice((0.0, 0.001)))
        if self.rng.random() < 0.1:
            future.cancel()
        try:
            response = future.result(HANG_S)
        except (Exception, CancelledError) as error:
            if not future.done():
                self.world.fail(f"{self.name}: the future of request {number} was not resolved")
            self.failed(error, number)
        else:
            self.answered(response, place, number, rows)

    def submit(self):
        place = self.world.place(self.rng)
        futures = []
        for _ in range(self.rng.randrange(1, 20)):
            number, rows, x = self.new(place)
            try:
                future = place.queue.submit(x, **self.limits())
            except Exception as error:
                self.failed(error, number)
                continue
            if self.rng.random() < 0.5:
                self.watch(future, number)
            if self.rng.random() < 0.1:
                future.cancel()
            futures.append((future, place, number, rows))
        if self.rng.random() < 0.3:
            wait([future for future, *_ in futures], timeout=HANG_S)
        for future, *request in futures:
            self.collect(future, *request)

    def group(self):
        place = self.world.place(self.rng)
        requests = [self.new(place) for _ in range(self.rng.randrange(1, 30))]
        try:
            futures = place.queue.submit_many([x for *_, x in requests], **self.limits())
        except Exception as error:
            # All or none.
            for number, *_ in requests:
                self.failed(error, number)
            return
        for future, (number, rows, _) in zip(futures, requests, strict=True):
            self.collect(future, place, number, rows)

    def map(self):
        place = self.world.place(self.rng)
        requests = [self.new(place) for _ in range(self.rng.randrange(1, 40))]
        queue, responses = place.queue, None
        waiting = list(requests)
        try:
            responses = queue.map([x for *_, x in requests])
            for response in responses:
                number, rows, _ = waiting.pop(0)
                self.answered(response, place, number, rows)
        except Exception as error:
            # The first that failed, or a refusal; the rest is cancelled, or was not submitted.
            number, *_ = waiting.pop(0)
            self.failed(error, number)
            self.count["cancelled"] += len(waiting)

    def guard(self):
        guarded = self.world.homes[0].guarded
        number = next(self.world.numbers)
        self.count["submitted"] += 1
        try:
            response = guarded.work(number)
        except Exception as error:
            self.failed(error, number)
        else:
            self.check(response, number, number * 5)

    def execute(self):
        device = self.rng.choice(self.world.homes).device
        number = next(self.world.numbers)
        self.count["submitted"] += 1
        try:
            if self.rng.random() < 0.5:
                response = device.call(Guarded().work, number)
            else:
                future: Future = device.submit(Guarded().work, number)
                if self.rng.random() < 0.1:
                    future.cancel()
                response = future.result(HANG_S)
        except (Exception, CancelledError) as error:
            self.failed(error, number)
        else:
            self.check(response, number, number * 5)

    def check(self, response, number, expected):
        if response != expected:
            self.world.fail(f"{self.name}: call {number} got {response!r}")
        self.count["completed"] += 1


class Task(Client):
    """A client task."""

    async def run(self):
        try:
            while self.world.running():
                await self.rng.choice((self.infer, self.infer, self.several, self.call))()
        except BaseException as error:
            self.world.fail(f"{self.name}: {type(error).__name__}: {error}")
            raise

    async def one(self, place):
        number, rows, x = self.new(place)
        way = self.rng.random()
        ask = place.queue.infer(x, **self.limits())
        try:
            if way < 0.05:
                task = asyncio.ensure_future(ask)
                await asyncio.sleep(self.rng.choice((0, 0, 0.001)))
                task.cancel()
                response = await task
            elif way < 0.15:
                response = await asyncio.wait_for(ask, self.rng.choice((0.001, 0.01, 30.0)))
            else:
                response = await ask
        except (Exception, asyncio.CancelledError) as error:
            self.failed(error, number)
        else:
            self.answered(response, place, number, rows)

    async def infer(self):
        place = self.world.place(self.rng)
        for _ in range(10):
            await self.one(place)

    async def several(self):
        place = self.world.place(self.rng)
        await asyncio.gather(*(self.one(place) for _ in range(self.rng.randrange(1, 30))))

    async def call(self):
        device = self.rng.choice(self.world.homes).device
        number = next(self.world.numbers)
        self.count["submitted"] += 1
        try:
            response = await device.acall(Guarded().work, number)
        except (Exception, asyncio.CancelledError) as error:
            self.failed(error, number)
        else:
            if response != number * 5:
                self.world.fail(f"{self.name}: call {number} got {response!r}")
            self.count["completed"] += 1


def event_loop(world, name, tasks):
    """A thread with an event loop full of client tasks."""

    async def run():
        await asyncio.gather(*(Task(world, f"{name}.{n}").run() for n in range(tasks)))

    asyncio.run(run())


def restarter(world):
    """Shuts queues and executors down, and makes them anew."""
    rng = random.Random(f"{world.seed} restarter")
    try:
        while not world.stop.wait(rng.uniform(0.02, 0.3)):
            if rng.random() < 0.15:
                rng.choice(world.homes).restart(rng)
                world.restarts["executors"] += 1
                continue
            place = world.place(rng)
            old = place.queue
            place.queue = place.kind.make(place.home.device)
            if not old.shutdown(cancel_futures=rng.random() < 0.5, timeout=HANG_S):
                raise Wrong("a queue was not shut down in time")
            world.restarts["queues"] += 1
    except BaseException as error:
        world.fail(f"restarter: {type(error).__name__}: {error}")
        raise


def adds_up(stats):
    """Whether a queue's own counters account for all that was submitted to it."""
    ended = stats.completed + stats.failed + stats.cancelled + stats.expired + stats.closed
    return stats.submitted == ended + stats.waiting + stats.running


def resident():
    """Bytes of resident memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def watch(world, quiet):
    """Until the end: has somebody been answered, do the queues' statistics add up."""
    memory, last, answered_at = [], -1, time.monotonic()
    while not world.stop.wait(0.25):
        total = world.total()
        answered = sum(total[outcome] for outcome in OUTCOMES)
        now = time.monotonic()
        if answered != last:
            last, answered_at = answered, now
            faulthandler.dump_traceback_later(HANG_S, exit=True)
        memory.append(resident())
        if not quiet and len(memory) % 40 == 0:
            print(f"{answered:,} answered, {memory[-1] >> 20} MiB", flush=True)
        for home in world.homes:
            for place in home.places:
                stats = place.queue.stats()
                if not adds_up(stats):
                    world.fail(f"the statistics do not add up: {stats}")
        if now - answered_at > HANG_S:
            raise Wrong("nothing is answered")
        if total["submitted"] >= world.limit or now >= world.end:
            world.stop.set()
    return memory


def run(requests, seconds, seed, threads=12, tasks=20, quiet=False):
    """Run it; returns the totals and a list of what went wrong."""
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    began = time.monotonic()
    world = World(requests, seconds, seed)
    crew = [threading.Thread(target=Thread(world, f"thread {n}").run) for n in range(threads)]
    crew += [
        threading.Thread(target=event_loop, args=(world, f"task {n}", tasks)) for n in range(2)
    ]
    crew.append(threading.Thread(target=restarter, args=(world,)))
    for member in crew:
        member.start()
    memory = watch(world, quiet)
    # Everybody has to come back: who does not is found by the dump that this arms.
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    for member in crew:
        member.join()
    for home in world.homes:
        for place in home.places:
            place.queue.close()
        home.device.shutdown()
    faulthandler.cancel_dump_traceback_later()
    total = world.total()
    answered = sum(total[outcome] for outcome in OUTCOMES)
    wrong = list(world.wrong)
    if total["submitted"] != answered:
        wrong.append(f"{total['submitted']} were submitted and {answered} answered")
    gc.collect()
    early = max(memory[: max(len(memory) // 3, 1)], default=0)
    late = resident()
    if late > early + GROWTH:
        wrong.append(f"resident memory grew from {early >> 20} to {late >> 20} MiB")
    report = {name: total[name] for name in ("submitted", *OUTCOMES)}
    report |= {
        "seconds": round(time.monotonic() - began, 1),
        "restarts": dict(world.restarts),
        "rss_early_mib": early >> 20,
        "rss_end_mib": late >> 20,
    }
    return report, wrong


def main():
    if "--isolate" in sys.argv[1:]:
        import chaos_isolate

        return chaos_isolate.main([arg for arg in sys.argv[1:] if arg != "--isolate"])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--tasks", type=int, default=20, help="in each of two event loops")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report, wrong = run(args.requests, args.seconds, args.seed, args.threads, args.tasks)
    for name, value in report.items():
        print(f"{name:14} {value:,}" if isinstance(value, int) else f"{name:14} {value}")
    for text in wrong[:20]:
        print("WRONG:", text, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
