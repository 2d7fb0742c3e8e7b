"""State between calls: streams, sessions, held devices, modes, context variables."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

import onelane
from common import Hold

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(60)


class Llama:
    """One context, as llama.cpp has: what it says next depends on all that it was told."""

    def __init__(self):
        self.kv = []
        self.adapter = None

    def stream(self, prompt, n=8):
        self.kv = list(prompt)
        for _ in range(n):
            token = (sum(self.kv) * 31 + len(self.kv)) % 97
            self.kv.append(token)
            yield token

    def started(self, prompt):
        self.kv = list(prompt)
        return iter([self.next() for _ in range(2)] + [len(self.kv)])

    def begin(self, prompt):
        self.kv = list(prompt)
        return itertools.islice(iter(self.next, None), 8)

    def next(self):
        token = (sum(self.kv) * 31 + len(self.kv)) % 97
        self.kv.append(token)
        return token

    def count(self):
        return len(self.kv)

    def set_adapter(self, name):
        self.adapter = name

    def run(self, x):
        return (self.adapter, x)

    def encode(self, xs):
        return [(self.adapter, x) for x in xs]

    async def astream(self, prompt):
        for token in self.stream(prompt):
            yield token

    async def generate(self, prompt):
        await asyncio.sleep(0)
        return list(self.stream(prompt))


PROMPTS = [[i, i + 1, i + 2] for i in range(6)]
WANTED = [list(Llama().stream(prompt)) for prompt in PROMPTS]


def all_at_once(function):
    barrier = threading.Barrier(len(PROMPTS))

    def run(prompt):
        barrier.wait(30)
        return function(prompt)

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return [f.result(30) for f in [pool.submit(run, prompt) for prompt in PROMPTS]]


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "stream"),
        ({"exclusive": ("stream",)}, "stream"),
        ({"exclusive": ("begin",)}, "begin"),
        ({}, "astream"),
    ],
)
def test_streams_of_one_object_do_not_interleave(device, settings, method):
    guarded = onelane.guard(Llama, device, **settings)

    def read(prompt):
        stream = getattr(guarded, method)(prompt)
        if method != "astream":
            return list(stream)

        async def main():
            return [token async for token in stream]

        return asyncio.run(main())

    for _ in range(3):
        assert all_at_once(read) == WANTED


def test_streams_of_tasks_do_not_interleave(device):
    guarded = onelane.guard(Llama, device)

    async def read(prompt):
        return [token async for token in guarded.stream(prompt)]

    async def main():
        return await asyncio.gather(*map(read, PROMPTS))

    assert asyncio.run(main()) == WANTED


def test_streams_that_are_said_to_be_safe_go_on_together(device):
    guarded = onelane.guard(Llama, device, exclusive=())
    first, second = guarded.stream([1]), guarded.stream([2])
    with ThreadPoolExecutor(1) as pool:
        next(first)
        assert pool.submit(next, second).result(30) is not None
    with pytest.raises(TypeError, match=r"\('stream',\)"):
        onelane.guard(Llama, device, exclusive="stream")


def test_who_reads_a_stream_may_call_the_object(device):
    guarded = onelane.guard(Llama, device)
    counts = [guarded.count() for _ in guarded.stream([1, 2], n=3)]
    assert counts == [3, 4, 5]
    pairs = zip(guarded.stream([1], 2), guarded.stream([1], 2), strict=True)
    assert len(list(pairs)) == 2


@pytest.mark.parametrize("end", ["exhaust", "close", "drop", "fail", "aclose"])
def test_others_wait_for_the_end_of_a_stream(device, end):
    guarded = onelane.guard(Llama, device)
    stream = guarded.stream([1], n=2) if end != "fail" else guarded.stream(["a"])
    other = threading.Thread(target=lambda: seen.append(guarded.count()))
    seen = []
    if end == "fail":
        with pytest.raises(TypeError):
            next(stream)
    else:
        next(stream)
    other.start()
    if end != "fail":
        # It waits in line before anything else of this object can run.
        while not onelane._proxy.lane_of(guarded).turns._waiting:
            pass
        assert not seen
    if end == "exhaust":
        list(stream)
    elif end == "close":
        stream.close()
    elif end == "aclose":
        asyncio.run(stream.aclose())
    else:
        del stream
        gc.collect()
    other.join(30)
    assert len(seen) == 1


def test_a_stream_that_was_never_read_keeps_nobody_out(device):
    guarded = onelane.guard(Llama, device)
    stream = guarded.stream([1])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(guarded.count).result(30) == 0
    with pytest.raises(TypeError, match="prompt"):
        guarded.stream()
    del stream


def test_a_task_that_waits_for_its_turn_can_be_cancelled(device):
    guarded = onelane.guard(Llama, device)

    async def main():
        stream = guarded.stream([1])
        await anext(stream)
        waiting = asyncio.create_task(guarded.count.acall())
        while not onelane._proxy.lane_of(guarded).turns._waiting:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await stream.aclose()
        return await asyncio.create_task(guarded.count.acall())

    assert asyncio.run(main()) == 2


# Sessions and holds


def twice(guarded, name):
    guarded.set_adapter(name)
    return guarded.run(name) == (name, name)


@pytest.mark.parametrize("how", ["session", "method", "hold"])
def test_two_calls_stay_together(device, how):
    guarded = onelane.guard(Llama, device, batch={"encode": 8})
    enter = {
        "session": lambda: onelane.session(guarded),
        "method": lambda: guarded.session(),
        "hold": device.hold,
    }[how]

    def both(i):
        with enter(), enter():
            guarded.set_adapter(i)
            return guarded.run(i) == (i, i) and guarded.encode(i) == (i, i)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(both, range(200)))


@pytest.mark.parametrize("how", ["session", "hold"])
def test_two_calls_of_a_task_stay_together(device, how):
    guarded = onelane.guard(Llama, device)

    async def both(i):
        async with onelane.session(guarded) if how == "session" else device.hold():
            await guarded.set_adapter.acall(i)
            await asyncio.sleep(0)
            return await guarded.run.acall(i) == (i, i)

    async def main():
        return await asyncio.gather(*(both(i) for i in range(50)))

    assert all(asyncio.run(main()))


def test_an_object_with_a_session_of_its_own_keeps_it(device):
    class Runtime:
        def __init__(self):
            self.session = {"inputs": 1}

    guarded = onelane.guard(Runtime, device)
    assert guarded.session == {"inputs": 1}
    with onelane.session(guarded) as same:
        assert same is guarded
    with pytest.raises(TypeError, match="guard"):
        onelane.session(Llama())


def test_what_a_holder_asks_of_queues_comes_between_nothing(device):
    state = {"adapter": None}
    queue = onelane.BatchQueue(lambda x: x * state["adapter"], device)

    def both(i):
        with device.hold():
            device.call(state.update, adapter=i)
            x = torch.ones(1, 1)
            results = [
                queue(x),
                queue({"x": x}),
                queue.submit(x).result(30),
                *(f.result(30) for f in queue.submit_many([x])),
                next(queue.map([x])),
            ]
            return all(float(r) == i for r in results)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(both, range(60)))
    assert float(queue(torch.ones(1, 1))) == state["adapter"]


def test_what_a_task_that_holds_asks_of_queues_comes_between_nothing(device):
    state = {"adapter": None}
    queue = onelane.BatchQueue(lambda x: x * state["adapter"], device)

    async def both(i):
        async with device.hold():
            await device.acall(state.update, adapter=i)
            return float(await queue.infer(torch.ones(1, 1))) == i

    async def main():
        return await asyncio.gather(*(both(i) for i in range(30)))

    assert all(asyncio.run(main()))


def test_a_holder_is_told_of_a_stream_that_cannot_end(device):
    guarded = onelane.guard(Llama, device)
    stream = guarded.stream([1])
    next(stream)

    def hold():
        with device.hold():
            return guarded.count()

    async def hold_async():
        async with device.hold():
            return await guarded.count.acall()

    with ThreadPoolExecutor(1) as pool:
        for held in (hold, lambda: asyncio.run(hold_async())):
            with pytest.raises(onelane.WouldDeadlock, match=r"a stream of stream\(\).*session"):
                pool.submit(held).result(30)
        assert next(stream) is not None
        stream.close()
        assert pool.submit(hold).result(30) == 3


def test_a_holder_that_fails_or_ends_gives_the_device_back(device):
    with pytest.raises(ZeroDivisionError), device.hold():
        device.call(lambda: 1 / 0)
    hold = device.hold()
    thread = threading.Thread(target=hold.__enter__)
    thread.start()
    thread.join(30)
    assert device.submit(int).result(30) == 0
    with device.hold():
        pass
    with onelane.DeviceExecutor("cpu", workers=2) as two, pytest.raises(ValueError, match="one"):
        two.hold()


# Training mode


class Reads(torch.nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x


class Encoder(torch.nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def encode(self, xs):
        return [self.part(x) for x in xs]


MIXING = {
    "dropout": lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)),
    "batch norm": lambda: torch.nn.BatchNorm1d(2),
    "its own": Reads,
    "a part": lambda: torch.nn.Sequential(torch.nn.Dropout(0.5)).eval().append(torch.nn.Dropout()),
}


@pytest.mark.parametrize("make", MIXING.values(), ids=MIXING)
def test_a_batched_module_in_training_mode_is_warned_of(device, make):
    with pytest.warns(UserWarning, match=r"\.eval\(\)"):
        onelane.BatchQueue(make(), device)
    with pytest.warns(UserWarning, match=r"\.eval\(\)"):
        onelane.BatchQueue(make, device, factory=True)(torch.ones(2, 2))
    with pytest.warns(UserWarning, match=r"\.eval\(\)"):
        onelane.guard(lambda: Encoder(make()), device, batch={"encode": 4})
    model = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue = onelane.BatchQueue(model, device)
        queue(torch.ones(2, 2))
        onelane.BatchQueue(make(), device, requests=onelane.Each())
        onelane.BatchQueue(torch.nn.Linear(2, 2), device)(torch.ones(1, 2))
    model.train()
    with pytest.warns(UserWarning, match=r"\.eval\(\)"):
        queue(torch.ones(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue(torch.ones(2, 2))


# Context variables

TENANT = contextvars.ContextVar("tenant", default=0)
OTHER = contextvars.ContextVar("other", default=None)


def asked(device, function, items):
    """What each of eight tenants gets, all of whom wait together; two have the same name."""

    def ask(i):
        TENANT.set(i // 2)
        OTHER.set(object())
        return function(items)

    with ThreadPoolExecutor(8) as pool:
        with Hold(device):
            asked = [pool.submit(contextvars.Context().run, ask, i) for i in range(8)]
            while device._core is None or waiting(function) < 8:
                pass
        return [float(one.result(30)) for one in asked]


def waiting(function):
    return function.waiting()


class Asked:
    def __init__(self, call, queue):
        self._call, self._queue = call, queue

    def __call__(self, x):
        return self._call(x)

    def waiting(self):
        return self._queue.stats().waiting


@pytest.mark.parametrize("context", ["key", lambda context: context.get(TENANT)])
@pytest.mark.parametrize("front", ["tensor", "list", "guard"])
def test_requests_of_different_contexts_do_not_share_what_a_model_can_see(device, context, front):
    class Encoder:
        def encode(self, xs):
            return [x * TENANT.get() for x in xs]

    x = torch.ones(1, 1) if front == "tensor" else 1.0
    if front == "guard":
        guarded = onelane.guard(Encoder, device, batch={"encode": 8}, context=context)
        queue = onelane._proxy.lane_of(guarded).batched["encode"].queue
        call = guarded.encode
    else:
        model = (lambda x: x * TENANT.get()) if front == "tensor" else Encoder().encode
        requests = onelane.Tensors() if front == "tensor" else onelane.Items()
        call = queue = onelane.BatchQueue(model, device, requests, context=context)
    assert asked(device, Asked(call, queue), x) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert queue.stats().batches == (8 if context == "key" else 4)
    with pytest.raises(ValueError, match="context='tenant'"):
        onelane.BatchQueue(lambda x: x, device, context="tenant")


# Defaults of PyTorch


def test_the_default_device_of_the_caller_holds_on_the_worker(device):
    def made(*_):
        return torch.ones(1).device.type

    queue = onelane.BatchQueue(lambda x: (x, [made()] * len(x)), device)
    guarded = onelane.guard(lambda: made, device)
    x = torch.ones(1, 1)
    for call in (
        lambda: device.call(made),
        lambda: device.submit(made).result(30),
        lambda: queue(x)[1][0],
        lambda: queue.submit(x).result(30)[1][0],
    ):
        assert call() == "cpu"
        with torch.device("meta"):
            assert call() == "meta"
        torch.set_default_device("meta")
        try:
            assert call() == "meta"
        finally:
            torch.set_default_device(None)
        assert call() == "cpu"
    del guarded
    assert device.call(lambda: torch.get_default_dtype()) == torch.float32


# asyncio


def test_a_cancelled_anext_loses_no_item(device):
    guarded = onelane.guard(Llama, device)

    async def main():
        stream = guarded.stream([1])
        items = [await anext(stream)]
        with Hold(device):
            step = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
        async for item in stream:
            items.append(item)
        return items

    assert asyncio.run(main()) == list(Llama().stream([1]))


def test_async_methods_and_generators_of_the_object(device):
    guarded = onelane.guard(Llama, device)
    wanted = list(Llama().stream([1]))

    async def main():
        return (
            await guarded.generate([1]),
            await guarded.generate.acall([1]),
            [token async for token in guarded.astream([1])],
            await device.acall(device.host_results(lambda: guarded.count())),
        )

    assert asyncio.run(main()) == (wanted, wanted, wanted, 9)


# Profiler and threads: what docs/python.md says of them


def test_a_profiler_that_is_started_on_the_worker_sees_it(device):
    queue = onelane.BatchQueue(torch.nn.Linear(4, 4).eval(), device)
    profiler = torch.profiler.profile()
    device.call(profiler.start)
    for _ in range(3):
        queue(torch.ones(1, 4))
    device.call(profiler.stop)
    assert {e.key: e.count for e in profiler.key_averages()}["aten::linear"] == 3


def test_the_number_of_threads_is_set_on_the_worker(device):
    mine = torch.get_num_threads()
    device.call(torch.set_num_threads, mine + 1)
    assert device.call(torch.get_num_threads) == mine + 1
    device.call(torch.set_num_threads, mine)


def test_a_mode_around_an_await_leaks_and_one_around_the_call_does_not(device):
    """Why docs/python.md says not to: PyTorch keeps modes by thread, not by task."""
    queue = onelane.BatchQueue(lambda x: (x, [torch.is_inference_mode_enabled()] * len(x)), device)
    x = torch.ones(1, 1)

    async def around_the_await(inside, done):
        with torch.inference_mode():
            inside.set()
            await done.wait()

    async def around_the_call():
        with torch.inference_mode():
            answer = queue.infer(x)
        return (await answer)[1]

    async def main():
        inside, done = asyncio.Event(), asyncio.Event()
        leaking = asyncio.create_task(around_the_await(inside, done))
        await inside.wait()
        leaked = (await queue.infer(x))[1]
        done.set()
        await leaking
        return leaked, await around_the_call(), (await queue.infer(x))[1]

    assert asyncio.run(main()) == ([True], [True], [False])
