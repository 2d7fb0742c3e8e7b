"""Tensors in isolated workers: what crosses is what was given, and what the model returned."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import textwrap

import pytest

import onelane

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
if os.name != "posix":
    pytest.skip("isolated workers are for Unix", allow_module_level=True)

_wire = pytest.importorskip("onelane._wire")


class Echo(torch.nn.Module):
    """Says what it was given, and in which modes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x, scale=None, flag=0):
        y = x * self.weight if x.dtype == torch.float32 and x.shape[-1] == 3 else x
        if scale is not None:
            y = y * scale
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), flag)
        return {"y": y, "modes": str(modes)}


def double(x):
    return x * 2


@pytest.fixture(scope="module")
def echo():
    with onelane.DeviceExecutor("cpu", isolation="process") as home:
        yield onelane.BatchQueue(Echo().eval(), home, max_batch_size=16)


@pytest.fixture(scope="module")
def plain():
    with onelane.DeviceExecutor("cpu", isolation="process") as home:
        yield onelane.BatchQueue(double, home, max_batch_size=16, factory=False)


def test_a_module_that_is_given_goes_to_the_worker(echo):
    x = torch.randn(4, 3)
    response = echo(x)
    torch.testing.assert_close(response["y"], x * 2)
    assert not response["y"].requires_grad
    assert response["modes"] == "(True, False, 0)"


def test_dicts_plain_values_and_modes_cross(echo):
    x = torch.randn(2, 3)
    with torch.no_grad():
        response = echo({"x": x, "scale": torch.full((2, 1), 3.0), "flag": 7})
    torch.testing.assert_close(response["y"], x * 6)
    assert response["modes"] == "(False, False, 7)"
    with torch.inference_mode():
        response = echo(x)
    assert response["modes"] == "(False, True, 0)"
    assert not response["y"].is_inference()


def test_arrays_give_arrays(echo):
    response = echo(np.ones((2, 3), "f4"))
    np.testing.assert_array_equal(response["y"], np.full((2, 3), 2, "f4"))


DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8,
    torch.complex64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_plain_tensors_share_batches_and_own_their_memory(plain, dtype):
    inputs = [torch.arange(i, i + rows * 5).reshape(rows, 5).to(dtype)
              for i, rows in enumerate((1, 2, 0, 1, 3, 16, 1))]  # fmt: skip
    futures = plain.submit_many(inputs)
    for x, future in zip(inputs, futures, strict=True):
        y = future.result(60)
        assert y.dtype == dtype
        torch.testing.assert_close(y, x * 2)
        assert y.untyped_storage().nbytes() == y.numel() * y.element_size()
    first = plain(inputs[0])
    kept = first.clone()
    plain(inputs[1])
    torch.testing.assert_close(first, kept)
    first.add_(1)


def test_large_tensors_grow_the_shared_memory(plain):
    x = torch.randn(64, 65536)
    torch.testing.assert_close(plain(x), x * 2)


def test_pads_and_costs_work_as_in_process():
    pad = onelane.Pad(buckets=(4, 8), trim=True)
    with onelane.DeviceExecutor("cpu", isolation="process") as home:
        q = onelane.BatchQueue(double, home, onelane.Tensors(pad=pad), factory=False)
        inputs = [torch.full((1, length), float(length)) for length in (2, 3, 4, 7)]
        for x, future in zip(inputs, q.submit_many(inputs), strict=True):
            torch.testing.assert_close(future.result(60), x * 2)
        assert q.stats().padded_cost >= q.stats().cost


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3),
        torch.randn(4),
        torch.tensor(3.5),
        torch.randn(0, 3),
        torch.randn(3, 4).t(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, dtype=torch.complex64).conj(),
        torch.tensor([True, False]),
        torch.randn(2, 3, requires_grad=True),
        torch.eye(3).to_sparse(),
        torch.nn.Parameter(torch.randn(2)),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype}",
)
def test_any_tensor_crosses_as_it_is(tensor):
    pickle, buffers, _ = _wire.dump({"one": tensor})
    back = _wire.load((bytes(pickle), [bytearray(part) for part in buffers]))["one"]
    assert type(back) is type(tensor)
    assert (back.dtype, back.shape, back.layout) == (tensor.dtype, tensor.shape, tensor.layout)
    assert back.requires_grad == tensor.requires_grad
    if back.layout is torch.strided:
        assert back.is_contiguous(memory_format=torch.channels_last) or back.ndim != 4
        torch.testing.assert_close(back, tensor.resolve_conj())
    else:
        torch.testing.assert_close(back.to_dense(), tensor.to_dense())


def test_a_module_on_a_device_of_this_process_is_refused():
    class Elsewhere(torch.nn.Module):
        def buffers(self, recurse=True):
            yield type("Buffer", (), {"device": torch.device("mps")})()

    with pytest.raises(ValueError, match="give a function that loads the model there"):
        onelane.BatchQueue(Elsewhere().eval(), "cpu", isolation="process")


def test_modules_do_not_leave_the_worker():
    with onelane.DeviceExecutor("cpu", isolation="process") as home:
        with pytest.raises(TypeError, match="cannot leave the isolated worker"):
            home.call(torch.nn.Linear, 2, 2)
        torch.testing.assert_close(home.call(torch.ones, 2), torch.ones(2))


def test_a_parent_without_pytorch_sends_arrays_to_a_worker_that_has_it():
    script = """
        import sys
        import numpy as np
        import onelane

        with onelane.BatchQueue("test_isolation_torch:double", "cpu", factory=False,
                                requests=onelane.Tensors(pad=onelane.Pad(buckets=(4,), trim=True)),
                                isolation="process") as q:
            futures = q.submit_many([np.ones((2, 3), "f4"), np.ones((1, 2), "f4")])
            assert [f.result(60).shape for f in futures] == [(2, 3), (1, 2)]
            assert futures[0].result().tolist() == [[2, 2, 2], [2, 2, 2]]
            try:
                q(np.ones(()))
            except ValueError as error:
                assert "without dimensions" in str(error)
        assert "torch" not in sys.modules
    """
    tests = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-"],
        input=textwrap.dedent(script),
        cwd=tests,
        env={**os.environ, "PYTHONPATH": tests},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class Modes:
    """Says in which modes it is called."""

    @property
    def now(self):
        return torch.is_inference_mode_enabled()

    def one(self):
        return torch.is_inference_mode_enabled()

    def many(self, items):
        return [torch.is_inference_mode_enabled()] * len(items)

    def stream(self):
        while True:
            yield torch.is_inference_mode_enabled()


def test_an_awaited_call_has_the_modes_of_the_call():
    async def ask():
        with onelane.DeviceExecutor("cpu", isolation="process") as home:
            guarded = onelane.guard(Modes, home, batch={"many": 4}, factory=True)
            stream = await guarded.stream.acall()
            calls = (
                lambda: home.acall(torch.is_inference_mode_enabled),
                lambda: onelane.aget(guarded, "now"),
                lambda: guarded.one.acall(),
                lambda: guarded.many.acall([1]),
                lambda: anext(stream),
            )
            for inside, call in itertools.product((True, False), calls):
                with torch.inference_mode(inside):
                    called = call()
                with torch.inference_mode(not inside):
                    found = await called
                said = found[0] if isinstance(found, list) else found
                assert said is inside, (calls.index(call), inside)

    asyncio.run(ask())
