"""Health: what hangs, what has failed, and what an executor says of its queues."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import onelane

pytestmark = pytest.mark.timeout(90)

STICKY = "CUDA error: device-side assert triggered"
# Over before anybody can look.
AT_ONCE = 1e-9


class AcceleratorError(RuntimeError):
    """What PyTorch raises when a device is lost."""


class Hang:
    """Hangs until it is let go, and says when it has begun."""

    def __init__(self):
        self.begun, self.release = threading.Event(), threading.Event()

    def __call__(self, value):
        self.begun.set()
        assert self.release.wait(60)
        return value

    def encode(self, texts):
        return [self(text) for text in texts]


def asked(ask):
    """Ask on another thread, and return the thread."""
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(("stall_after", "state"), [(AT_ONCE, "stalled"), (30.0, "ready")])
@pytest.mark.parametrize("front", ["queue", "call", "batch"])
def test_a_hang_is_told_after_the_time_that_was_said(device, front, stall_after, state):
    hang = Hang()
    if front == "queue":
        made = onelane.BatchQueue(
            hang, device, onelane.Items(), stall_after=stall_after, factory=False
        )
        health, ask = made.health, lambda: made("x")
    else:
        batch = {"encode": 4} if front == "batch" else None
        made = onelane.guard(hang, device, batch=batch, stall_after=stall_after, factory=False)
        health, ask = lambda: onelane.health(made), lambda: made.encode("x")
    thread = asked(ask)
    try:
        assert hang.begun.wait(30)
        for found in (health(), device.health()):
            assert found.state == state
            assert found.ok is (state == "ready")
            if state == "stalled":
                assert found.running_for_s > 0
        # It may still end.
        hang.release.set()
        thread.join(30)
        assert not thread.is_alive()
        assert health().ok
        assert device.health().ok
    finally:
        hang.release.set()


@pytest.mark.parametrize(("stall_after", "state"), [(AT_ONCE, "stalled"), (30.0, "ready")])
def test_a_call_of_an_executor_stalls_after_the_time_that_was_said(stall_after, state):
    with onelane.DeviceExecutor("cpu", stall_after=stall_after) as own:
        hang = Hang()
        called = own.submit(hang, 1)
        try:
            assert hang.begun.wait(30)
            assert own.health().state == state
        finally:
            hang.release.set()
        assert called.result(30) == 1
        # A future has its result before the worker has noted the end of its call.
        own.call(int)
        assert own.health().ok


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((value, ValueError) for value in (0, -1.0, float("nan"), float("inf"))),
        *((value, TypeError) for value in ("30", None, True)),
    ],
)
def test_a_stall_time_is_checked(device, value, error):
    for make in (
        lambda: onelane.BatchQueue(len, device, onelane.Items(), stall_after=value, factory=False),
        lambda: onelane.guard([], device, stall_after=value),
        lambda: onelane.DeviceExecutor("cpu", stall_after=value),
        lambda: onelane.executor("cpu", stall_after=value),
    ):
        with pytest.raises(error, match=f"stall_after={value!r}: use a number of seconds"):
            make()


def lost(_):
    raise AcceleratorError(STICKY)


def test_a_queue_that_has_failed_is_named_by_its_executor(device):
    """The device works: others of it are answered. Who looks at the executor alone sees it."""
    queue = onelane.BatchQueue(lost, device, onelane.Items(), factory=False, name="reranker")
    other = onelane.BatchQueue(list, device, onelane.Items(), factory=False, name="embedder")
    assert device.health() == onelane.Health("ready")
    with pytest.raises(AcceleratorError):
        queue("x")
    assert queue.health().state == "failed"
    assert device.health() == onelane.Health("ready", "failed: 'reranker'")
    assert device.health().ok
    assert other.health().ok
    assert other("x") == "x"
    # One that is gone is no news.
    queue.close()
    del queue
    gc.collect()
    assert device.health() == onelane.Health("ready")


def test_a_queues_batch_may_tell_that_the_device_is_lost():
    """Not that queue alone: whatever else asks this device gets errors, too."""
    with onelane.DeviceExecutor("fake", custom=True) as device:
        queue = onelane.BatchQueue(lost, device, onelane.Items(), factory=False)
        with pytest.raises(AcceleratorError):
            queue("x")
        assert device.health().state == "failed"
        assert 'isolation="process"' in device.health().detail
        with pytest.raises(onelane.EngineLost):
            device.call(int)


def test_a_circle_through_a_helper_thread_is_told_by_health_and_ended_by_a_timeout(device):
    """It cannot be seen that a call waits for a thread of its own making."""

    class Embedder:
        def encode(self, text):
            return len(text)

    class Pipeline:
        def run(self, timeout):
            encode = embedder.encode.options(timeout=timeout)
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(encode, "abc")
                told.append((device.health().state, onelane.health(pipeline).state))
                return asked.result(30)

        def direct(self):
            return embedder.encode("abc")

    told = []
    embedder = onelane.guard(Embedder, device)
    pipeline = onelane.guard(Pipeline, device, stall_after=AT_ONCE)
    with pytest.raises(onelane.DeadlineExceeded):
        pipeline.run(0.05)
    assert told == [("stalled", "stalled")]
    # On the worker itself it runs inline.
    assert pipeline.direct() == 3
    assert device.health().ok
