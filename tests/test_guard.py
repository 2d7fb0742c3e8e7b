"""The proxy: objects that live on the worker."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import onelane
from common import Hold

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def device():
    with onelane.DeviceExecutor("cpu") as executor:
        yield executor


class Encoder(torch.nn.Module):
    """Shaped like a sentence encoder; says where it is used."""

    where: list

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.env = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
        self.sizes, self.closed_on, self.name = [], [], "encoder"
        Encoder.where = [threading.get_ident()]

    def forward(self, x):
        return {"y": self.layer(x), "on": threading.get_ident()}

    def encode(self, texts, scale=1.0, as_tensor=False, fail=False):
        self.sizes.append(1 if isinstance(texts, str) else len(texts))
        if fail:
            raise ValueError("Intentional test error")
        if isinstance(texts, str):
            return self.encode([texts], scale, as_tensor)[0]
        rows = [[len(t) * scale, ord(t[0])] for t in texts]
        return torch.tensor(rows) if as_tensor else np.array(rows)

    def predict(self, pairs):
        self.sizes.append(len(pairs))
        return [a + b for a, b in pairs]

    def stream(self, n):
        try:
            for i in range(n):
                yield torch.full((2,), float(i))
        finally:
            self.closed_on.append(threading.get_ident())

    def __del__(self):
        Encoder.where.append(threading.get_ident())


@pytest.fixture
def worker(device):
    return device.call(threading.get_ident)


def test_construction_calls_and_destruction_are_on_the_worker(device, worker):
    guarded = onelane.guard(Encoder, device)
    assert guarded.env == "1"
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    assert guarded(torch.ones(1, 4))["on"] == worker
    del guarded
    gc.collect()
    device.call(int)
    assert Encoder.where == [worker, worker]


def test_attributes_items_and_changes(device):
    guarded = onelane.guard(Encoder, device)
    assert guarded.name == "encoder"
    guarded.name = "other"
    assert guarded.name == "other"
    del guarded.name
    with pytest.raises(AttributeError, match="name"):
        _ = guarded.name
    assert issubclass(type(guarded.layer), onelane._guard.Guarded)
    assert guarded.layer.in_features == 4
    weight = guarded.layer.weight
    assert type(weight) is torch.Tensor
    assert not weight.requires_grad
    weight.zero_()
    assert guarded.layer.weight.abs().sum() > 0
    assert set(guarded.state_dict()) == {"layer.weight", "layer.bias"}
    sequence = onelane.guard(lambda: ["a", "b"], device)
    assert len(sequence) == 2
    assert "a" in sequence
    assert list(sequence) == ["a", "b"]
    sequence[1] = "c"
    assert sequence[1] == "c"
    assert "Encoder" in repr(guarded)
    assert "Linear" in str(guarded)
    assert "encode" in dir(guarded)
    with pytest.raises(TypeError, match="pickled"):
        __import__("pickle").dumps(guarded)


def test_what_returns_the_object_returns_the_proxy(device):
    guarded = onelane.guard(Encoder(), device)
    assert guarded.to("cpu") is guarded
    assert guarded.eval().train(False).float() is guarded


def test_proxies_can_be_given_to_guarded_methods(device):
    guarded = onelane.guard(lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)), device)
    layer = guarded[0]
    guarded.append(layer)
    assert len(guarded) == 2
    assert guarded(torch.ones(1, 2)).shape == (1, 2)


def test_exceptions_arrive_as_they_are(device):
    guarded = onelane.guard(Encoder, device)
    with pytest.raises(ValueError, match="Intentional test error"):
        guarded.encode("x", fail=True)
    with pytest.raises(AttributeError, match="no_such"):
        guarded.no_such()


def test_generators_are_streamed_and_closed_on_the_worker(device, worker):
    guarded = onelane.guard(Encoder, device)
    assert [int(t[0]) for t in guarded.stream(3)] == [0, 1, 2]
    stream = guarded.stream(100)
    assert int(next(stream)[0]) == 0
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    dropped = guarded.stream(100)
    next(dropped)
    del dropped
    gc.collect()
    assert guarded.closed_on == [worker] * 3

    async def main():
        return [int(t[0]) async for t in guarded.stream(4)]

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_many_threads(device):
    guarded = onelane.guard(Encoder, device)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda i: guarded.encode("x" * i), range(1, 200)))
    assert [row[0] for row in results] == list(range(1, 200))


def test_chosen_methods_alone_go_to_the_worker(device, worker):
    guarded = onelane.guard(Encoder, device, methods=["forward"])
    assert guarded.forward(torch.ones(1, 4))["on"] == worker
    assert guarded.layer.weight.requires_grad


def test_used_on_the_worker_it_runs_inline(device):
    guarded = onelane.guard(Encoder, device)
    assert device.call(guarded.encode, "abc")[0] == 3


def test_batched_methods(device):
    guarded = onelane.guard(Encoder, device, batch={"encode": 8, "predict": 8})
    # From these it knows that a text is an item of `encode`, and a pair one of `predict`.
    assert guarded.encode("abc")[0] == 3
    assert guarded.predict(("a", "b")) == "ab"
    guarded.sizes = []
    hold, held = threading.Event(), threading.Event()
    device.submit(lambda: (held.set(), hold.wait(30)))
    assert held.wait(30)
    with ThreadPoolExecutor(12) as pool:
        ones = [pool.submit(guarded.encode, "x" * i) for i in range(1, 6)]
        lists = pool.submit(guarded.encode, ["ab", "abc"])
        scaled = pool.submit(guarded.encode, "abc", scale=2.0)
        tensor = pool.submit(guarded.encode, "abc", as_tensor=True)
        failing = pool.submit(guarded.encode, "abc", fail=True)
        pairs = [pool.submit(guarded.predict, (str(i), "!")) for i in range(2)]
        while sum(queue.stats().waiting for queue in _queues(guarded)) < 11:
            pass
        hold.set()
        assert [f.result(30)[0] for f in ones] == [1, 2, 3, 4, 5]
        assert ones[0].result().shape == (2,)
        assert lists.result(30)[:, 0].tolist() == [2, 3]
        assert scaled.result(30)[0] == 6
        assert tensor.result(30).tolist() == [3, 97]
        assert isinstance(failing.exception(30), ValueError)
        assert [f.result(30) for f in pairs] == ["0!", "1!"]
    assert sorted(guarded.sizes) == [1, 1, 1, 2, 7]
    assert guarded.encode([]).shape == (0,)

    async def main():
        return await guarded.encode.acall("abcd")

    assert asyncio.run(main())[0] == 4
    with pytest.raises(TypeError, match="no method 'nothing'"):
        onelane.guard(Encoder, device, batch={"nothing": 2})


def _queues(guarded):
    return [b.queue for b in onelane._proxy.lane_of(guarded).batched.values()]


def test_without_a_device_nothing_is_guarded_where_nothing_needs_it():
    if torch.backends.mps.is_available():
        pytest.skip("MPS is there, and is guarded")
    assert type(onelane.guard(Encoder)) is Encoder
    thing = object()
    assert onelane.guard(thing) is thing


def test_a_factory_that_fails(device):
    with pytest.raises(ZeroDivisionError):
        onelane.guard(lambda: 1 / 0, device)


@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_a_modules_forward_is_told_of_the_batch_queue(device, name):
    with pytest.raises(TypeError, match=r"onelane.BatchQueue\(model, 'cpu', max_batch_size=8\)"):
        onelane.guard(torch.nn.Linear(2, 2), device, batch={name: 8})


def test_statistics_of_a_guarded_object(device):
    class Encoder:
        def encode(self, xs):
            return [x + "!" for x in xs]

        def count(self):
            return 3

    guarded = onelane.guard(Encoder, device, batch={"encode": 8})
    assert guarded.encode("a") == "a!"
    before = onelane.stats(guarded)
    assert guarded.count() == 3
    with ThreadPoolExecutor(4) as pool, Hold(device):
        answers = [pool.submit(guarded.encode, text) for text in "abcd"]
        # The worker is held all the while: this does not wait for it.
        while guarded.stats().batched["encode"].waiting < 4:
            pass
    assert [answer.result(30) for answer in answers] == ["a!", "b!", "c!", "d!"]
    after = guarded.stats()
    assert after.calls.completed > before.calls.completed
    assert after.batched["encode"].completed == 5
    assert after.batched["encode"].batches == 2
    with pytest.raises(TypeError, match=r"what guard\(\) returned"):
        onelane.stats({})


def test_an_objects_own_stats_are_its_own(device):
    class Counter:
        def stats(self):
            return "mine"

    guarded = onelane.guard(Counter, device)
    assert guarded.stats() == "mine"
    assert onelane.stats(guarded).batched == {}
