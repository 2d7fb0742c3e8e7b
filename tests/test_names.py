"""Names: devices, settings, factories, and what a proxy says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import typing

import pytest

import onelane
from common import Hold

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(60)


# Devices


@pytest.mark.parametrize("name", ["cpu", "CPU", " cpu ", "cpu:0", "Cpu:0", torch.device("cpu")])
def test_one_device_has_one_name_and_one_owner(name):
    assert onelane.executor(name) is onelane.executor("cpu")
    assert onelane.DeviceExecutor(name).device == "cpu"


def test_indices_are_numbers():
    assert onelane.DeviceExecutor("CUDA:01").device == "cuda:1"
    assert onelane.DeviceExecutor("cuda:0").device == "cuda"
    assert onelane.DeviceExecutor("MPS:0").device == "mps"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mpss", "'mps'"),
        ("cdua:0", "'cuda'"),
        ("gpu", "'mps'"),
        ("metal", "'mps'"),
        ("quantum", "custom=True"),
        ("cuda:one", "number"),
        ("cuda:", "number"),
        ("mps:1", "one 'mps'"),
        ("", "empty"),
    ],
)
def test_a_device_that_is_none(name, text):
    for make in (
        onelane.executor,
        onelane.DeviceExecutor,
        lambda name: onelane.BatchQueue(lambda x: x, name),
        lambda name: onelane.guard(dict, name),
        lambda name: onelane.compat.MPSBatchQueue(device=name),
        onelane.audit,
    ):
        with pytest.raises(ValueError, match=text):
            make(name)


def test_another_runtime_is_named_once():
    with onelane.executor("tensorrt-test", custom=True) as device:
        assert onelane.executor("tensorrt-test") is device
        queue = onelane.BatchQueue(lambda xs: xs, "tensorrt-test", requests=onelane.Items())
        assert queue(1) == 1


# Settings


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: onelane.BatchQueue(len, "cpu", max_batchsize=3), "max_batch_size"),
        (lambda: onelane.BatchQueue.from_factory(list, "cpu", capcity=3), "capacity"),
        (lambda: onelane.BatchQueue(len, "cpu", qqq=3), "it has model"),
        (lambda: onelane.guard(dict, "cpu", batches={}), "batch"),
        (lambda: onelane.executor("cpu", worker=1), "workers"),
        (lambda: onelane.DeviceExecutor("cpu", worker=1), "workers"),
        (lambda: onelane.Pad(bucket=(1,)), "buckets"),
        (lambda: onelane.Tensors(cuda_graph=True), "cuda_graphs"),
        (lambda: onelane.Items(colate=list), "collate"),
        (lambda: onelane.Each(unpacked=True), "unpack"),
        (lambda: onelane.BatchQueue(len, "cpu", request=onelane.Each()), "requests"),
        (lambda: onelane.BatchQueue(len, "cpu", onelane.Each), r"onelane.Each\(...\)"),
        (lambda: onelane.guard(dict, "cpu", batch={"item": 3}), "'items'"),
        (lambda: onelane.guard(dict, "cpu", batch=["items"]), r"\{'encode': 32\}"),
        (lambda: onelane.guard(dict, "cpu", methods=["item"]), "'items'"),
        (lambda: onelane.guard(dict, "cpu", exclusive=["item"]), "'items'"),
    ],
)
def test_a_misspelt_setting(make, text):
    with pytest.raises(TypeError, match=text):
        make()


def test_misspelt_values_and_names():
    for kind in (onelane.Tensors, onelane.Items, onelane.Each):
        with pytest.raises(ValueError, match="Did you mean 'device'"):
            kind(output="devise")
    with pytest.raises(AttributeError, match="Did you mean 'BatchQueue'"):
        _ = onelane.BatchQeue
    assert not hasattr(onelane, "__wrapped__")


# Factories


class Net(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.layer = torch.nn.Linear(2, width)

    def forward(self, x=None):
        return self.layer(x)

    def encode(self, text):
        return len(text)


def load(path="weights", device="cpu"):
    return Net().eval()


def test_a_loader_is_not_taken_for_a_model(device):
    x = torch.ones(1, 2)
    for loader in (load, functools.partial(load, path="w")):
        with pytest.raises(TypeError, match="factory=True or factory=False"):
            onelane.BatchQueue(loader, device)
        assert onelane.BatchQueue(loader, device, factory=True)(x).shape == (1, 2)
        assert onelane.BatchQueue.from_factory(loader, device)(x).shape == (1, 2)
        assert onelane.guard(loader, device)(x).shape == (1, 2)
    for factory in (Net, lambda: load()):
        assert onelane.BatchQueue(factory, device)(x).shape == (1, 2)
    net = load()
    for model in (net, net.forward, lambda *x: x[0], lambda x, scale=1: x):
        assert onelane.BatchQueue(model, device)(x).shape == (1, 2)
    optional = onelane.BatchQueue(lambda x=None: x, device, factory=False)
    assert optional(x).shape == (1, 2)


def test_what_needs_arguments_is_guarded_itself(device):
    assert onelane.guard(Net().encode, device)("abc") == 3
    assert onelane.guard(lambda x: x + 1, device)(1) == 2
    assert onelane.guard(load, device, factory=False)().encode("abc") == 3


# Proxies


class Embedding:
    """Embeds."""

    def __call__(self, input):
        return [float(len(x)) for x in input]

    def embed(self, input: list, scale: int = 1) -> list:
        """Embed a list."""
        return self(input)

    @staticmethod
    def name():
        return "embedding"

    @classmethod
    def build(cls):
        return cls()

    @property
    def dim(self):
        return 1


@typing.runtime_checkable
class Embeds(typing.Protocol):
    def __call__(self, input): ...

    def embed(self, input): ...


def test_a_proxy_says_what_its_object_is(device):
    proxy = onelane.guard(Embedding, device)
    assert isinstance(proxy, Embedding)
    assert isinstance(proxy, Embeds)
    assert proxy.__class__ is Embedding
    assert type(proxy).__name__ == "Embedding"
    assert "Embedding" in str(type(proxy))
    assert proxy.__doc__ == "Embeds."
    assert str(inspect.signature(proxy)) == "(input)"
    assert list(inspect.signature(proxy.__class__.__call__).parameters) == ["self", "input"]
    assert inspect.signature(proxy.embed) == inspect.signature(Embedding().embed)
    assert proxy.embed.__doc__ == "Embed a list."
    assert proxy.embed.__name__ == "embed"
    assert proxy.name() == "embedding"
    assert isinstance(proxy.build(), Embedding)
    assert proxy.dim == 1
    assert proxy == proxy
    assert proxy in {proxy}
    assert not hasattr(proxy, "missing")
    assert getattr(proxy, "missing", 3) == 3
    batched = onelane.guard(Embedding, device, batch={"embed": 4})
    assert inspect.signature(batched.embed) == inspect.signature(Embedding().embed)
    net = onelane.guard(Net, device)
    assert isinstance(net, torch.nn.Module)
    assert isinstance(net.layer, torch.nn.Linear)
    assert callable(net)
    assert not callable(onelane.guard(lambda: 1.5j, device).real)
    assert not callable(onelane.guard(object, device))


# asyncio


class Talker:
    def __init__(self):
        self.closed = 0
        self.name = "talker"

    def stream(self, n):
        try:
            yield from range(n)
        finally:
            self.closed += 1


def test_a_stream_can_be_closed_from_a_loop(device):
    guarded = onelane.guard(Talker, device)

    async def main():
        stream = await guarded.stream.acall(100)
        assert hasattr(stream, "__anext__")
        async with contextlib.aclosing(stream) as items:
            async for i in items:
                if i == 2:
                    break
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(main())
    assert guarded.closed == 1


def test_nothing_of_a_stream_or_an_attribute_blocks_the_loop(device):
    guarded = onelane.guard(Talker, device)

    async def main():
        with Hold(device):
            asked = [
                asyncio.create_task(collect(guarded)),
                asyncio.create_task(device.acall(lambda: guarded.name)),
            ]
            # The loop goes on while the worker is held: else this would never come back.
            for _ in range(10):
                await asyncio.sleep(0)
            assert not any(task.done() for task in asked)
        return await asyncio.gather(*asked)

    assert asyncio.run(main()) == [[0, 1, 2], "talker"]


async def collect(guarded):
    return [i async for i in guarded.stream(3)]
