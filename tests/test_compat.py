"""The original's interface, with its faults gone."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest

import onelane
from onelane import compat

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def queue():
    queue = compat.MPSBatchQueue(device="cpu", batch_timeout_ms=10_000)
    queue.start()
    yield queue
    queue.stop()


def test_eight_threads_of_an_mlp(queue):
    torch.manual_seed(0)
    mlp = torch.nn.Sequential(
        torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 128)
    ).eval()
    inputs = [torch.randn(4, 256) for _ in range(80)]
    with torch.no_grad(), ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(lambda x: queue.submit(x, mlp), inputs))
        for x, future in zip(inputs, futures, strict=True):
            torch.testing.assert_close(future.result(30), mlp(x), rtol=1e-4, atol=1e-4)


def test_one_tensor_is_given_as_it_is_and_several_as_a_list(queue):
    assert queue.submit(torch.ones(2), lambda x: x.sum()).result(30) == 2
    total = queue.submit((torch.ones(2), torch.ones(3)), lambda xs: sum(x.sum() for x in xs))
    assert total.result(30) == 5


def test_an_error_arrives_with_type_and_text_and_spares_the_others(queue):
    ran = []

    def fail(_x):
        raise ValueError("Intentional test error")

    futures = [queue.submit(i, fail if i == 3 else lambda i: ran.append(i) or i) for i in range(8)]
    with pytest.raises(ValueError, match="^Intentional test error$"):
        futures[3].result(30)
    wait(futures, timeout=30)
    # Each ran once: the failure of one does not have the others run again.
    assert ran == [0, 1, 2, 4, 5, 6, 7]


def test_stop_runs_all_twenty_and_start_starts_again(queue):
    for _ in range(2):
        queue.start()
        queue.start()
        assert queue.is_running
        futures = [queue.submit(torch.ones(1), lambda x: x + 1) for _ in range(20)]
        queue.stop()
        queue.stop()
        assert not queue.is_running
        assert all(f.done() and f.result().item() == 2 for f in futures)
    assert queue.submitted_requests == queue.completed_requests == 40
    assert queue.pending_requests == 0


def test_submit_after_stop_raises_at_once(queue):
    queue.stop()
    with pytest.raises(RuntimeError, match="start"):
        queue.submit(torch.ones(1), torch.relu)
    with pytest.raises(RuntimeError, match="not running"):
        compat.MPSBatchQueue(device="cpu").submit(1, int)


def test_a_cancelled_future_harms_nobody(queue):
    hold = threading.Event()
    held = queue.submit(0, lambda _: hold.wait(30))
    futures = [queue.submit(i, int) for i in range(10)]
    cancelled = [f for f in futures[::2] if f.cancel()]
    hold.set()
    assert held.result(30)
    for i, future in enumerate(futures):
        if future in cancelled:
            with pytest.raises(CancelledError):
                future.result(30)
        else:
            assert future.result(30) == i
    assert queue.submit(7, int).result(30) == 7


def test_nothing_is_lost_between_submit_and_stop(queue):
    accepted, barrier = [], threading.Barrier(5)

    def submit():
        barrier.wait(30)
        while True:
            try:
                accepted.append(queue.submit(1, int))
            except RuntimeError:
                return

    for _ in range(10):
        queue.start()
        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        barrier.wait(30)
        queue.stop()
        for thread in threads:
            thread.join(30)
    assert all(future.done() for future in accepted)
    assert queue.submitted_requests == len(accepted) == queue.completed_requests


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers(workers):
    with compat.MPSBatchQueue(1, workers, 0, device="cpu") as queue:
        assert (queue.batch_size, queue.num_workers) == (1, workers)
        all_of_them = threading.Barrier(workers)
        futures = [queue.submit(None, lambda _: all_of_them.wait(30)) for _ in range(workers)]
        assert sorted(future.result(30) for future in futures) == list(range(workers))


@pytest.mark.parametrize("settings", [(0, 1, 1), (8, 0, 1), (8, 4, 1), (8, 1, -1)])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="batch_size|num_workers|batch_timeout_ms"):
        compat.MPSBatchQueue(*settings)


def test_the_processs_queue():
    first = compat.configure_batch_queue(2, 1, 0, device="cpu")
    assert compat.get_mps_batch_queue() is first
    first.start()
    second = compat.configure_batch_queue(4, 1, 0, device="cpu")
    assert compat.get_mps_batch_queue() is second
    assert not first.is_running
    assert second.is_running
    assert second.submit(3, int).result(30) == 3
    second.stop()


def test_a_timeout_delays_nothing_and_each_is_answered_when_it_is_done(queue):
    # The batch timeout of the fixture is ten seconds, and a batch may have eight operations.
    answered = threading.Event()
    first = queue.submit(1, int)
    second = queue.submit(2, lambda x: (answered.wait(30), x)[1])
    assert first.result(5) == 1
    assert not second.done()
    answered.set()
    assert second.result(30) == 2


def test_pending_is_what_waits(queue):
    started, release = threading.Event(), threading.Event()
    running = queue.submit(0, lambda _: (started.set(), release.wait(30)))
    assert started.wait(30)
    waiting = [queue.submit(i, int) for i in range(3)]
    assert queue.pending_requests == 3
    assert waiting[0].cancel()
    assert queue.pending_requests == 2
    release.set()
    wait([running, *waiting], timeout=30)
    assert queue.pending_requests == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_operation_may_stop_the_queue_wait_and_submit(workers):
    queue = compat.BatchQueue(batch_size=4, num_workers=workers, device="cpu")
    queue.start()
    inner = queue.submit(20, lambda x: queue.submit(x, lambda y: y + 1).result(30))
    assert inner.result(30) == 21
    assert queue.submit(3, lambda x: (queue.stop(), x)[1]).result(30) == 3
    assert not queue.is_running
    queue.start()
    assert queue.submit(4, int).result(30) == 4
    queue.stop()


def test_two_stops_at_a_time_both_wait(queue):
    release, started = threading.Event(), threading.Event()
    running = queue.submit(5, lambda x: (started.set(), release.wait(30), queue.stop(), x)[3])
    assert started.wait(30)
    with ThreadPoolExecutor(2) as pool:
        stops = [pool.submit(queue.stop) for _ in range(2)]
        release.set()
        wait(stops, timeout=30)
    assert running.result(30) == 5


def test_the_callers_modes_are_carried(queue):
    weight = torch.ones(1, requires_grad=True)
    with torch.inference_mode():
        future = queue.submit(weight, lambda x: (x * 2).is_inference())
    assert future.result(30)
    assert queue.submit(weight, lambda x: (x * 2).requires_grad).result(30)


def test_batch_inference_has_the_device_alone():
    inside = []
    model = torch.nn.Linear(4, 2).eval()

    def client(_):
        with compat.batch_inference(batch_size=8, device="cpu") as queue, torch.no_grad():
            inside.append(1)
            assert len(inside) == 1
            y = model(torch.ones(3, 4))
            assert queue.submit(torch.ones(3, 4), model).result(30).shape == (3, 2)
            inside.pop()
        assert not queue.is_running
        return y

    with ThreadPoolExecutor(8) as pool:
        assert all(y.shape == (3, 2) for y in pool.map(client, range(64)))
    with pytest.raises(ValueError, match="num_workers=2"), compat.batch_inference(num_workers=2):
        pass


def test_the_names_of_the_original():
    import inspect

    parameters = list(inspect.signature(compat.BatchQueue).parameters)
    assert parameters[:3] == ["batch_size", "num_workers", "batch_timeout_ms"]
    assert {"BatchQueue", "batch_inference", "configure_batch_queue"} <= set(compat.__all__)


@pytest.mark.parametrize(
    "name", ["MPSBatchQueue", "configure_mps_batch_queue", "get_mps_batch_queue"]
)
def test_the_old_names_are_still_there(name):
    with pytest.warns(DeprecationWarning, match=f"from onelane.compat import {name}") as caught:
        found = getattr(onelane, name)
    assert caught[0].filename == __file__
    assert found is getattr(compat, name)
    assert name not in onelane.__all__
