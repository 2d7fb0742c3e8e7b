"""The future of a request: results, cancellation."""

from __future__ import annotations

import gc
import inspect
import threading
from concurrent.futures import CancelledError, Future, as_completed, wait

import pytest

import onelane
from common import Hold, cancel_storm

pytest.importorskip("torch")
pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


def test_submit_gives_a_real_future(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items())
    futures = [queue.submit(i) for i in range(50)]
    assert all(isinstance(f, Future) for f in futures)
    assert {f.result() for f in as_completed(futures, timeout=30)} == set(range(50))


def test_futures_are_told_once_to_who_looks_while_they_are_resolved(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, max_batch_size=4, requests=onelane.Items())
    for _ in range(60):
        futures = [queue.submit(i) for i in range(60)]
        assert {f.result() for f in as_completed(futures, timeout=30)} == set(range(60))


def test_a_cancelled_future_leaves_the_queue(device):
    ran = []
    queue = onelane.BatchQueue(lambda xs: ran.extend(xs) or xs, device, requests=onelane.Items())
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

    queue = onelane.BatchQueue(model, device, requests=onelane.Items())
    future = queue.submit(1)
    assert started.wait(30)
    assert future.running()
    assert not future.cancel()
    release.set()
    assert future.result(30) == 1


def test_a_forgotten_future_still_runs(device):
    ran = threading.Event()
    queue = onelane.BatchQueue(lambda xs: [ran.set()], device, requests=onelane.Items())
    with Hold(device):
        queue.submit(1)
        gc.collect()
    assert ran.wait(30)


def test_a_cancel_storm(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items())
    cancel_storm(queue.submit)
    assert queue(5) == 5
    stats = queue.stats()
    assert stats.submitted == stats.completed + stats.cancelled == 2001


# Callbacks that submit


@pytest.mark.parametrize("front", ["queue", "executor", "both"])
def test_a_callback_that_submits_goes_on_for_thousands_of_links(device, front):
    queue = onelane.BatchQueue(lambda xs: [x + 1 for x in xs], device, requests=onelane.Items())
    ended, depths, problems = threading.Event(), set(), []

    def step(value):
        if front == "queue" or (front == "both" and value % 2):
            return queue.submit(value)
        return device.submit(lambda: value + 1)

    def go_on(future):
        try:
            value = future.result(0)
            if value >= 3000:
                ended.set()
                return
            depths.add(len(inspect.stack(0)))
            step(value).add_done_callback(go_on)
        except BaseException as error:
            problems.append(error)
            ended.set()

    step(0).add_done_callback(go_on)
    assert ended.wait(60)
    assert not problems
    # Nothing runs inside of what went before.
    assert max(depths) < 30
    # The same when the first link is on the worker.
    ended.clear()
    device.call(lambda: step(0).add_done_callback(go_on))
    assert ended.wait(60)
    assert not problems
    assert max(depths) < 30


def test_a_callback_that_submits_lets_others_have_their_turn(device):
    turns = []

    def go_on(_):
        if "other" not in turns:
            turns.append("link")
            device.submit(int).add_done_callback(go_on)

    with Hold(device):
        device.submit(int).add_done_callback(go_on)
        other = device.submit(turns.append, "other")
    other.result(30)
    assert turns == ["link", "other"]


def test_a_callback_may_wait_for_what_it_has_submitted(device):
    queue = onelane.BatchQueue(lambda xs: [x + 1 for x in xs], device, requests=onelane.Items())
    results = []
    ended = threading.Event()

    def callback(_):
        results.extend((device.submit(lambda: 1).result(), queue.submit(1).result(30)))
        results.extend(f.result(30) for f in queue.submit_many([2, 3]))
        ended.set()

    with Hold(device):
        device.submit(int).add_done_callback(callback)
    assert ended.wait(30)
    assert results == [1, 2, 3, 4]


def test_a_model_may_submit_to_its_own_queue_if_it_does_not_wait(device):
    later = []

    def model(xs):
        later.extend(queue.submit(x - 1) for x in xs if x)
        return xs

    queue = onelane.BatchQueue(
        model, device, max_batch_size=1, requests=onelane.Items(), capacity=1
    )
    assert queue(3) == 3
    for value in (2, 1, 0):
        assert later[2 - value].result(30) == value


def test_a_call_that_waits_for_itself_is_told(device):
    futures = []
    started = threading.Event()

    def wait_for_itself():
        started.wait(30)
        return futures[0].result()

    futures.append(device.submit(wait_for_itself))
    started.set()
    with pytest.raises(onelane.WouldDeadlock):
        futures[0].result(30)
