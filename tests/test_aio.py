"""The batch queue from asyncio: `infer`, and what it tells the event loop."""

from __future__ import annotations

import asyncio

import pytest

import onelane
from common import Hold, close

torch = pytest.importorskip("torch")
pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


def test_two_hundred_concurrent_infers(device, mlp):
    queue = onelane.BatchQueue(mlp, device)
    inputs = [torch.randn(i % 4 + 1, 64) for i in range(200)]

    async def main():
        return await asyncio.gather(*(queue.infer(x) for x in inputs))

    for x, y in zip(inputs, asyncio.run(main()), strict=True):
        close(y, mlp(x))


def test_infer_waits_for_room_without_blocking_the_loop(device):
    queue = onelane.BatchQueue(
        lambda xs: xs, device, capacity=3, max_batch_size=2, requests=onelane.Items()
    )

    async def main():
        hold = Hold(device)
        tasks = [asyncio.create_task(queue.infer(i)) for i in range(200)]
        await asyncio.sleep(0)
        alive = await asyncio.sleep(0, "the loop lives")
        tasks[150].cancel()
        hold.release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return alive, results

    alive, results = asyncio.run(main())
    assert alive == "the loop lives"
    assert isinstance(results.pop(150), asyncio.CancelledError)
    assert results == [*range(150), *range(151, 200)]
    assert queue.stats().refused == 0


def test_infer_errors_deadlines_and_cancellation(device):
    ran = []

    def model(xs):
        ran.extend(xs)
        return [1 / x for x in xs]

    queue = onelane.BatchQueue(model, device, requests=onelane.Items())

    async def main():
        with pytest.raises(ZeroDivisionError):
            await queue.infer(0)
        with Hold(device):
            with pytest.raises(onelane.DeadlineExceeded):
                await queue.infer(3, timeout=0.02)
            task = asyncio.create_task(queue.infer(4))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(queue.infer(5), 0.02)
            assert queue.stats().waiting == 0
        return await queue.infer(2, timeout=30)

    assert asyncio.run(main()) == 0.5
    assert ran == [0, 2]


def test_a_batch_tells_each_loop_once(device, monkeypatch):
    queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items())
    calls = []

    async def main():
        loop = asyncio.get_running_loop()
        tell = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *a, **k: calls.append(1) or tell(*a, **k)
        )
        with Hold(device):
            tasks = [asyncio.create_task(queue.infer(i)) for i in range(32)]
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == list(range(32))
    assert queue.stats().batches == 1
    assert len(calls) == 1
