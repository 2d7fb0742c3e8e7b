"""What says `cuda` alone on a worker means the worker's device. A GPU is stood in for: what would
be told is written down."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

import onelane  # noqa: E402


@pytest.fixture(params=["cuda", "xpu"])
def told(request, monkeypatch):
    """The type of the devices, of which there are two, and who has set which."""
    devices, calls = getattr(torch, request.param), []
    monkeypatch.setattr(devices, "is_available", lambda: True)
    monkeypatch.setattr(devices, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "set_device", lambda n: calls.append((n, threading.get_ident())))
    return request.param, calls


def test_it_is_set_once_on_the_worker_before_anything_runs_there(told):
    kind, calls = told
    with onelane.DeviceExecutor(f"{kind}:1") as executor:
        ran_on, before = executor.call(lambda: (threading.get_ident(), list(calls)))
        assert before == [(1, ran_on)]
        executor.call(lambda: None)
    assert calls == before


@pytest.mark.parametrize("told", ["xpu"], indirect=True)
def test_a_factory_finds_it_set(told):
    kind, calls = told
    found = []

    def load():
        found.extend(calls)
        return lambda items: items

    with onelane.DeviceExecutor(f"{kind}:1") as executor:
        with onelane.BatchQueue(load, executor, onelane.Items(), factory=True) as queue:
            assert queue(1) == 1
        worker = executor.call(threading.get_ident)
    assert found == [(1, worker)] == calls


def test_each_worker_and_each_device_has_its_own(told):
    kind, calls = told
    with onelane.DeviceExecutor(kind) as first, onelane.DeviceExecutor(f"{kind}:1") as second:
        first.call(lambda: None)
        # The first is what a thread has anyway.
        assert calls == []
        second.call(lambda: None)
        assert [number for number, _ in calls] == [1]
    with onelane.DeviceExecutor(f"{kind}:1") as again:
        again.call(lambda: None)
    assert [number for number, _ in calls] == [1, 1]


def test_a_number_that_is_not_there_is_named(told):
    kind, _ = told
    wanted = pytest.raises(RuntimeError, match=f"no device '{kind}:2'.*'{kind}', '{kind}:1'")
    with onelane.DeviceExecutor(f"{kind}:2") as executor, wanted:
        executor.call(lambda: None)


def test_without_such_devices_nothing_is_asked_for():
    with onelane.DeviceExecutor("xpu:1") as executor:
        assert executor.call(lambda: 1) == 1
