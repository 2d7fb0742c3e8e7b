"""A device that answers nothing but errors: in this process health says so, and names the cure."""

from __future__ import annotations

import os
import threading

import pytest

import onelane
from onelane.errors import is_device_poisoned

STICKY = "CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"


class AcceleratorError(RuntimeError):
    """As PyTorch's is called."""


def poisoned_after(calls):
    """A model of whose device each call fails from some call on."""

    def model(items):
        calls.append(len(items))
        if "poison" in items:
            raise AcceleratorError(STICKY)
        return items

    return model


def test_a_queue_in_this_process_fails_and_refuses(device):
    calls, entered, release = [], threading.Event(), threading.Event()
    inner = poisoned_after(calls)

    def model(items):
        if items == ["first"]:
            entered.set()
            assert release.wait(30)
        return inner(items)

    q = onelane.BatchQueue(model, device, onelane.Items(), max_batch_size=3, factory=False)
    first = q.submit("first")
    assert entered.wait(30)
    batch = [q.submit(x) for x in ("a", "poison", "b")]
    later = [q.submit(x) for x in ("c", "d")]
    release.set()
    assert first.result(30) == "first"
    for future in batch:
        with pytest.raises(AcceleratorError, match="device-side assert"):
            future.result(30)
    for future in later:
        with pytest.raises(onelane.EngineLost, match='isolation="process"'):
            future.result(30)
    # Once: nothing was run again on such a device.
    assert calls == [1, 3]
    health = q.health()
    assert health.state == "failed"
    assert "lost to this process" in health.detail
    assert 'isolation="process"' in health.detail
    for ask in (q, q.submit):
        with pytest.raises(onelane.EngineLost, match='isolation="process"'):
            ask("more")
    assert calls == [1, 3]


def test_an_executor_in_this_process_fails_and_refuses():
    def poison():
        raise AcceleratorError(STICKY)

    with onelane.DeviceExecutor("fake", custom=True) as home:
        guarded = onelane.guard([1, 2], home)
        with pytest.raises(AcceleratorError):
            home.call(poison)
        assert home.health().state == "failed"
        assert 'isolation="process"' in home.health().detail
        for ask in (home.submit, home.call):
            with pytest.raises(onelane.EngineLost, match="device-side assert triggered"):
                ask(int)
        with pytest.raises(onelane.EngineLost):
            len(guarded)
        del guarded


def test_what_ends_with_its_request_poisons_nothing():
    for error in (
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: invalid configuration argument"),
        ValueError("device-side assert triggered"),
        onelane.EngineLost("the isolated worker lost its engine: device-side assert triggered"),
    ):
        assert not is_device_poisoned(error)
    assert is_device_poisoned(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.skipif(os.name != "posix", reason="isolated workers are for Unix")
def test_in_a_child_it_is_replaced():
    pytest.importorskip("cloudpickle")
    calls = []
    with onelane.BatchQueue(
        poisoned_after(calls), "cpu", onelane.Items(), factory=False, isolation="process"
    ) as q:
        futures = q.submit_many(["a", "poison", "b"])
        assert futures[0].result(60) == "a"
        assert futures[2].result(60) == "b"
        with pytest.raises(onelane.EngineLost, match="device-side assert") as caught:
            futures[1].result(60)
        assert not isinstance(caught.value, (onelane.EngineCrashed, onelane.EngineHung))
        assert q("more") == "more"
        assert q.health().ok
        assert q.stats().isolation.poisonings in (2, 3)
