"""Guarded objects in child processes."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

import isolated_models
import onelane

pytestmark = pytest.mark.skipif(os.name != "posix", reason="isolated workers are for Unix")


def test_a_guarded_object_lives_in_a_child():
    thing = onelane.guard(isolated_models.Thing, "cpu", isolation="process")
    assert thing.add(2) == 2
    assert thing.count == 2
    thing.count = 10
    assert thing.add(1) == 11
    assert len(thing) == 3
    assert thing.add.__doc__ == "Add to the count."
    with pytest.raises(AttributeError, match="nothing"):
        _ = thing.nothing
    with pytest.raises(TypeError, match="cannot leave the isolated worker"):
        thing.lock()
    with pytest.raises(onelane.EngineCrashed):
        thing.add("abort")
    assert thing.add(5) == 5


def test_its_streams_come_item_by_item():
    thing = onelane.guard(isolated_models.Thing, "cpu", isolation="process")
    assert list(thing.stream(3)) == [0, 1, 2]
    # An iterator that a method returns is a stream, too.
    assert list(thing.rows()) == [1, 2, 3]

    async def read():
        return [item async for item in thing.astream(3)], await thing.add.acall(1)

    assert asyncio.run(read()) == ([0, 1, 2], 1)
    stream = thing.stream(5)
    assert next(stream) == 0
    # Nobody else uses the object meanwhile.
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(thing.add, 1)
        assert next(stream) == 1
        assert not other.done()
        stream.close()
        assert other.result(30) == 2
    assert thing.calls == ["closed"]
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_ends_with_its_worker():
    thing = onelane.guard(isolated_models.Thing, "cpu", exclusive=(), isolation="process")
    stream = thing.stream(5)
    assert next(stream) == 0
    with pytest.raises(onelane.EngineCrashed):
        thing.add("abort")
    with pytest.raises(onelane.EngineLost, match="lost or replaced"):
        next(stream)
    assert list(thing.stream(2)) == [0, 1]


def test_batched_methods_of_an_isolated_object():
    thing = onelane.guard(isolated_models.Thing, "cpu", batch={"encode": 4}, isolation="process")
    with ThreadPoolExecutor(8) as pool:
        texts = [f"text {i}" for i in range(40)]
        assert list(pool.map(thing.encode, texts)) == [text.upper() for text in texts]
    assert thing.encode(["a", "b", "c"], suffix="!") == ["A!", "B!", "C!"]
    sizes = [len(call) for call in thing.calls if isinstance(call, list)]
    assert max(sizes) <= 4
    with pytest.raises(TypeError, match="Did you mean 'encode'"):
        onelane.guard(isolated_models.Thing, "cpu", batch={"encod": 4}, isolation="process")
