"""Many requests through each front: memory stays where it is, and nothing hangs.

    ONELANE_LEAK_REQUESTS=100000 pytest tests/test_leaks.py

runs the full count; by default a smaller one.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
from concurrent.futures import wait
from pathlib import Path

import pytest

import onelane

torch = pytest.importorskip("torch")

COUNT = int(os.environ.get("ONELANE_LEAK_REQUESTS", "5000"))
pytestmark = [
    pytest.mark.timeout(max(120, COUNT // 100)),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc"),
]

# What a front may grow by while it runs COUNT requests after it has been warmed up: a leak of one
# small object a request would be COUNT times 64 bytes at least, and the tensors here are 4 KiB.
ALLOWED = 4 * 2**20 + COUNT * 32


class MallInfo(ctypes.Structure):
    """What glibc says of its heaps, `struct mallinfo2`; mapped: by themselves, beside them."""

    _fields_ = [(f"unused_{at}", ctypes.c_size_t) for at in range(4)] + [
        ("mapped", ctypes.c_size_t),
        ("unused_5", ctypes.c_size_t),
        ("unused_6", ctypes.c_size_t),
        ("used", ctypes.c_size_t),
        ("unused_8", ctypes.c_size_t),
        ("unused_9", ctypes.c_size_t),
    ]


def allocated():
    """Return the bytes that are in use.

    Not what is resident: what earlier tests have freed would take in a leak unseen.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    libc.mallinfo2.restype = MallInfo
    said = libc.mallinfo2()
    return said.used + said.mapped


class Model:
    def note(self, x):
        return x

    def encode(self, texts):
        return [text + "!" for text in texts]

    def stream(self, n):
        yield from range(n)


def fronts(device, queue, lists, guarded):
    x = torch.zeros(1, 1024)

    def call(n):
        for _ in range(n):
            queue(x)

    def submit(n):
        for _ in range(n // 100):
            wait([queue.submit(x) for _ in range(100)], timeout=60)

    def cancel(n):
        for _ in range(n // 100):
            futures = [queue.submit(x) for _ in range(100)]
            for future in futures:
                future.cancel()
            wait(futures, timeout=60)

    def groups(n):
        for _ in range(n // 100):
            wait(queue.submit_many([x] * 100), timeout=60)

    def infer(n):
        async def main():
            for _ in range(n // 100):
                await asyncio.gather(*(queue.infer(x) for _ in range(100)))

        asyncio.run(main())

    def infer_cancelled(n):
        async def main():
            for _ in range(n // 100):
                tasks = [asyncio.create_task(queue.infer(x)) for _ in range(100)]
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())

    def errors(n):
        for _ in range(n):
            with pytest.raises(ZeroDivisionError):
                lists(0)

    def expired(n):
        for _ in range(n // 100):
            futures = [queue.submit(x, timeout=0) for _ in range(100)]
            wait(futures, timeout=60)

    def executor_call(n):
        for _ in range(n):
            device.call(int)

    def executor_submit(n):
        for _ in range(n // 100):
            wait([device.submit(int) for _ in range(100)], timeout=60)

    def executor_acall(n):
        async def main():
            for _ in range(n // 100):
                await asyncio.gather(*(device.acall(int) for _ in range(100)))

        asyncio.run(main())

    def try_submit(n):
        for _ in range(n // 100):
            wait([queue.try_submit(x) for _ in range(100)], timeout=60)

    def guard_call(n):
        for _ in range(n):
            guarded.note(x)

    def guard_acall(n):
        async def main():
            for _ in range(n // 100):
                await asyncio.gather(*(guarded.note.acall(x) for _ in range(100)))

        asyncio.run(main())

    def guard_options(n):
        note = guarded.note.options(timeout=60, priority="bulk")
        for _ in range(n):
            note(x)

    def guard_batch(n):
        for _ in range(n // 2):
            guarded.encode("a text")
        for _ in range(n // 40):
            guarded.encode(["a text"] * 20)

    def guard_stream(n):
        for _ in range(n // 50):
            assert len(list(guarded.stream(50))) == 50

    def guard_astream(n):
        async def main():
            for _ in range(n // 50):
                async for i in guarded.stream(1000):
                    if i == 49:
                        break

        asyncio.run(main())

    def keys(n):
        # Each its own batch key.
        for i in range(n):
            queue(x, i)

    found = locals()
    return {name: run for name, run in found.items() if callable(run) and name not in SHARED}


SHARED = ("device", "guarded", "queue", "lists", "x")
NAMES = [
    "call", "submit", "cancel", "groups", "infer", "infer_cancelled", "errors", "expired",
    "executor_call", "executor_submit", "executor_acall", "keys", "try_submit", "guard_call",
    "guard_acall", "guard_options", "guard_batch", "guard_stream", "guard_astream",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_memory_stays_where_it_is(name):
    with onelane.DeviceExecutor("cpu") as device:
        queue = onelane.BatchQueue(lambda x, n=0: x + 1, device)
        lists = onelane.BatchQueue(lambda xs: [1 / x for x in xs], device, requests=onelane.Items())
        guarded = onelane.guard(Model, device, batch={"encode": 8})
        guarded.encode(["one", "two", "three"])
        run = fronts(device, queue, lists, guarded)[name]
        run(max(COUNT // 4, 1000))
        before = allocated()
        objects = len(gc.get_objects())
        run(COUNT)
        grown = allocated() - before
        assert grown < ALLOWED, f"{grown} bytes in {COUNT} requests"
        # A queue remembers some thousand batch keys, whatever the number of requests.
        allowed = 30_000 if name == "keys" else 2_000
        assert len(gc.get_objects()) - objects < allowed
        stats = queue.stats()
        assert stats.waiting == stats.running == 0


def test_what_is_kept_is_seen_where_much_was_freed():
    freed = [torch.zeros(1, 1024) for _ in range(COUNT)]
    del freed
    before = allocated()
    kept = [torch.zeros(1, 1024) for _ in range(COUNT)]
    assert allocated() - before > ALLOWED
    assert kept


def test_making_and_dropping_queues_leaves_nothing():
    def once():
        with onelane.DeviceExecutor("cpu") as device:
            queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items())
            queue(1)

    for _ in range(20):
        once()
    threads = len(os.listdir("/proc/self/task"))
    before = allocated()
    for _ in range(100):
        once()
    assert len(os.listdir("/proc/self/task")) <= threads
    assert allocated() - before < 8 * 2**20


def test_references_to_inputs_and_results_go():
    queue = onelane.BatchQueue(lambda xs: xs, "cpu", requests=onelane.Items())
    thing = object()
    before = sys.getrefcount(thing)
    for _ in range(100):
        queue(thing)
        queue.submit(thing).result(30)
    queue.close()
    gc.collect()
    assert sys.getrefcount(thing) == before
