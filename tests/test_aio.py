"""The batch queue from asyncio: `infer`, and what it tells the event loop."""

from __future__ import annotations

import asyncio
import contextvars

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


def test_modes_and_inputs_are_read_at_the_call(device):
    queue = onelane.BatchQueue(lambda x: (x * 2, [torch.is_grad_enabled()] * len(x)), device)
    x = torch.ones(1, 2)

    async def main():
        with torch.no_grad():
            off = queue.infer(x)
        on = queue.infer(x)
        with pytest.raises(ValueError, match="without dimensions"):
            # Where it is made, not where it is awaited.
            queue.infer(torch.tensor(1.0))
        # In the other order, and from tasks in whose contexts the modes are others.
        with torch.inference_mode():
            second = asyncio.create_task(on)
            first = asyncio.create_task(off)
        return (await first)[1], (await second)[1]

    assert asyncio.run(main()) == ([False], [True])
    # Made outside of any loop.
    assert asyncio.run(queue.infer(x))[1] == [True]


def test_a_holders_infer_has_the_modes_of_the_call(device):
    queue = onelane.BatchQueue(lambda x: (x, [torch.is_grad_enabled()] * len(x)), device)

    async def main():
        async with device.hold():
            with torch.no_grad():
                pending = queue.infer(torch.ones(1, 1), timeout=30)
            return (await pending)[1]

    assert asyncio.run(main()) == [False]


def test_a_timeout_counts_from_the_call(device):
    queue = onelane.BatchQueue(lambda x: x, device)

    async def main():
        late = queue.infer(torch.ones(1, 1), timeout=0)
        with pytest.raises(onelane.DeadlineExceeded):
            await late
        unused = queue.infer(torch.ones(1, 1))
        unused.close()

    asyncio.run(main())
    assert queue.stats().submitted <= 1


# What each asynchronous form of a call runs: whether there is grad, and a context variable.
MINE = contextvars.ContextVar("mine", default="none")


class Seen:
    """A guarded object that says in which modes and context it is called."""

    def state(self):
        return torch.is_grad_enabled(), MINE.get()

    @property
    def attribute(self):
        return self.state()

    async def asynchronous(self):
        return self.state()

    def exclusive(self):
        return self.state()

    def batched(self, items):
        return [self.state() for _ in items]

    def stream(self):
        while True:
            yield self.state()


def forms(device):
    """The asynchronous forms of a call, by name: each makes what is awaited for the state."""
    guarded = onelane.guard(Seen, device, batch={"batched": 2}, exclusive=("exclusive",))
    guarded.batched(["learn", "that", "a list is several"])
    queue = onelane.BatchQueue(
        lambda xs: [(torch.is_grad_enabled(), MINE.get()) for _ in xs],
        device,
        onelane.Items(),
        context="key",
    )
    seen, stream = Seen(), guarded.stream()
    return {
        "acall": lambda: device.acall(seen.state),
        "acall of async": lambda: device.acall(seen.asynchronous),
        "infer": lambda: queue.infer(1),
        "method": lambda: guarded.state.acall(),
        "with options": lambda: guarded.state.options(wait=False).acall(),
        "async method": lambda: guarded.asynchronous(),
        "exclusive": lambda: guarded.exclusive.acall(),
        "item": lambda: guarded.batched.acall("a"),
        "item, options": lambda: guarded.batched.options(wait=False).acall("b"),
        "pieces": lambda: guarded.batched.acall(["a", "b", "c"]),
        "attribute": lambda: onelane.aget(guarded, "attribute"),
        "next item": lambda: anext(stream),
    }


@pytest.mark.parametrize("held", [False, True])
def test_every_form_reads_modes_and_context_at_the_call(device, held):
    """And not when it is first awaited, in another task perhaps, after the caller's `with`."""

    async def call(make, name):
        token = MINE.set(name)
        with torch.no_grad():
            pending = make()
        MINE.reset(token)
        if not held:
            # A task of its own, in whose context the variable is not set.
            return await asyncio.create_task(pending)
        async with device.hold():
            return await pending

    async def main():
        found = {}
        for name, make in forms(device).items():
            if held and name == "infer":
                with pytest.raises(onelane.WouldDeadlock, match="inside of the block"):
                    await call(make, name)
                found[name] = (False, name)
                continue
            state = await asyncio.wait_for(call(make, name), 30)
            found[name] = state[-1] if name == "pieces" else state
        return found

    assert asyncio.run(main()) == {name: (False, name) for name in forms(device)}


def test_on_the_worker_modes_are_those_of_the_call(device):
    async def inside():
        with torch.no_grad():
            pending = device.acall(torch.is_grad_enabled)
        return await pending

    assert device.call(lambda: asyncio.run(inside())) is False
