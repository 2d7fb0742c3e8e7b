"""Guarded objects and executors from asyncio: nothing holds the loop up, no item is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import warnings

import pytest

import onelane
from common import Hold

pytestmark = pytest.mark.timeout(90)


class Model:
    """Has everything that a loop may ask for."""

    name = "of the class"

    def __init__(self):
        self.size, self.closed, self.made = 3, [], []

    def encode(self, text):
        return text + "!"

    def __call__(self, x):
        return x + 1

    async def generate(self, text):
        await asyncio.sleep(0)
        return text, threading.get_ident()

    async def nested(self, guarded):
        return await guarded.generate("inside")

    def stream(self, n):
        try:
            for i in range(n):
                self.made.append(i)
                yield i
        finally:
            self.closed.append(threading.get_ident())

    async def astream(self, n):
        try:
            for i in range(n):
                yield i
        finally:
            self.closed.append(threading.get_ident())


@pytest.fixture
def guarded(device):
    return onelane.guard(Model, device)


@pytest.fixture
def worker(device):
    return device.call(threading.get_ident)


# --- The loop lives -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda g, d: g.encode.acall("a"),
        lambda g, d: g.__call__.acall(1),
        lambda g, d: g.generate("a"),
        lambda g, d: g.generate.acall("a"),
        lambda g, d: onelane.aget(g, "size"),
        lambda g, d: onelane.aget(g, "name"),
        lambda g, d: anext(g.stream(3)),
        lambda g, d: anext(g.astream(3)),
        lambda g, d: d.acall(lambda: g.size),
        lambda g, d: d.acall(lambda: g[0] if False else g(1)),
    ],
)
def test_nothing_holds_the_loop_up(device, guarded, ask):
    async def main():
        hold = Hold(device)
        task = asyncio.ensure_future(ask(guarded, device))
        # The worker is busy until this very loop lets it go.
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        hold.release.set()
        return await task

    assert asyncio.run(main()) is not None


def test_attributes_that_are_awaited(guarded):
    async def main():
        assert await onelane.aget(guarded, "size") == 3
        assert await onelane.aget("text", "upper") is not None
        encode = await onelane.aget(guarded, "encode")
        assert await encode.acall("a") == "a!"
        with pytest.raises(AttributeError, match="missing"):
            await onelane.aget(guarded, "missing")

    asyncio.run(main())


@pytest.mark.parametrize("what", ["size", "encode", "call", "next"])
def test_a_wait_that_holds_the_loop_up_is_told(device, guarded, what):
    ask = {
        "size": lambda: guarded.size,
        "encode": lambda: guarded.encode("a"),
        "call": lambda: guarded(1),
        "next": lambda: next(guarded.stream(1)),
    }[what]

    async def main():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ask()
            before = len(caught)
            hold = Hold(device)
            threading.Timer(0.3, hold.release.set).start()
            ask()
        return before, caught

    before, caught = asyncio.run(main())
    told = [one for one in caught if issubclass(one.category, RuntimeWarning)]
    assert before <= 1  # A busy machine may have held the first one up.
    assert "the event loop stood still" in str(told[-1].message)
    assert told[-1].filename == __file__


# --- Async functions ----------------------------------------------------------------------------


def test_async_methods_run_on_the_worker(device, guarded, worker):
    async def main():
        assert await guarded.generate("a") == ("a", worker)
        assert await guarded.nested(guarded) == ("inside", worker)
        assert await guarded.generate.options(timeout=30).acall("a") == ("a", worker)
        return [i async for i in guarded.astream(3)]

    assert asyncio.run(main()) == [0, 1, 2]


def test_an_executor_runs_async_functions(device, worker):
    async def where(x):
        await asyncio.sleep(0)
        return x, threading.get_ident()

    async def fails():
        await asyncio.sleep(0)
        raise ValueError("of the model")

    async def main():
        assert await device.acall(where, 1) == (1, worker)
        with pytest.raises(ValueError, match="of the model"):
            await device.acall(fails)
        return await asyncio.gather(*(device.acall(where, i) for i in range(20)))

    assert asyncio.run(main()) == [(i, worker) for i in range(20)]


def test_a_model_may_be_async(device, worker):
    async def double(xs):
        await asyncio.sleep(0)
        return [(2 * x, threading.get_ident()) for x in xs]

    class Double:
        async def __call__(self, xs):
            return await double(xs)

    async def stream(xs):
        yield xs

    for model in (double, Double()):
        queue = onelane.BatchQueue(model, device, requests=onelane.Items())
        assert queue(2) == (4, worker)
        assert asyncio.run(queue.infer(3)) == (6, worker)
    with pytest.raises(TypeError, match="async generator.*guard\\(\\)"):
        onelane.BatchQueue(stream, device, requests=onelane.Items())


# --- Streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["stream", "astream"])
def test_a_cancelled_anext_loses_no_item(device, guarded, method):
    """A server that sends a sign of life whenever the next token takes too long."""

    async def main():
        stream, items = getattr(guarded, method)(30), []
        for number in range(30):
            if number % 3 == 0:
                with Hold(device):
                    for _ in range(2):
                        with pytest.raises(asyncio.TimeoutError):
                            await asyncio.wait_for(anext(stream), 0.01)
            items.append(await anext(stream))
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        return items

    assert asyncio.run(main()) == list(range(30))


def test_an_item_that_is_being_made_is_not_lost(device):
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def stream(self):
            for i in range(3):
                begun.set()
                assert go_on.wait(30)
                yield i

    guarded = onelane.guard(Slow, device)

    async def main():
        stream = guarded.stream()
        task = asyncio.ensure_future(anext(stream))
        await asyncio.get_running_loop().run_in_executor(None, begun.wait, 30)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        go_on.set()
        return [i async for i in stream]

    assert asyncio.run(main()) == [0, 1, 2]


def test_two_tasks_do_not_get_the_same_item(device, guarded):
    async def main():
        stream = guarded.stream(3)
        with Hold(device):
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(stream)
        assert await first == 0
        return [i async for i in stream]

    assert asyncio.run(main()) == [1, 2]


def until_closed(guarded, count=1):
    until = time.monotonic() + 30
    while len(guarded.closed) < count:
        assert time.monotonic() < until, "the stream was not closed"
        time.sleep(0)
    return guarded.closed


@pytest.mark.parametrize("method", ["stream", "astream"])
@pytest.mark.parametrize("leave", ["aclosing", "aclose", "break", "cancel", "drop", "error"])
def test_a_stream_is_closed_on_the_worker_when_its_consumer_leaves(guarded, worker, method, leave):
    gc.disable()  # It is not the collector that closes it.
    kept = []

    async def consume(stream):
        async for i in stream:
            if i == 1 and leave == "break":
                break
            if i == 1 and leave == "cancel":
                asyncio.current_task().cancel()
            if i == 1 and leave == "error":
                raise ValueError("the consumer's")

    async def main():
        stream = getattr(guarded, method)(1000)
        if leave == "aclosing":
            async with contextlib.aclosing(stream) as entered:
                assert await anext(entered) == 0
        elif leave == "aclose":
            assert await anext(stream) == 0
            await stream.aclose()
        elif leave == "drop":
            assert await anext(stream) == 0
        else:
            if leave == "cancel":
                # Somebody, a server say, holds on to it.
                kept.append(stream)
            task = asyncio.ensure_future(consume(stream))
            del stream
            with contextlib.suppress(ValueError, asyncio.CancelledError):
                await task
            del task

    try:
        asyncio.run(main())
        assert until_closed(guarded) == [worker]
        if method == "stream":
            assert len(guarded.made) <= 3
    finally:
        gc.enable()


def test_a_task_that_is_cancelled_and_reads_on_has_not_left(guarded):
    async def reader(stream, items):
        while True:
            try:
                async for i in stream:
                    items.append(i)
                    if i == 2:
                        asyncio.current_task().cancel()
                return
            except asyncio.CancelledError:
                if hasattr(asyncio.current_task(), "uncancel"):
                    asyncio.current_task().uncancel()

    async def main():
        items = []
        await asyncio.ensure_future(reader(guarded.stream(6), items))
        return items

    assert asyncio.run(main()) == list(range(6))


def test_a_stream_in_a_reference_cycle_keeps_nobody_out_for_long(guarded):
    stream = guarded.stream(10)
    assert next(stream) == 0
    cycle = [stream]
    cycle.append(cycle)
    gc.disable()
    try:
        del stream, cycle
        seen = []
        other = threading.Thread(target=lambda: seen.append(guarded.encode("a")))
        other.start()
        other.join(20)
        assert seen == ["a!"]
    finally:
        gc.enable()
