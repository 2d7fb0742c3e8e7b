"""Memory: what is counted, and what is given back when."""

from __future__ import annotations

import threading
import warnings

import pytest

import onelane
from onelane import _hygiene, _memory, _shapes


@pytest.fixture
def empties(monkeypatch):
    """Stands in for `empty_cache`: notes each, with what the worker did before."""
    done = []
    emptied = threading.Event()
    original = _hygiene.Hygiene._empty

    def empty(self):
        original(self)
        done.append(threading.get_ident())
        emptied.set()

    monkeypatch.setattr(_hygiene.Hygiene, "_empty", empty)
    return done, emptied


def test_an_idle_device_is_emptied_once_on_its_worker(device, empties):
    done, emptied = empties
    with onelane.hygiene(device, idle_s=0.05) as hygiene:
        assert not done, "nothing has run"
        worker = device.call(threading.get_ident)
        assert emptied.wait(30)
        assert done == [worker]
        # It is empty: nothing wakes up until there is work again.
        assert not hygiene._dirty
        emptied.clear()
        device.call(lambda: None)
        assert emptied.wait(30)
    assert hygiene.emptied == 2
    assert not hygiene._thread.is_alive()


def test_past_the_watermark_it_is_emptied_between_batches(device, empties, monkeypatch):
    done, emptied = empties
    monkeypatch.setattr(_memory, "_of_device", lambda name: (10, 1000))
    monkeypatch.setattr(_memory, "_samples", {})
    inside = threading.Event()

    def batch(items):
        inside.set()
        count = len(done)
        assert not emptied.wait(0.05), "between a batch and its answer"
        assert len(done) == count
        inside.clear()
        return items

    with (
        onelane.hygiene(device, idle_s=1000, watermark=500),
        onelane.BatchQueue(batch, device, onelane.Items(), factory=False) as queue,
    ):
        assert queue("x") == "x"
        assert emptied.wait(30)
        assert queue.stats().memory.driver == 1000
    # What is left is in use: 1000 bytes are not emptied again and again.
    assert len(done) == 1


def test_settings(device):
    for wrong in ({"idle_s": 0}, {"watermark": 0}, {"watermark": 0.8}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            onelane.hygiene(device, **wrong)


def test_the_footprint_counts_what_is_taken():
    before = _memory.footprint()
    if before is None:
        pytest.skip("this system does not tell")
    taken = bytearray(b"x") * (64 << 20)
    assert _memory.footprint() - before > 48 << 20
    del taken


def test_stats_have_the_memory_of_the_process(device):
    memory = device.stats().memory
    assert isinstance(memory, onelane.Memory)
    assert memory.footprint is None or memory.footprint > 1 << 20


def test_many_shapes_are_warned_of_once():
    _shapes.forget("mps")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for length in range(_shapes.WARN_ABOVE):
                _shapes.note("mps", length)
                _shapes.note("mps", length)
        assert _shapes.count("mps") == _shapes.WARN_ABOVE
        with pytest.warns(RuntimeWarning, match="Pad"):
            _shapes.note("mps", "one more")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _shapes.note("mps", "and another")
    finally:
        _shapes.forget("mps")
