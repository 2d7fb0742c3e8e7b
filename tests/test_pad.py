"""Padding on real PyTorch: a request gets what it gets alone."""

from __future__ import annotations

import pytest

import onelane
from common import Hold, close

torch = pytest.importorskip("torch")
pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


def test_padding_gives_what_a_request_gives_alone(device):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    shapes = set()

    def model(x, mask):
        shapes.add(tuple(x.shape))
        return {"hidden": layer(x, src_key_padding_mask=mask == 0), "pooled": x.sum(1)}

    pad = onelane.Pad(dim=1, buckets=(4, 8), mask="mask", trim=("hidden",), rows=(1, 2, 4, 8))
    queue = onelane.BatchQueue(model, device, requests=onelane.Tensors(pad=pad), max_batch_size=8)
    inputs = [torch.randn(1, n, 16) for n in (1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 3)]
    with torch.no_grad(), Hold(device):
        futures = [queue.submit(x) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        result = future.result(30)
        assert result["hidden"].shape == x.shape
        close(result["hidden"], layer(x))
        close(result["pooled"], x.sum(1))
    assert {shape[0] for shape in shapes} <= {1, 2, 4, 8}
    assert {shape[1] for shape in shapes} == {4, 8}
    with pytest.raises(ValueError, match="largest bucket is 8"):
        queue(torch.zeros(1, 9, 16))


def test_lengths_of_one_bucket_share_a_batch(device):
    shapes = []

    def model(x):
        shapes.append(tuple(x.shape))
        return x.sum(1)

    pad = onelane.Pad(buckets=(4, 8))
    queue = onelane.BatchQueue(model, device, onelane.Tensors(pad=pad), max_batch_size=8)
    with Hold(device):
        futures = [queue.submit(torch.ones(1, n)) for n in (1, 5, 2, 3, 8, 4)]
    assert [int(future.result(30)) for future in futures] == [1, 5, 2, 3, 8, 4]
    assert sorted(shapes) == [(2, 8), (4, 4)]


def test_inputs_that_disagree_about_the_length_are_refused(device):
    pad = onelane.Pad(buckets=(8,))
    queue = onelane.BatchQueue(lambda a, b: a, device, onelane.Tensors(pad=pad))
    with pytest.raises(ValueError, match="disagree about dimension 1: {'a': 2, 'b': 3}"):
        queue(a=torch.ones(1, 2), b=torch.ones(1, 3))
    with pytest.raises(ValueError, match="nothing to pad: no input has a dimension 1"):
        queue(a=torch.ones(1), b=torch.ones(1))


def test_padding_of_named_inputs_with_a_given_mask(device):
    pad = onelane.Pad(
        buckets=(4,), value={"ids": 7}, names=("ids", "mask"), mask="mask", side="left", trim=True
    )
    seen = []

    def model(ids, mask, features):
        seen.append((ids, mask))
        return ids * mask

    queue = onelane.BatchQueue(model, device, requests=onelane.Tensors(pad=pad))
    ids, mask = torch.tensor([[1, 2]]), torch.tensor([[0, 1]])
    result = queue(ids=ids, mask=mask, features=torch.zeros(1, 5))
    assert seen[0][0].tolist() == [[7, 7, 1, 2]]
    assert seen[0][1].tolist() == [[0, 0, 0, 1]]
    assert result.tolist() == [[0, 2]]


def test_padding_waste_counts_elements(device):
    pad = onelane.Pad(buckets=(16, 512), rows=(8, 32))
    queue = onelane.BatchQueue(lambda x: x.sum(1), device, onelane.Tensors(pad=pad))
    assert queue.stats().padding_waste == 0
    # 24 rows of 9 in a batch of 32 by 16, and 8 rows of 512 in one without padding.
    with Hold(device):
        futures = [queue.submit(torch.ones(1, n)) for n in [9] * 24 + [512] * 8]
    assert [int(future.result(30)) for future in futures] == [9] * 24 + [512] * 8
    stats = queue.stats()
    assert stats.batches == 2
    assert stats.padding_waste == pytest.approx(1 - (24 * 9 + 8 * 512) / (32 * 16 + 8 * 512))
    assert (stats.cost, stats.padded_cost) == (32, 40)
    budget = onelane.BatchQueue(lambda x: x, device, onelane.Tensors(pad=pad), max_batch_cost=9999)
    budget(torch.ones(8, 8))
    assert budget.stats().padding_waste == pytest.approx(0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 0},
        {"buckets": ()},
        {"buckets": (4, 2)},
        {"side": "top"},
        {"trim": "x"},
        {"rows": (0,)},
    ],
)
def test_bad_padding_is_named(settings):
    with pytest.raises(ValueError, match=rf"Pad\({next(iter(settings))}"):
        onelane.Pad(**settings)
