"""The original's interface, with its faults gone."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest

import onelane

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def queue():
    queue = onelane.MPSBatchQueue(device="cpu", batch_timeout_ms=0)
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
        onelane.MPSBatchQueue(device="cpu").submit(1, int)


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
    with onelane.MPSBatchQueue(1, workers, 0, device="cpu") as queue:
        assert (queue.batch_size, queue.num_workers) == (1, workers)
        all_of_them = threading.Barrier(workers)
        futures = [queue.submit(None, lambda _: all_of_them.wait(30)) for _ in range(workers)]
        assert sorted(future.result(30) for future in futures) == list(range(workers))


@pytest.mark.parametrize("settings", [(0, 1, 1), (8, 0, 1), (8, 4, 1), (8, 1, -1)])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="batch_size|num_workers|batch_timeout_ms"):
        onelane.MPSBatchQueue(*settings)


def test_the_processs_queue():
    first = onelane.configure_mps_batch_queue(2, 1, 0, device="cpu")
    assert onelane.get_mps_batch_queue() is first
    first.start()
    second = onelane.configure_mps_batch_queue(4, 1, 0, device="cpu")
    assert onelane.get_mps_batch_queue() is second
    assert not first.is_running
    assert second.is_running
    assert second.submit(3, int).result(30) == 3
    second.stop()
