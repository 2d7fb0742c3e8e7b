"""What goes in: neighbours change no number and no type, and callers keep what is theirs."""

from __future__ import annotations

import datetime
import decimal
import warnings

import pytest

import onelane
from common import Hold

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


def together(device, queue, inputs):
    """Responses to requests that wait together, and how many batches that took."""
    before = queue.stats().batches
    with Hold(device):
        futures = [queue.submit(x) for x in inputs]
    results = [future.result(30) for future in futures]
    return results, queue.stats().batches - before


class Marked(torch.Tensor):
    """A subclass, as quantized weights and images with metadata are."""


def quantized(scale):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(1, 4), scale, 0, torch.qint8)


def nested(strided):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layout = torch.strided if strided else torch.jagged
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


PLAIN = torch.ones(1, 4)
OTHERS = {
    "subclass": lambda: torch.ones(1, 4).as_subclass(Marked),
    "sparse": lambda: torch.ones(1, 4).to_sparse(),
    "rows compressed": lambda: torch.ones(1, 4).to_sparse_csr(),
    "quantized": lambda: quantized(0.1),
    "nested": lambda: nested(True),
    "jagged": lambda: nested(False),
    "requires_grad": lambda: torch.ones(1, 4, requires_grad=True),
    "inference": lambda: torch.inference_mode()(torch.ones)(1, 4),
    "dtype": lambda: torch.ones(1, 4, dtype=torch.float64),
}


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"x": x}], ids=["plain", "dict"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_tensor_is_concatenated_with_its_like_alone(device, wrap, other):
    seen = []

    def model(x):
        seen.append((type(x), x.layout, x.is_nested, x.is_quantized, x.requires_grad, x.dtype))
        return torch.zeros(x.size(0), 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        queue = onelane.BatchQueue(model, device)
        odd = other()
        _, batches = together(device, queue, [wrap(PLAIN), wrap(odd), wrap(PLAIN)])
    assert batches == 2
    assert (torch.Tensor, torch.strided, False, False, False, torch.float32) in seen
    kinds = [type(odd), odd.layout, odd.is_nested, odd.is_quantized, odd.requires_grad, odd.dtype]
    assert tuple(kinds) in seen


def test_quantized_rows_keep_their_numbers(device):
    queue = onelane.BatchQueue(lambda x: x.dequantize(), device)
    (small, large), batches = together(device, queue, [quantized(0.01), quantized(10.0)])
    assert batches == 2
    assert small.sum() == pytest.approx(4, abs=0.1)
    assert large.sum() == 0
    whole = onelane.BatchQueue(lambda x: x, device)(quantized(0.01))
    assert whole.is_quantized
    assert whole.q_scale() == 0.01


def test_outputs_that_are_not_dense(device):
    queue = onelane.BatchQueue(lambda x: x.to_sparse(), device)
    results, batches = together(device, queue, [PLAIN, PLAIN * 2])
    assert batches == 1
    assert [r.to_dense().tolist() for r in results] == [[[1.0] * 4], [[2.0] * 4]]
    assert onelane.BatchQueue(lambda x: x.to_sparse(), device, requests=onelane.Each())(
        PLAIN
    ).is_sparse


def test_conjugated_and_negated_views(device):
    seen = []

    def model(x):
        seen.append((x.is_conj(), x.is_neg()))
        return x * 1

    queue = onelane.BatchQueue(model, device)
    z = torch.full((1, 2), 1 + 2j)
    results, batches = together(device, queue, [z, z.conj(), z.conj().imag[:, :1], z.imag[:, :1]])
    assert batches == 2
    assert results[1].tolist() == [[1 - 2j] * 2]
    assert results[2].tolist() == [[-2.0]]
    assert queue(z.conj()).numpy().tolist() == [[1 - 2j] * 2]
    assert set(seen) == {(False, False)}


def test_memory_formats_are_kept_and_not_mixed(device):
    seen = []

    def model(x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        seen.append((x.shape[0], x.is_contiguous(), last))
        return x.sum((1, 2, 3))

    queue = onelane.BatchQueue(model, device)
    x = torch.rand(1, 3, 4, 4)
    last = x.to(memory_format=torch.channels_last)
    _, batches = together(device, queue, [x, last, x, last, x.transpose(2, 3)])
    assert batches == 2
    assert sorted(seen) == [(2, False, True), (3, True, False)]
    queue(x.transpose(2, 3))
    assert seen[-1] == (1, True, False)


VALUES = {
    "zeros": (0.0, -0.0),
    "numbers": (1, True, 1.0, np.float32(1), np.int64(1)),
    "numbers in tuples": ((1,), (True,), (1.0,)),
    "names of a dict": ({1: "a"}, {True: "a"}),
    "decimals": (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    "zones": tuple(
        datetime.datetime(
            2026, 1, 1, hour, tzinfo=datetime.timezone(datetime.timedelta(hours=hour))
        )
        for hour in (0, 1)
    ),
    "frozen sets": (frozenset({1}), frozenset({True})),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_values_that_are_equal_and_not_the_same_are_kept_apart(device, values):
    queue = onelane.BatchQueue(lambda x, value: (x, [repr(value)] * len(x)), device)
    results, batches = together(device, queue, [(PLAIN, value) for value in values * 2])
    assert batches == len(values)
    assert [text for _, (text,) in results] == [repr(value) for value in values * 2]


def test_a_value_that_is_not_a_number_is_equal_to_itself(device):
    queue = onelane.BatchQueue(lambda x, value: x, device)
    assert together(device, queue, [(PLAIN, float("nan")) for _ in range(3)])[1] == 1


class Vague:
    """Says of nothing whether it is equal."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return 1

    def __eq__(self, other):
        return np.array([True, True])


def test_equality_that_is_no_bool_is_no_equality(device):
    queue = onelane.BatchQueue(lambda x, vague: x * vague.value, device)
    results, batches = together(device, queue, [(PLAIN, Vague(i)) for i in range(3)])
    assert batches == 3
    assert [int(r[0, 0]) for r in results] == [0, 1, 2]


# Arrays


def test_a_masked_array_is_refused_and_not_unmasked(device, mlp):
    masked = np.ma.masked_array(np.ones((1, 64), np.float32), mask=True)
    for requests in (onelane.Tensors(), onelane.Each()):
        queue = onelane.BatchQueue(mlp, device, requests)
        with pytest.raises(TypeError, match="mask"):
            queue(masked)
    lists = onelane.BatchQueue(
        lambda xs: [int(x.mask.sum()) for x in xs], device, requests=onelane.Items()
    )
    assert lists(masked) == 64


def test_arrays_that_pytorch_does_not_take_as_they_are(device):
    queue = onelane.BatchQueue(lambda x: x * 2, device)
    records = np.zeros(3, dtype=[("a", "u1"), ("b", "<f4")])
    records["b"] = 5
    for array in (np.arange(3.0, dtype=">f4"), records["b"], np.arange(3.0)[::-1]):
        assert queue(array).tolist() == (array * 2).tolist()


# What is the caller's


def in_place(x):
    return x.add_(1)


@pytest.mark.parametrize(
    ("requests", "model"),
    [
        (onelane.Tensors(), in_place),
        (onelane.Tensors(unpack=False), lambda d: in_place(d["x"])),
        (onelane.Each(), in_place),
        (onelane.Items(), lambda xs: [in_place(x) for x in xs]),
        (onelane.Items(collate=torch.stack), in_place),
    ],
    ids=["tensor", "dict", "single", "list", "function"],
)
def test_a_model_that_works_in_place_leaves_the_callers_tensors_alone(device, requests, model):
    queue = onelane.BatchQueue(model, device, requests)
    unpack = getattr(requests, "unpack", True)
    given = [torch.zeros(1, 2) for _ in range(3)]
    wrapped = [{"x": x} for x in given] if not unpack else given
    results = [queue(wrapped[0]), *together(device, queue, wrapped)[0]]
    assert all(x.abs().sum() == 0 for x in given)
    assert all((r == 1).all() for r in results)
    if unpack:
        array = np.zeros((1, 2), np.float32)
        if not isinstance(requests, onelane.Items):
            queue(array)
        assert array.sum() == 0


def test_a_batch_that_is_run_again_has_what_the_callers_gave(device):
    def model(xs):
        results = [x.add_(1) for x in xs]
        if len(xs) > 1:
            raise ValueError("too many")
        return results

    queue = onelane.BatchQueue(model, device, requests=onelane.Items())
    results, _ = together(device, queue, [torch.zeros(1) for _ in range(4)])
    assert [float(r) for r in results] == [1.0] * 4


# What is said where it is asked


def test_a_dict_whose_keys_are_no_names(device):
    with pytest.raises(TypeError, match=r"onelane.Tensors\(unpack=False\)"):
        onelane.BatchQueue(lambda **x: x, device, factory=False)({1: PLAIN})


def test_a_causal_model_is_told_to_keep_no_cache(device):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=10)
    model = transformers.GPT2LMHeadModel(config).eval()
    queue = onelane.BatchQueue(model, device)
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(onelane.NotBatchable, match="use_cache=False"):
        queue(input_ids=ids)
    assert queue(input_ids=ids, use_cache=False).logits.shape == (1, 3, 10)


# Costs


def test_a_batch_costs_no_more_than_is_said(device):
    shapes = []

    def model(ids):
        shapes.append(tuple(ids.shape))
        return ids.sum(1)

    pad = onelane.Pad(buckets=(16, 512))
    queue = onelane.BatchQueue(
        model, device, requests=onelane.Tensors(pad=pad), max_batch_cost=2048
    )
    requests = [torch.ones(1, n, dtype=torch.long) for n in [9] * 32 + [512] * 8]
    results, _ = together(device, queue, requests)
    assert [int(r) for r in results] == [9] * 32 + [512] * 8
    assert sorted(shapes) == [(4, 512), (4, 512), (32, 16)]
    shapes.clear()
    assert int(queue(torch.ones(8, 300, dtype=torch.long))[0]) == 300
    assert shapes == [(8, 512)]


def test_costs_by_a_function(device):
    sizes = []

    def model(texts):
        sizes.append(len(texts))
        return texts

    queue = onelane.BatchQueue(model, device, requests=onelane.Items(cost=len), max_batch_cost=6)
    together(device, queue, ["ab"] * 6 + [""] * 3)
    assert sizes[:2] == [3, 3]
    for wrong in (lambda x: "much", lambda x: -1, lambda x: float("nan")):
        queue = onelane.BatchQueue(
            model, device, requests=onelane.Items(cost=wrong), max_batch_cost=6
        )
        with pytest.raises(ValueError, match="cost= returned"):
            queue("x")
        assert queue.stats().submitted == 0
    for settings, text in (
        ({"requests": onelane.Items(cost=len)}, "max_batch_cost"),
        ({"requests": onelane.Items(), "max_batch_cost": 8}, "cost="),
        ({"requests": onelane.Items(cost=len), "max_batch_cost": 0}, "max_batch_cost=0"),
        ({"requests": onelane.Each(), "max_batch_cost": 8}, "each alone"),
    ):
        with pytest.raises(ValueError, match=text):
            onelane.BatchQueue(model, device, **settings)


# One item or several


class Texts:
    """Takes texts as `SentenceTransformer.encode` does, pairs as `CrossEncoder.predict` does."""

    def __init__(self):
        self.sizes = []

    def encode(self, sentences, *, scale=1):
        if isinstance(sentences, str):
            return self.encode([sentences], scale=scale)[0]
        self.sizes.append(len(sentences))
        return np.array([[len(s) * scale] for s in sentences])

    def predict(self, pairs):
        one = isinstance(pairs[0], str)
        self.sizes.append(1 if one else len(pairs))
        scores = np.array([len(a) * 10 + len(b) for a, b in ([pairs] if one else pairs)])
        return scores[0] if one else scores

    def shapes(self, items):
        self.sizes.append(len(items))
        return [f"{type(x).__name__}{getattr(x, 'shape', '')}" for x in items]


@pytest.mark.parametrize("first", ["a b", ["a", "b"], ("a", "b", "c"), np.array(["a", "bb", "c"])])
def test_a_batched_method_means_what_it_means(device, first):
    guarded = onelane.guard(Texts, device, batch={"encode": 8, "predict": 8})
    for texts in (first, "x", ["a", "bb", "c"], ("a", "bb"), np.array(["a", "b"]), {"a", "b"}, []):
        for call in (lambda t, x: t.encode(x), lambda t, x: t.encode(sentences=x, scale=2)):
            result, bare = call(guarded, texts), call(Texts(), texts)
            assert result.shape == bare.shape
            assert (result == bare).all()
    for pairs in (["q", "pp"], ("q", "pp"), [["q", "p"], ["qq", "p"]], [("q", "p")] * 3):
        assert np.array_equal(guarded.predict(pairs), Texts().predict(pairs))


def test_a_pair_in_either_form_shares_a_batch(device):
    guarded = onelane.guard(Texts, device, batch={"predict": 8})
    for pair in (["q", "pp"], ("q", "pp")):
        assert guarded.predict(pair) == 12
    from concurrent.futures import ThreadPoolExecutor

    queue = onelane._proxy.lane_of(guarded).batched["predict"].queue
    with ThreadPoolExecutor(4) as pool:
        with Hold(device):
            calls = [
                pool.submit(guarded.predict, p) for p in (["a", "b"], ("aa", "b"), ["a", "bb"])
            ]
            while queue.stats().waiting < 3:
                pass
        assert [call.result(30) for call in calls] == [11, 21, 12]
    assert guarded.sizes[-1] == 3


@pytest.mark.parametrize(
    "item",
    [np.ones((4, 4, 3)), np.ones(16000, np.float32), np.array(5), torch.ones(2, 3), torch.tensor(1),
     np.ones((0, 2)), torch.empty(0), b"raw", bytearray(b"raw"), {"a": 1}, 5, None],
    ids=lambda x: f"{type(x).__name__}{getattr(x, 'shape', '')}",
)  # fmt: skip
def test_anything_is_one_item(device, item):
    guarded = onelane.guard(Texts, device, batch={"shapes": 8})
    queue = onelane.BatchQueue(Texts().shapes, device, requests=onelane.Items())
    assert guarded.shapes(item) == queue(item) == Texts().shapes([item])[0]
    assert onelane._proxy.lane_of(guarded).batched["shapes"].queue.stats().completed == 1


def test_parameters_that_cannot_be_compared_run_by_themselves(device):
    class Scaled:
        def encode(self, texts, weights):
            return [len(t) * weights.sum() for t in texts]

    guarded = onelane.guard(Scaled, device, batch={"encode": 8})
    for weights in (np.ones(3), torch.ones(3)):
        assert guarded.encode(["ab"], weights) == [6]
        assert guarded.encode(["ab"], weights=weights) == [6]
