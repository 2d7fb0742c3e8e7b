"""`guard(..., batch=)` knows lengths: what waits is sorted, split, and padded to known shapes."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

import onelane
from common import Hold
from onelane import _grouping
from onelane._mac_check import models as tiny_models

pytestmark = pytest.mark.timeout(300)


class Clock:
    """The time that calls take, on nobody's clock: a launch, and so much a padded character."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Padding:
    """Pads what it is called with to the longest text, as a tokenizer does, and counts."""

    def __init__(self, clock):
        self.calls, self._clock = [], clock

    def encode(self, texts, prefix=""):
        rows, longest = len(texts), max(map(len, texts))
        self.calls.append([len(text) for text in texts])
        self._clock.now += 0.001 + rows * longest * 1e-5
        return [prefix + text for text in texts]

    def shown(self):
        return list(self.calls)


def padding(calls):
    """The part of what was computed that was padding."""
    padded = sum(len(call) * max(call) for call in calls)
    return 1 - sum(map(sum, calls)) / padded


@pytest.fixture
def guarded(device, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_grouping, "_clock", clock)
    made = onelane.guard(lambda: Padding(clock), device, batch={"encode": 32})
    made.encode(["learn", "the", "form"])
    return made


def together(device, ask, items, *more):
    """Ask for each item on a thread of its own, so that they all wait together."""
    with ThreadPoolExecutor(len(items)) as pool:
        with Hold(device):
            futures = [pool.submit(ask, item, *more) for item in items]
            queue = onelane._proxy.lane_of(ask._proxy).batched["encode"].queue
            while queue.stats().waiting < len(items):
                pass
        return [future.result(60) for future in futures]


def test_a_batch_of_mixed_lengths_is_split_where_padding_costs_more(device, guarded):
    draw = random.Random(0)
    for _ in range(8):
        texts = ["x" * (400 if draw.random() < 0.3 else draw.randint(4, 12)) for _ in range(32)]
        assert together(device, guarded.encode, texts) == texts
    calls = guarded.shown()[1:]
    # Long and short ones in turns: as one call each batch would be three quarters padding.
    assert padding(calls) < 0.3
    assert padding([[length for call in calls for length in call]]) > 0.6
    # And not each text by itself: a call costs as much as 100 characters.
    assert len(calls) < 8 * 6
    assert all(call == sorted(call) for call in calls)
    waste = onelane.stats(guarded).batched["encode"].padding_waste
    assert waste == pytest.approx(padding(guarded.shown()[1:]), abs=0.05)


def test_texts_of_one_length_are_one_call(device, guarded):
    together(device, guarded.encode, ["a text"] * 32)
    assert [len(call) for call in guarded.shown()[1:]] == [32]


def test_a_long_list_goes_by_lengths_and_comes_back_in_order(guarded):
    draw = random.Random(1)
    texts = ["x" * draw.randint(1, 400) for _ in range(300)]
    for kind in (list, tuple):
        assert list(guarded.encode(kind(texts), prefix=">")) == [">" + text for text in texts]
    calls = guarded.shown()[1:]
    assert max(map(len, calls)) <= 32
    assert padding(calls) < 0.2


class Shapes:
    """Returns what a caller asks for, of texts."""

    def encode(self, texts, kind):
        np, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
        lengths = [len(text) for text in texts]
        return {
            "list": lambda: lengths,
            "tuple": lambda: tuple(lengths),
            "array": lambda: np.array(lengths),
            "tensor": lambda: torch.tensor(lengths),
            "dict": lambda: {"a": torch.tensor(lengths), "b": lengths},
            "columns": lambda: (np.array(lengths), lengths),
        }[kind]()


@pytest.mark.parametrize("kind", ["list", "tuple", "array", "tensor", "dict", "columns"])
def test_pieces_are_put_together_in_order_whatever_the_results_are(device, kind):
    guarded = onelane.guard(Shapes, device, batch={"encode": 4})
    guarded.encode("an item", kind)
    draw = random.Random(2)
    texts = ["x" * draw.randint(1, 40) for _ in range(30)]
    got, wanted = guarded.encode(texts, kind), [len(text) for text in texts]
    columns = {"dict": lambda: list(got.values()), "columns": lambda: list(got)}
    for column in columns.get(kind, lambda: [got])():
        assert [int(value) for value in column] == wanted


def test_what_has_no_length_is_one_call(device):
    class Model:
        def __init__(self):
            self.sizes = []

        def run(self, items):
            self.sizes.append(len(items))
            return items

    guarded = onelane.guard(Model, device, batch={"run": 8})
    with ThreadPoolExecutor(8) as pool:
        with Hold(device):
            futures = [pool.submit(guarded.run, None if i else 1.5) for i in range(8)]
            queue = onelane._proxy.lane_of(guarded).batched["run"].queue
            while queue.stats().waiting < 8:
                pass
        assert [future.result(60) for future in futures] == [1.5] + [None] * 7
    assert guarded.sizes == [8]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pytest.importorskip("sentence_transformers")
    return tiny_models.sentence_transformer(tmp_path_factory.mktemp("models"))


class TestSentenceTransformers:
    """A known library: lengths and rows are rounded up, too."""

    @staticmethod
    def noted(path):
        model = tiny_models.load(path, "cpu")
        model.shapes = []
        model[0].register_forward_pre_hook(
            lambda module, inputs: model.shapes.append(tuple(inputs[0]["input_ids"].shape))
        )
        return model

    def test_a_thousand_random_lengths_are_few_shapes_and_right(self, device, path):
        np = pytest.importorskip("numpy")
        texts = tiny_models.texts(1000, longest=250)
        guarded = onelane.guard(lambda: self.noted(path), device, batch={"encode": 32})
        guarded.encode(["learn", "the", "form"])
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(guarded.encode, texts[:700]))
        results += list(guarded.encode(texts[700:]))
        shapes = guarded.shapes
        assert len(set(shapes)) <= 96
        assert all(rows in (1, 2, 3, 4, 8, 16, 32) for rows, _ in shapes)
        alone = tiny_models.load(path, "cpu")
        some = range(0, 1000, 37)
        np.testing.assert_allclose(
            [results[at] for at in some], [alone.encode(texts[at]) for at in some], atol=1e-4
        )
        stats = onelane.stats(guarded).batched["encode"]
        assert 0 < stats.padding_waste < 0.5
        # It is the library's own method again.
        assert "preprocess" not in device.call(lambda: vars(onelane._proxy.cell_of(guarded).value))

    def test_outputs_that_show_the_padding_are_not_rounded(self, device, path):
        np = pytest.importorskip("numpy")
        guarded = onelane.guard(lambda: self.noted(path), device, batch={"encode": 8})
        guarded.encode(["learn", "the", "form"])
        alone = tiny_models.load(path, "cpu")
        texts = ["one lane", "each batch holds one worker", "a"]
        got = guarded.encode(texts, output_value=None)
        for one, wanted in zip(got, alone.encode(texts, output_value=None), strict=True):
            assert one["input_ids"].shape == wanted["input_ids"].shape
        np.testing.assert_allclose(guarded.encode("a"), alone.encode("a"), atol=1e-4)

    def test_what_is_calibrated_over_its_texts_shares_no_batch(self, device, path):
        guarded = onelane.guard(lambda: self.noted(path), device, batch={"encode": 8})
        before = onelane.stats(guarded).batched["encode"].completed
        guarded.encode(tiny_models.texts(8), precision="int8")
        assert onelane.stats(guarded).batched["encode"].completed == before
