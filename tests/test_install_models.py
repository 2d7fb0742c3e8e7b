"""`onelane.install`: what becomes of models, weights, tokenizers, generation and pipelines."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import onelane
from install_common import Threads, on_threads, sentences
from onelane._mac_check import models as tiny_models

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.timeout(300)


def test_what_models_are_stays(paths, installed, tmp_path):
    from sentence_transformers import SentenceTransformer

    class Mine(SentenceTransformer):
        def encode(self, *args, **kwargs):
            return super().encode(*args, **kwargs) * 2

    model = sentences(paths)
    assert type(model) is SentenceTransformer
    wanted = model.encode("w1 w2")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to("cpu")):
        np.testing.assert_allclose(other.encode("w1 w2"), wanted, atol=1e-5)
    model.save(str(tmp_path / "saved"))
    mine = Mine(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(mine.encode("w1 w2"), wanted * 2, atol=1e-5)
    assert model.half().encode("w1 w2").dtype == np.float16


def test_training_is_the_callers(paths, installed):
    model = sentences(paths)
    with Threads() as threads:
        features = model.preprocess(["w1 w2 w3"])
        assert features["input_ids"].shape == (1, 5), "padded where it is not a batch of ours"
        model.train()
        loss = model(features)["sentence_embedding"].sum()
        loss.backward()
    assert threads.seen == {threading.get_ident()}
    assert model[0].model.embeddings.word_embeddings.weight.grad is not None


def test_the_library_is_as_it_was_after_uninstall(paths, home):
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from transformers import GenerationMixin, PreTrainedModel

    kinds = [SentenceTransformer, CrossEncoder, GenerationMixin, PreTrainedModel]
    kinds += [kind for kind in SentenceTransformer.__mro__ if kind.__name__ == "BaseModel"]
    before = [dict(vars(kind)) for kind in kinds]
    onelane.install(home)
    assert [dict(vars(kind)) for kind in kinds] != before
    assert onelane.installed() is not None
    with pytest.raises(RuntimeError, match="uninstall"):
        onelane.install("cuda")
    onelane.uninstall()
    assert [dict(vars(kind)) for kind in kinds] == before
    assert onelane.installed() is None


@pytest.mark.parametrize("cycle", [False, True])
def test_weights_are_freed_on_the_worker(paths, home, installed, cycle):
    model = sentences(paths)
    worker = home.call(threading.get_ident)
    freed = []
    # The array under a tensor goes when its memory does. A weak reference to the tensor itself
    # would tell of the collector, which clears those before it knows what lives on.
    for tensor in [*model.parameters(), *model.buffers()]:
        array = tensor.detach().numpy().copy()
        weakref.finalize(array, lambda: freed.append(threading.get_ident()))
        tensor.data = torch.from_numpy(array)
    count = len([*model.parameters(), *model.buffers()])
    if cycle:
        model.itself = [model]
    del model, tensor, array
    gc.collect()
    limit = time.monotonic() + 30
    while len(freed) < count and time.monotonic() < limit:
        # The releaser looks again by itself; this waits for it.
        threading.Event().wait(0.01)
    assert len(freed) == count
    assert set(freed) == {worker}
    assert installed.unreleased == 0


def test_an_inner_module_outlives_its_model(paths, home, installed):
    model = sentences(paths)
    inner = model[0]
    del model
    gc.collect()
    home.call(lambda: None)
    assert installed.unreleased > 0
    assert inner.model.embeddings.word_embeddings.weight.abs().sum() > 0
    del inner
    gc.collect()
    limit = time.monotonic() + 60
    while installed.unreleased and time.monotonic() < limit:
        threading.Event().wait(0.01)
    assert installed.unreleased == 0


def test_tokenizers_are_locked(paths, installed):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(paths["sentences"])
    draw = random.Random(0)
    calls = []
    for _ in range(800):
        batch = tiny_models.texts(draw.randint(1, 4), draw.random(), longest=30)
        named = draw.choice(
            [
                {"padding": True},
                {"padding": "max_length", "max_length": 64, "truncation": True},
                {"truncation": True, "max_length": 8},
                {},
            ]
        )
        calls.append((batch, named))
    wanted = [tokenizer(batch, **named)["input_ids"] for batch, named in calls]
    got = on_threads(lambda call: tokenizer(call[0], **call[1])["input_ids"], calls, threads=8)
    assert got == wanted
    assert pickle.loads(pickle.dumps(tokenizer))(calls[0][0])["input_ids"]


def test_generate_with_a_streamer_runs_on_the_worker_and_lets_batches_by(paths, installed, home):
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

    encoder = sentences(paths)
    tokenizer = AutoTokenizer.from_pretrained(paths["language"])
    model = AutoModelForCausalLM.from_pretrained(paths["language"])
    inputs = tokenizer("w1 w2 w3", return_tensors="pt")
    asked = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    wanted = home.call(lambda: model.generate(**inputs, **asked))
    streamer = TextIteratorStreamer(tokenizer, timeout=60)
    steps, completed = [], []

    def watch(input_ids, scores):
        steps.append(1)
        completed.append(sum(stats.completed for stats in installed.stats()))
        if not completed[-1]:
            # Slowly, until who asks meanwhile has been answered: between two tokens, or not at all.
            threading.Event().wait(0.3)
        return scores

    named = {**inputs, **asked, "streamer": streamer, "logits_processor": [watch]}
    with Threads() as threads, ThreadPoolExecutor(1) as pool:
        thread = threading.Thread(target=model.generate, kwargs=named)
        thread.start()
        answer = pool.submit(encoder.encode, "w5 w6")
        parts = list(streamer)
        thread.join(60)
        assert answer.result(60).shape == (32,)
    assert "".join(parts).split() == tokenizer.decode(wanted[0]).split()
    assert threads.seen == {home.call(threading.get_ident)}
    assert len(steps) == 40
    assert completed[0] == 0
    assert completed[-1] == 1


def test_pipelines(paths, home):
    from transformers import pipeline

    texts = tiny_models.texts(6, longest=10)
    bare = pipeline("text-classification", model=paths["pairs"], device="cpu")
    wanted = bare(texts)
    onelane.install(home)
    try:
        classify = pipeline("text-classification", model=paths["pairs"], device="cpu")
        with Threads() as threads:
            got = on_threads(classify, texts)
            streamed = list(classify(text for text in texts))
        assert threads.seen == {home.call(threading.get_ident)}
        for (one,), other, want in zip(got, streamed, wanted, strict=True):
            assert one["label"] == other["label"] == want["label"]
            assert one["score"] == pytest.approx(want["score"], abs=1e-4)
    finally:
        onelane.uninstall()


def test_continuous_batching_is_refused(paths, installed):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(paths["language"])
    with pytest.raises(RuntimeError, match="uninstall"):
        model.generate_batch([[1, 2, 3]])
