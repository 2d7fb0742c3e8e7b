"""How requests become one call of the model on real PyTorch, and its output one response each."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass

import pytest

import onelane
from common import Hold
from onelane import _tensors

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

pytestmark = pytest.mark.timeout(90)


def test_only_agreeing_requests_share_a_batch(device):
    seen = []

    def model(x, scale):
        seen.append((x.dtype, tuple(x.shape), scale))
        return x * scale

    queue = onelane.BatchQueue(model, device)
    with Hold(device):
        futures = [
            queue.submit(torch.ones(1, width, dtype=dtype), scale)
            for _ in range(2)
            for width in (2, 3)
            for dtype in (torch.float32, torch.float64)
            for scale in (1, 1.0, True)
        ]
    for future in futures:
        future.result(30)
    assert len(seen) == 12
    assert {shape[0] for _, shape, _ in seen} == {2}


def test_dicts_tuples_and_keywords(device):
    def model(a, b=None, *, flag="x"):
        return {"sum": a + b, "flag": flag}

    queue = onelane.BatchQueue(model, device)
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    for result in (
        queue({"a": a, "b": b, "flag": "x"}),
        queue((a, b)),
        queue(a, b),
        queue(a, b=b, flag="x"),
        queue.submit(a=a, b=b).result(30),
    ):
        assert torch.equal(result["sum"], a + b)
        assert result["flag"] == "x"
    whole = onelane.BatchQueue(
        lambda d: d["a"] + d["b"][0], device, requests=onelane.Tensors(unpack=False)
    )
    assert torch.equal(whole({"a": a, "b": [b]}), a + b)


Pair = namedtuple("Pair", "left right")


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None = None
    cache: None = None


def test_outputs_of_any_nesting_are_split_by_rows(device):
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    def model(x):
        return (
            Pair(x, [x + 1, {"n": x.numpy() + 2}]),
            Output(x * 3, (x * 4, x * 5)),
            BaseModelOutputWithPooling(last_hidden_state=x[:, None], pooler_output=x),
            [str(float(row[0])) for row in x],
        )

    queue = onelane.BatchQueue(model, device)
    inputs = [torch.full((n, 2), float(n)) for n in (1, 2, 3)]
    with Hold(device):
        futures = [queue.submit(x) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        pair, output, hf, texts = future.result(30)
        assert type(pair) is Pair
        assert torch.equal(pair.left, x)
        assert torch.equal(pair.right[0], x + 1)
        assert (pair.right[1]["n"] == x.numpy() + 2).all()
        assert type(output) is Output
        assert torch.equal(output.hidden[1], x * 5)
        assert type(hf) is BaseModelOutputWithPooling
        assert torch.equal(hf.last_hidden_state, x[:, None])
        assert torch.equal(hf[1], x)
        assert texts == [str(float(len(x)))] * len(x)
    assert queue.stats().batches == 1


def test_numpy_in_numpy_out(device, mlp):
    queue = onelane.BatchQueue(mlp, device)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    x.setflags(write=False)
    with Hold(device):
        array, tensor = queue.submit(x[:, ::-1]), queue.submit(torch.ones(1, 64))
    assert isinstance(array.result(30), np.ndarray)
    assert isinstance(tensor.result(30), torch.Tensor)
    expected = mlp(torch.tensor(x[:, ::-1].copy()))
    np.testing.assert_allclose(array.result(), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert array.result().flags.owndata or array.result().base is not None
    with pytest.raises(TypeError, match="dtype"):
        queue(np.array([["a"]]))


def test_results_share_memory_with_nobody(device):
    buffer = torch.zeros(8, 2)

    def model(x):
        # What a CUDA graph does: the same output buffer each time.
        buffer[: len(x)] = x
        return buffer[: len(x)]

    queue = onelane.BatchQueue(model, device)
    alone = queue(torch.ones(8, 2))
    with Hold(device):
        futures = [queue.submit(torch.full((1, 2), float(i))) for i in range(4)]
    parts = [future.result(30) for future in futures]
    assert torch.equal(alone, torch.ones(8, 2))
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 4
    assert all(part.untyped_storage().nbytes() == 8 for part in parts)
    parts[0].fill_(9)
    assert torch.equal(parts[1], torch.ones(1, 2))


def storages(tensors):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


# A tensor alone goes another way through the collator than one in a structure.
@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: {"y": y}], ids=["plain", "dict"])
def test_views_share_one_copy_of_their_batch(device, wrap):
    with torch.inference_mode():
        buffer = torch.zeros(8, 2)

    def model(x):
        buffer[: len(x)] = x
        return wrap(buffer[: len(x)])

    queue = onelane.BatchQueue(model, device, requests=onelane.Tensors(copy=False))
    batches = []
    for first in (1.0, 10.0):
        inputs = [torch.full((n, 2), first + n) for n in (1, 2, 0, 3)]
        with torch.inference_mode(), Hold(device):
            futures = [queue.submit(x) for x in inputs]
        results = [future.result(30) for future in futures]
        batches.append((inputs, [y["y"] if isinstance(y, dict) else y for y in results]))
    assert queue.stats().batches == 2
    for inputs, parts in batches:
        for x, part in zip(inputs, parts, strict=True):
            assert torch.equal(part, x)
            assert not part.is_inference()
        assert len(storages(part for part in parts if len(part))) == 1
        assert parts[0].untyped_storage().nbytes() == 6 * 2 * 4
    assert not storages(batches[0][1]) & (storages(batches[1][1]) | storages([buffer]))


class Copied(TorchDispatchMode):
    """Notes the most elements copied by one operation, which PyTorch may share out."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (
            torch.ops.aten.clone,
            torch.ops.aten.copy_,
            torch.ops.aten.cat,
        ):
            self.most = max(self.most, result.numel())
        return result


# PyTorch's `at::internal::GRAIN_SIZE`: an operation on fewer elements stays on its thread.
GRAIN_SIZE = 32768


@pytest.mark.parametrize("shape", [(256, 512), (65, 512), (70_000, 2), (100_000,), (3, 20_000)])
def test_a_large_batch_is_copied_without_the_threads_of_pytorch(shape):
    whole = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    rows = [1] * shape[0]
    with Copied() as copied:
        duplicate = _tensors.duplicate(torch, whole)
        together = _tensors.concatenate(torch, list(whole.split(rows)), rows)
    assert torch.equal(duplicate, whole)
    assert torch.equal(together, whole)
    assert not storages([duplicate, together]) & storages([whole])
    assert 0 < copied.most < GRAIN_SIZE


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (2, 40_000)])
def test_what_does_not_come_in_pieces_is_copied_as_well(shape):
    for whole in (
        torch.rand(shape),
        torch.rand(shape[::-1]).permute(tuple(reversed(range(len(shape))))),
    ):
        duplicate = _tensors.duplicate(torch, whole)
        assert torch.equal(duplicate, whole)
        duplicate.fill_(7)
        assert not (whole == 7).any()


def test_a_write_to_one_view_is_nothing_to_the_others(device):
    for kind, rows in ((onelane.Tensors, lambda x: x), (onelane.Items, torch.stack)):
        queue = onelane.BatchQueue(rows, device, requests=kind(copy=False))
        with Hold(device):
            futures = [queue.submit(torch.full((1, 2), float(i))) for i in range(3)]
        a, b, c = (future.result(30) for future in futures)
        assert len(storages((a, b, c))) == 1
        weight = torch.ones(1, 2, requires_grad=True)
        loss = (b * weight).sum()
        a.add_(7)
        c.mul_(weight)
        loss.backward()
        assert weight.grad.tolist() == [[1.0, 1.0]]
        assert a.tolist() == [[7.0, 7.0]]
        assert b.tolist() == [[1.0, 1.0]]
        assert c.tolist() == [[2.0, 2.0]]
        assert not b.requires_grad


@pytest.mark.parametrize("copy", [True, False])
def test_arrays_and_padded_requests_are_views_only_if_asked_for(device, copy):
    buffer = torch.zeros(8, 4)

    def model(x):
        buffer[: len(x)] = x
        return buffer[: len(x)]

    pad = onelane.Pad(buckets=(4,), trim=True, rows=(8,))
    for settings in ({}, {"pad": pad}):
        requests = onelane.Tensors(copy=copy, **settings)
        queue = onelane.BatchQueue(model, device, requests)
        widths = (1, 4, 3) if settings else (4, 4, 4)
        inputs = [torch.full((n, w), float(n)) for n, w in zip((1, 2, 3), widths, strict=True)]
        with Hold(device):
            tensors = [queue.submit(x) for x in inputs[:2]]
            array = queue.submit(inputs[2].numpy())
        buffer.fill_(-1)
        assert isinstance(array.result(30), np.ndarray)
        parts = [future.result(30) for future in tensors] + [torch.from_numpy(array.result())]
        for x, part in zip(inputs, parts, strict=True):
            assert torch.equal(part, x)
        assert queue.stats().batches == 1
        low = [part.data_ptr() for part in parts]
        assert (low == [low[0], low[0] + 16, low[0] + 48]) is not copy
        assert len(storages(parts[:2])) == (2 if copy else 1)
        assert not storages(parts) & storages([buffer])


def test_an_empty_request(device, mlp):
    queue = onelane.BatchQueue(mlp, device)
    assert queue(torch.empty(0, 64)).shape == (0, 8)


# Other collations


def test_lists(device):
    sizes = []
    queue = onelane.BatchQueue(
        lambda texts: sizes.append(len(texts)) or [t.upper() for t in texts],
        device,
        requests=onelane.Items(),
    )
    with Hold(device):
        futures = queue.submit_many(["a", "b", "c"])
    assert [f.result(30) for f in futures] == ["A", "B", "C"]
    assert sizes == [3]
    rows = onelane.BatchQueue(
        lambda xs: torch.tensor(xs)[:, None], device, requests=onelane.Items()
    )
    assert rows(5).tolist() == [5]
    short = onelane.BatchQueue(lambda xs: [], device, requests=onelane.Items())
    with pytest.raises(onelane.NotBatchable, match="0 results for 1 inputs"):
        short(1)


def test_a_collate_function(device):
    queue = onelane.BatchQueue(
        lambda batch: {"y": batch["x"] * 2},
        device,
        onelane.Items(collate=lambda xs: {"x": torch.stack(xs)}),
    )
    with Hold(device):
        futures = [queue.submit(torch.full((3,), float(i))) for i in range(4)]
    for i, future in enumerate(futures):
        assert future.result(30)["y"].tolist() == [2.0 * i] * 3
    assert queue.stats().batches == 1


def test_a_model_that_cannot_be_batched_is_told_apart_and_told_what_to_do(device):
    for model in (torch.sum, lambda x: x[0], lambda x: (x, 1.5), lambda x: object()):
        with pytest.raises(onelane.NotBatchable, match="onelane.Each"):
            onelane.BatchQueue(model, device, factory=False)(torch.ones(2, 3))
    queue = onelane.BatchQueue(torch.sum, device, requests=onelane.Each())
    assert queue(torch.ones(2, 2)).item() == 4
    assert queue(torch.tensor(3.0)).item() == 3
    assert queue(np.ones(3)).item() == 3


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (lambda: (torch.ones(2, 3), torch.ones(4)), ValueError, r"\(2, 3\) torch.float32.*\(4,\)"),
        (lambda: torch.tensor(1.0), ValueError, r"onelane.Each\(\)"),
        (lambda: "text", TypeError, r"onelane.Items\(\)"),
        (lambda: {"x": torch.ones(1), "y": {1, 2}}, TypeError, "'y' is of type set"),
    ],
)
def test_a_wrong_input_is_refused_where_it_is_given(device, mlp, bad, error, text):
    queue = onelane.BatchQueue(mlp, device)
    with pytest.raises(error, match=text):
        queue(bad())
    assert queue.stats().submitted == 0


@pytest.mark.parametrize("value", [None, 0, "no"])
def test_what_is_said_of_copies_is_true_or_false(value):
    with pytest.raises(TypeError, match=f"copy={value!r}"):
        onelane.Tensors(copy=value)
