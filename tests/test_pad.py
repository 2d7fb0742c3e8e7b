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
