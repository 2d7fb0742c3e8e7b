"""One model on several devices: whichever has least to do is next."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import ClassVar

import pytest

import onelane
from isolated_models import listed, where

STICKY = "CUDA error: device-side assert triggered"


class AcceleratorError(RuntimeError):
    """What PyTorch raises when a device is lost."""


class Gated:
    """Notes what it has run, and waits for its gate with a "wait"."""

    made: ClassVar[list[Gated]] = []

    def __init__(self):
        self.begun, self.gate = threading.Event(), threading.Event()
        self.batches = []
        self.thread = threading.get_ident()
        Gated.made.append(self)

    def __call__(self, items):
        self.batches.append(list(items))
        if "lost" in items:
            raise AcceleratorError(STICKY)
        if "wait" in items:
            self.begun.set()
            assert self.gate.wait(60)
        return items

    @property
    def items(self):
        return [item for batch in self.batches for item in batch if item != "wait"]


@pytest.fixture
def devices():
    made = [onelane.DeviceExecutor("cpu") for _ in range(2)]
    yield made
    for device in made:
        device.shutdown()


def models_of(replicas):
    """The models, in the order of their queues."""
    owners = [queue.executor.submit(threading.get_ident).result(60) for queue in replicas.queues]
    return [next(model for model in Gated.made if model.thread == owner) for owner in owners]


@pytest.fixture
def start(devices):
    """Makes two replicas; returns them and their models."""
    made = []

    def start(**settings):
        Gated.made.clear()
        replicas = onelane.Replicas(Gated, devices, onelane.Items(), **settings)
        made.append((replicas, models_of(replicas)))
        return made[-1]

    yield start
    for replicas, models in made:
        for model in models:
            model.gate.set()
        replicas.close()


@pytest.fixture
def two(start):
    return start()


def block(queue, model):
    """Have a queue run a batch until its gate is opened."""
    future = queue.submit("wait")
    assert model.begun.wait(60)
    return future


def block_all(replicas, models):
    for queue, model in zip(replicas.queues, models, strict=True):
        block(queue, model)


def open_all(models):
    for model in models:
        model.gate.set()


def test_each_device_has_a_model_that_was_made_on_its_worker(two, devices):
    replicas, models = two
    assert len(Gated.made) == 2
    assert [queue.executor for queue in replicas.queues] == devices
    assert [queue.name for queue in replicas.queues] == ["Gated[0]", "Gated[1]"]
    assert models[0] is not models[1]
    assert repr(replicas) == "Replicas('Gated', devices=['cpu', 'cpu'])"


def test_equals_take_turns(two):
    replicas, models = two
    for number in range(6):
        assert replicas(number) == number
    assert [len(model.items) for model in models] == [3, 3]


@pytest.mark.parametrize("busy", [0, 1])
@pytest.mark.parametrize("front", ["call", "submit", "try_submit", "infer", "submit_many"])
def test_while_one_is_busy_the_other_has_it_all(two, front, busy):
    replicas, models = two
    blocked = block(replicas.queues[busy], models[busy])

    async def infer(number):
        return await replicas.infer(number)

    ask = {
        "call": replicas,
        "submit": lambda number: replicas.submit(number).result(60),
        "try_submit": lambda number: replicas.try_submit(number).result(60),
        "infer": lambda number: asyncio.run(infer(number)),
        "submit_many": lambda number: replicas.submit_many([number])[0].result(60),
    }[front]
    assert [ask(number) for number in range(8)] == list(range(8))
    assert models[busy].items == []
    assert models[1 - busy].items == list(range(8))
    models[busy].gate.set()
    assert blocked.result(60) == "wait"


def test_what_waits_counts(two):
    replicas, models = two
    block_all(replicas, models)
    # Three wait for the first: the next three are the second's, and then they are equals.
    waiting = [replicas.queues[0].submit(i) for i in range(3)]
    assert [queue._core.load() for queue in replicas.queues] == [4, 1]
    waiting += [replicas.submit(3 + i) for i in range(3)]
    assert [queue._core.load() for queue in replicas.queues] == [4, 4]
    waiting += [replicas.submit(6 + i) for i in range(4)]
    assert [queue._core.load() for queue in replicas.queues] == [6, 6]
    open_all(models)
    assert [future.result(60) for future in waiting] == list(range(10))
    assert [queue._core.load() for queue in replicas.queues] == [0, 0]


def test_tasks_that_are_made_together_are_spread(two):
    replicas, models = two
    block_all(replicas, models)

    async def main():
        tasks = [asyncio.create_task(replicas.infer(i)) for i in range(10)]
        # Each has had its turn, and waits.
        await asyncio.sleep(0)
        loads = [queue._core.load() for queue in replicas.queues]
        open_all(models)
        return loads, await asyncio.gather(*tasks)

    loads, answers = asyncio.run(main())
    assert loads == [6, 6]
    assert answers == list(range(10))


def test_a_long_list_goes_to_both_a_batch_at_a_time(start):
    replicas, models = start(max_batch_size=4)
    block_all(replicas, models)
    futures = replicas.submit_many(range(16))
    assert [queue._core.load() for queue in replicas.queues] == [9, 9]
    open_all(models)
    assert [future.result(60) for future in futures] == list(range(16))
    assert all(len(batch) <= 4 for model in models for batch in model.batches)


def test_a_list_that_does_not_go_in_leaves_nothing_behind(start):
    replicas, models = start(max_batch_size=4, capacity=4)
    block_all(replicas, models)
    with pytest.raises(onelane.QueueFull):
        replicas.submit_many(range(12), timeout=0.01)
    assert [queue._core.load() for queue in replicas.queues] == [1, 1]


def test_a_failed_one_is_left_out_and_named(two):
    replicas, models = two
    assert replicas.health() == onelane.Health("ready")
    with pytest.raises(AcceleratorError):
        replicas.queues[0]("lost")
    health = replicas.health()
    assert health.ok
    assert health.detail.startswith("degraded: Gated[0] on cpu is failed: ")
    assert [replicas(number) for number in range(4)] == list(range(4))
    assert models[1].items == list(range(4))
    with pytest.raises(AcceleratorError):
        replicas.queues[1]("lost")
    health = replicas.health()
    assert health.state == "failed"
    assert "Gated[0] on cpu" in health.detail
    assert "Gated[1] on cpu" in health.detail
    with pytest.raises(onelane.EngineLost, match="no replica of Gated is left"):
        replicas(1)


def test_one_that_stalls_gets_nothing_while_another_is_ready(start):
    replicas, models = start(stall_after=1e-6)
    queue, other = replicas.queues
    block(queue, models[0])
    assert queue.health().state == "stalled"
    assert replicas.pick() is other
    assert replicas.health().detail == "degraded: Gated[0] on cpu is stalled"
    other.close()
    # It may still end: better than nothing.
    assert replicas.pick() is queue


def test_closing_runs_what_was_accepted(two):
    replicas, models = two
    block_all(replicas, models)
    futures = [replicas.submit(i) for i in range(10)]
    assert not replicas.shutdown(wait=False)
    with pytest.raises(onelane.QueueClosed, match="the replicas of Gated have been closed"):
        replicas.submit(10)
    assert replicas.health().state == "closed"
    open_all(models)
    assert replicas.shutdown(timeout=60)
    assert [future.result(0) for future in futures] == list(range(10))
    stats = replicas.stats()
    assert sum(one.completed for one in stats) == 12
    assert [one.waiting for one in stats] == [0, 0]


def test_giving_up_ends_what_waits(two):
    replicas, models = two
    block(replicas.queues[0], models[0])
    block(replicas.queues[1], models[1])
    futures = [replicas.submit(i) for i in range(4)]
    assert not replicas.shutdown(cancel_futures=True, timeout=0.0)
    for future in futures:
        with pytest.raises(onelane.QueueClosed):
            future.result(60)


def test_a_model_that_cannot_be_made_closes_the_others(devices):
    dropped, made = threading.Event(), []

    class Model:
        def __init__(self):
            made.append(threading.get_ident())
            if len(made) == 2:
                raise OSError("the second card is broken")

        def __call__(self, items):
            return items

        def __del__(self):
            if threading.get_ident() == made[0]:
                dropped.set()

    with pytest.raises(OSError, match="the second card is broken"):
        onelane.Replicas(Model, devices, onelane.Items())
    assert len(made) == 2
    assert dropped.wait(60)


@pytest.mark.skipif(os.name != "posix", reason="isolated workers are for Unix")
def test_isolated_replicas_are_processes_and_one_that_crashes_costs_one_request(devices):
    settings = {"isolation": onelane.Isolation(hang_s=30.0), "factory": False}
    with onelane.Replicas(where, devices, onelane.Items(), **settings) as replicas:
        pids = {replicas(0)[0] for _ in range(4)}
        assert len(pids) == 2
        assert os.getpid() not in pids
    with onelane.Replicas(listed, devices, onelane.Items(), **settings) as replicas:
        with pytest.raises(onelane.EngineCrashed):
            replicas("abort")
        assert [replicas(number) for number in range(6)] == [2 * number for number in range(6)]


@pytest.mark.parametrize(
    ("devices", "error", "says"),
    [
        (["cpu", "cpu"], ValueError, "the device 'cpu' is there twice"),
        ([], ValueError, "give one device or more"),
        ("cpu", TypeError, "give a list of them"),
        (["gpu"], ValueError, "gpu"),
    ],
)
def test_devices_that_cannot_be_are_refused(devices, error, says):
    with pytest.raises(error, match=says):
        onelane.Replicas(listed, devices, factory=False)


def test_one_module_is_refused(devices):
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="one Linear cannot be on several devices"):
        onelane.Replicas(torch.nn.Linear(1, 1), devices)


def test_a_misspelt_setting_is_named(devices):
    with pytest.raises(TypeError, match="max_batch_size"):
        onelane.Replicas(Gated, devices, max_batchsize=4)
