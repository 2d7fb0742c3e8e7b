"""The future of a request: results, cancellation."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import CancelledError, Future, as_completed, wait

import pytest

import onelane
from common import Hold, cancel_storm

pytest.importorskip("torch")
pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


def test_submit_gives_a_real_future(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, collate="list")
    futures = [queue.submit(i) for i in range(50)]
    assert all(isinstance(f, Future) for f in futures)
    assert {f.result() for f in as_completed(futures, timeout=30)} == set(range(50))


def test_a_cancelled_future_leaves_the_queue(device):
    ran = []
    queue = onelane.BatchQueue(lambda xs: ran.extend(xs) or xs, device, collate="list")
    with Hold(device):
        first, second = queue.submit(1), queue.submit(2)
        assert second.cancel()
        assert second.cancel()
        assert second.cancelled()
        assert wait([second], timeout=30).done == {second}
        assert queue.stats().waiting == 1
    assert first.result(30) == 1
    assert not first.cancel()
    with pytest.raises(CancelledError):
        second.result(0)
    assert ran == [1]
    assert queue.stats().cancelled == 1


def test_a_running_request_cannot_be_cancelled(device):
    started, release = threading.Event(), threading.Event()

    def model(xs):
        started.set()
        release.wait(30)
        return xs

    queue = onelane.BatchQueue(model, device, collate="list")
    future = queue.submit(1)
    assert started.wait(30)
    assert future.running()
    assert not future.cancel()
    release.set()
    assert future.result(30) == 1


def test_a_forgotten_future_still_runs(device):
    ran = threading.Event()
    queue = onelane.BatchQueue(lambda xs: [ran.set()], device, collate="list")
    with Hold(device):
        queue.submit(1)
        gc.collect()
    assert ran.wait(30)


def test_a_cancel_storm(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, collate="list")
    cancel_storm(queue.submit)
    assert queue(5) == 5
    stats = queue.stats()
    assert stats.submitted == stats.completed + stats.cancelled == 2001
