"""The batch queue on real PyTorch: batching, settings, one owner, limits, shutdown, re-entrancy."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

import onelane
from common import Hold, close

torch = pytest.importorskip("torch")
pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


# Numbers


@pytest.mark.parametrize("threads", [8, 16])
def test_many_threads_get_their_own_answers(device, mlp, threads):
    queue = onelane.BatchQueue(mlp, device)
    inputs = [torch.randn(i % 5 + 1, 64) for i in range(300)]
    with ThreadPoolExecutor(threads) as pool:
        for x, y in zip(inputs, pool.map(queue, inputs), strict=True):
            close(y, mlp(x))
    stats = queue.stats()
    assert stats.submitted == stats.completed == 300
    assert stats.cost == sum(len(x) for x in inputs)
    assert stats.batches < 300


def test_requests_that_wait_together_run_as_one_batch(device):
    sizes = []

    def model(x):
        sizes.append(len(x))
        return x * 2

    queue = onelane.BatchQueue(model, device, max_batch_size=8)
    inputs = [torch.full((i % 3 + 1, 2), float(i)) for i in range(8)]
    with Hold(device):
        futures = [queue.submit(x) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        assert torch.equal(future.result(30), x * 2)
    assert sum(sizes) == 15
    assert max(sizes) <= 8
    assert len(sizes) <= 3


def test_a_request_with_more_rows_than_a_batch_runs_alone_and_whole(device):
    sizes = []
    queue = onelane.BatchQueue(lambda x: sizes.append(len(x)) or x, device, max_batch_size=4)
    with Hold(device):
        futures = [queue.submit(torch.ones(n, 1)) for n in (2, 9, 2)]
    assert [len(f.result(30)) for f in futures] == [2, 9, 2]
    assert 9 in sizes


# Settings


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_size": 0},
        {"capacity": 0},
        {"max_batch_cost": 0},
        {"max_wait": -1},
    ],
)
def test_bad_settings_are_named(device, mlp, settings):
    with pytest.raises(ValueError, match="|".join(settings)):
        onelane.BatchQueue(mlp, device, **settings)


def test_bad_priorities_are_named(device, mlp):
    with pytest.raises(ValueError, match="interactive"):
        onelane.BatchQueue(mlp, device)(torch.ones(1, 64), priority="high")


# One owner


def test_a_factorys_model_lives_and_dies_on_the_worker(device):
    where = []

    class Model:
        def __init__(self):
            where.append(threading.get_ident())

        def __call__(self, x):
            where.append(threading.get_ident())
            return x

        def __del__(self):
            where.append(threading.get_ident())

    queue = onelane.BatchQueue.from_factory(Model, device)
    queue(torch.ones(1))
    queue.close()
    worker = device.call(threading.get_ident)
    assert where == [worker] * 3


def test_inputs_are_dropped_when_their_request_is_answered(device):
    class Thing:
        pass

    queue = onelane.BatchQueue(lambda xs: [1] * len(xs), device, requests=onelane.Items())
    thing = Thing()
    ref = weakref.ref(thing)
    future = queue.submit(thing)
    del thing
    assert future.result(30) == 1
    device.call(int)
    gc.collect()
    assert ref() is None


def test_modules_for_two_workers_are_two():
    seen = set()
    both = threading.Barrier(2)

    class Model(torch.nn.Module):
        def forward(self, x):
            both.wait(30)
            seen.add(id(self))
            return x

    with onelane.DeviceExecutor("cpu", workers=2) as device:
        queue = onelane.BatchQueue(Model(), device, requests=onelane.Each())
        wait([queue.submit(torch.ones(1)) for _ in range(2)], timeout=30)
    assert len(seen) == 2


def test_modes_and_context_of_the_caller(device):
    variable = contextvars.ContextVar("variable")

    def model(x):
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return x, [(*modes, torch.is_autocast_enabled("cpu"), variable.get(None))] * len(x)

    queue = onelane.BatchQueue(model, device)
    x = torch.ones(1, 1, requires_grad=True)
    variable.set("here")
    y, seen = queue(x)
    assert seen == [(True, False, False, "here")]
    assert not y.requires_grad
    futures = []
    with Hold(device):
        futures.append(queue.submit(x))
        with torch.no_grad():
            futures.append(queue.submit(x))
        with torch.inference_mode(), torch.autocast("cpu"):
            futures.append(queue.submit(x))
    seen = [future.result(30)[1][0][:3] for future in futures]
    assert seen == [(True, False, False), (False, False, False), (False, True, True)]
    assert not futures[2].result()[0].is_inference()


# Limits


def test_deadlines(device):
    ran = []
    queue = onelane.BatchQueue(lambda xs: ran.extend(xs) or xs, device, requests=onelane.Items())
    with Hold(device):
        late = queue.submit("late", timeout=0.0)
        with pytest.raises(onelane.DeadlineExceeded):
            queue("call", timeout=0.02)
        with pytest.raises(TimeoutError):
            queue("instant", deadline=time.monotonic() - 1)
    assert isinstance(late.exception(30), onelane.DeadlineExceeded)
    assert queue("ok", timeout=30) == "ok"
    assert ran == ["ok"]
    assert queue.stats().expired == 3


def test_a_call_does_not_wait_longer_than_its_timeout_for_a_batch_that_runs(device):
    release = threading.Event()
    queue = onelane.BatchQueue(lambda xs: [release.wait(30)], device, requests=onelane.Items())
    with pytest.raises(onelane.DeadlineExceeded, match="running"):
        queue(1, timeout=0.05)
    release.set()
    assert queue(2) is True


def test_priorities(device):
    order = []
    queue = onelane.BatchQueue(
        lambda xs: order.extend(xs) or xs, device, max_batch_size=1, requests=onelane.Items()
    )
    with Hold(device):
        futures = [queue.submit(p, priority=p) for p in ("bulk", "normal", "interactive")]
    wait(futures, timeout=30)
    assert order == ["interactive", "normal", "bulk"]


def test_a_full_queue_makes_callers_wait_and_refuses_at_the_deadline(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, capacity=2, requests=onelane.Items())
    with ThreadPoolExecutor(4) as pool:
        with Hold(device):
            futures = [queue.submit(i) for i in range(2)]
            with pytest.raises(onelane.QueueFull):
                queue.submit(9, timeout=0.02)
            waiting = [pool.submit(queue, i) for i in range(2, 6)]
            with pytest.raises(onelane.RequestTooLarge, match="capacity"):
                queue.submit_many(range(3))
        assert [f.result(30) for f in futures + waiting] == list(range(6))


def test_groups_are_accepted_whole(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, capacity=3, requests=onelane.Items())
    assert queue.submit_many([]) == []
    with Hold(device):
        queue.submit(0)
        with pytest.raises(onelane.QueueFull):
            queue.submit_many(range(3), timeout=0.02)
        assert queue.stats().waiting == 1
    assert [f.result(30) for f in queue.submit_many(range(3))] == [0, 1, 2]


def test_map_keeps_order_and_does_not_read_ahead_of_its_window(device):
    read = []

    def source():
        for i in range(1000):
            read.append(i)
            yield torch.full((1, 1), float(i))

    queue = onelane.BatchQueue(lambda x: x + 1, device, max_batch_size=4)
    results = queue.map(source())
    assert [next(results).item() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert len(read) < 50
    results.close()
    assert [y.item() for y in queue.map(torch.zeros(3, 1, 1))] == [1, 1, 1]


# Shutdown


def test_close_runs_what_was_accepted_and_refuses_the_rest(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items())
    with Hold(device):
        futures = [queue.submit(i) for i in range(20)]
        assert not queue.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="closed"):
            queue(1)
    queue.close()
    assert [f.result(0) for f in futures] == list(range(20))
    for use in (lambda: queue(1), lambda: queue.submit(1), lambda: queue.submit_many([1])):
        with pytest.raises(onelane.QueueClosed):
            use()
    assert not queue.health().ok


def test_giving_up_what_waits(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items())
    with ThreadPoolExecutor(1) as pool, Hold(device):
        futures = [queue.submit(i) for i in range(20)]
        blocked = pool.submit(queue, 1)
        while queue.stats().waiting < 21:
            pass
        queue.shutdown(wait=False, cancel_futures=True)
        for future in [*futures, blocked]:
            assert isinstance(future.exception(30), onelane.QueueClosed)
    with onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items()) as other:
        assert other(1) == 1


def test_a_dropped_queue_runs_what_was_accepted(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items())
    with Hold(device):
        futures = [queue.submit(i) for i in range(20)]
        del queue
        gc.collect()
    assert [f.result(30) for f in futures] == list(range(20))


def test_shutting_the_executor_down_closes_its_queues():
    device = onelane.DeviceExecutor("cpu")
    queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items())
    device.shutdown()
    with pytest.raises(onelane.QueueClosed):
        queue(1)


# On the worker


def test_a_queue_used_from_a_model_of_the_same_device_runs_inline(device):
    inner = onelane.BatchQueue(lambda xs: [x + 1 for x in xs], device, requests=onelane.Items())
    outer = onelane.BatchQueue(
        lambda xs: [inner(x) + inner.submit(x).result(5) for x in xs],
        device,
        requests=onelane.Items(),
    )
    assert outer(1) == 4
    assert device.call(inner, 5) == 6


def test_a_model_that_waits_for_itself_is_told_at_once(device):
    queue = None

    def model(xs):
        return [queue(x - 1) if x else 0 for x in xs]

    queue = onelane.BatchQueue(model, device, requests=onelane.Items())
    with pytest.raises(onelane.WouldDeadlock):
        queue(1)

    def submitting(xs):
        return [again.submit(x - 1).result(5) if x else 0 for x in xs]

    again = onelane.BatchQueue(submitting, device, requests=onelane.Items())
    with pytest.raises(onelane.WouldDeadlock):
        again(1)


# Room and time


def test_who_waits_for_room_keeps_his_place(device):
    """The main thread looks for signals while it waits, and does not go behind who came later."""
    order, many = [], 12
    queue = onelane.BatchQueue(
        lambda xs: order.extend(xs) or xs,
        device,
        max_batch_size=1,
        requests=onelane.Items(),
        capacity=1,
    )
    with Hold(device) as hold:
        futures = [queue.submit("first")]

        def come_later():
            # The main thread has been in line for some of its looks at signals.
            assert soon(lambda: queue.stats().waiting_for_room == 1)
            threads = [threading.Thread(target=queue, args=(i,)) for i in range(many)]
            for thread in threads:
                thread.start()
            assert soon(lambda: queue.stats().waiting_for_room == 1 + many)
            # Longer than such a look: only then could it lose its place.
            threading.Event().wait(0.2)
            hold.release.set()
            for thread in threads:
                thread.join(30)

        later = threading.Thread(target=come_later)
        later.start()
        futures.append(queue.submit("main"))
    wait(futures, timeout=30)
    later.join(30)
    assert order[:2] == ["first", "main"]
    assert queue.stats().refused == 0


def test_a_group_that_waits_for_room_keeps_its_place(device):
    order = []
    queue = onelane.BatchQueue(
        lambda xs: order.extend(xs) or xs,
        device,
        max_batch_size=1,
        requests=onelane.Items(),
        capacity=3,
    )
    with Hold(device) as hold, ThreadPoolExecutor(8) as pool:
        first = queue.submit_many(["first"] * 3)
        group = pool.submit(queue.submit_many, ["group"] * 3)
        assert soon(lambda: queue.stats().waiting_for_room == 3)
        later = [pool.submit(queue, i) for i in range(4)]
        assert soon(lambda: queue.stats().waiting_for_room == 7)
        hold.release.set()
        wait([*first, *group.result(30), *later], timeout=30)
    assert order[:6] == ["first"] * 3 + ["group"] * 3


@pytest.mark.parametrize("end", ["closed", "stopped"])
def test_a_task_whose_loop_is_gone_keeps_nobody_out(device, end):
    queue = onelane.BatchQueue(
        lambda xs: xs, device, max_batch_size=1, requests=onelane.Items(), capacity=1
    )
    with Hold(device):
        waiting = queue.submit(1)
        loop = asyncio.new_event_loop()

        async def go():
            task = loop.create_task(queue.infer(2))
            while not queue.stats().waiting_for_room:
                await asyncio.sleep(0)
            return task

        task = loop.run_until_complete(go())
        if end == "closed":
            loop.close()
    assert waiting.result(30) == 1
    assert queue.submit(3, timeout=30).result(30) == 3
    assert not task.done()
    del task
    loop.close()


def test_a_deadline_is_told_when_it_passes_and_its_room_is_free(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items(), capacity=2)
    with Hold(device):
        futures = [queue.submit(i, timeout=0.05) for i in range(2)]
        # The worker is busy until this block ends.
        assert not wait(futures, timeout=30).not_done
        for future in futures:
            with pytest.raises(onelane.DeadlineExceeded):
                future.result(0)
        assert queue.stats().expired == 2
        assert queue.stats().waiting == 0
        third = queue.submit(3)
        with pytest.raises(TimeoutError):
            next(iter(queue.map([4], timeout=0.05)))
        fourth = queue.submit(5)
        with pytest.raises(TimeoutError):
            queue.map([6], timeout=0.05)

        async def late():
            await queue.infer(7, timeout=0.05)

        with pytest.raises(onelane.DeadlineExceeded):
            asyncio.run(late())
    assert (third.result(30), fourth.result(30)) == (3, 5)


def soon(is_so):
    """Look until it is so, for 30 seconds."""
    end = time.monotonic() + 30
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


# Statistics


def test_statistics_by_class_and_of_what_waits_for_room(device):
    queue = onelane.BatchQueue(
        lambda xs: xs, device, max_batch_size=1, requests=onelane.Items(), capacity=3
    )
    with ThreadPoolExecutor(1) as pool, Hold(device):
        futures = [queue.submit(i, priority=p) for i, p in enumerate(("bulk", "bulk", "normal"))]
        late = pool.submit(queue, 3)
        assert soon(lambda: queue.stats().waiting_for_room == 1)
        stats = queue.stats()
        assert {name: one.waiting for name, one in stats.classes.items()} == {
            "interactive": 0,
            "normal": 1,
            "bulk": 2,
        }
        assert stats.classes["bulk"].oldest_wait_s > 0
        assert stats.classes["interactive"].oldest_wait_s == 0
        assert stats.submitted == 3
    wait([*futures, late], timeout=30)
    stats = queue.stats()
    assert [stats.classes[name].wait_s.count for name in ("interactive", "normal", "bulk")] == [
        0,
        2,
        2,
    ]
    assert stats.waiting_for_room == 0


def test_statistics_tell_what_running_out_of_memory_has_taught(device):
    def model(xs):
        if len(xs) > 4:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")
        return xs

    queue = onelane.BatchQueue(model, device, max_batch_size=16, requests=onelane.Items())
    with Hold(device):
        futures = queue.submit_many(range(16))
    assert [f.result(30) for f in futures] == list(range(16))
    stats = queue.stats()
    assert stats.memory_splits > 0
    assert (stats.ceilings, stats.lowest_ceiling) == (1, 4)


def test_histograms_and_classes(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, onelane.Items(), max_batch_size=4)
    with Hold(device):
        futures = [queue.submit(i, priority="bulk" if i % 2 else "normal") for i in range(8)]
        waiting = queue.stats().classes
        assert (waiting["bulk"].waiting, waiting["normal"].waiting) == (4, 4)
        assert waiting["bulk"].oldest_wait_s > 0
    assert [future.result(30) for future in futures] == list(range(8))
    stats = queue.stats()
    histograms = stats.histograms
    assert histograms.batch_size.count == stats.batches == 2
    assert histograms.batch_size.sum == pytest.approx(8, rel=0.02)
    assert dict(histograms.batch_size.buckets)[2.0] == 0
    assert dict(histograms.batch_size.buckets)[4.0] == 2
    assert histograms.batch_cost.sum == pytest.approx(8, rel=0.02)
    assert histograms.service_s.count == 2
    assert {name: one.count for name, one in histograms.wait_s.items()} == {
        "interactive": 0, "normal": 4, "bulk": 4,
    }  # fmt: skip
    for one in (histograms.service_s, *histograms.wait_s.values()):
        bounds, counts = zip(*one.buckets, strict=True)
        assert list(bounds) == sorted(bounds)
        assert list(counts) == sorted(counts)
        assert counts[-1] == one.count
    assert device.stats().histograms.service_s.count >= 1
    assert "histograms" not in repr(stats)


def test_a_model_that_was_given_ends_on_the_worker():
    ended = []

    class Model:
        def __call__(self, items):
            return items

        def __del__(self):
            ended.append(threading.get_ident())

    with onelane.DeviceExecutor("cpu") as executor:
        worker = executor.call(threading.get_ident)
        for _ in range(50):
            # This thread waits for the queue's end, and comes back to the interpreter just then.
            with onelane.BatchQueue(Model(), executor, onelane.Items(), factory=False) as queue:
                assert queue(1) == 1
            del queue
    assert ended == [worker] * 50
