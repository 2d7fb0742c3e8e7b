"""`onelane.install`: unchanged applications, on the worker, in batches of known shapes."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import onelane
from onelane import _shapes
from onelane._mac_check import models as tiny_models

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "sentences": tiny_models.sentence_transformer(folder),
        "pairs": tiny_models.cross_encoder(folder),
        "language": tiny_models.language_model(folder),
    }


@pytest.fixture
def home():
    with onelane.DeviceExecutor("cpu") as executor:
        yield executor


@pytest.fixture
def installed(home):
    _shapes.forget("cpu")
    done = onelane.install(home)
    yield done
    onelane.uninstall()


def sentences(paths, **more):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(paths["sentences"], device="cpu", **more)


def pairs_model(paths):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(paths["pairs"], device="cpu")


def on_threads(function, items, threads=16):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


class Threads:
    """Notes which threads run a module's forward."""

    def __init__(self):
        self.seen = set()

    def __enter__(self):
        from torch.nn.modules.module import register_module_forward_pre_hook

        self._hook = register_module_forward_pre_hook(
            lambda module, inputs: self.seen.add(threading.get_ident())
        )
        return self

    def __exit__(self, *error):
        self._hook.remove()


def test_sixteen_clients_get_what_one_gets_alone_from_one_thread_in_batches(paths, home):
    texts = tiny_models.texts(200)
    alone = [sentences(paths).encode(text) for text in texts]
    done = onelane.install(home)
    try:
        model = sentences(paths)
        with Threads() as threads:
            results = on_threads(model.encode, texts)
        np.testing.assert_allclose(results, alone, atol=1e-4)
        assert threads.seen == {home.call(threading.get_ident)}
        stats = done.stats()[0]
        assert stats.completed == 200
        assert stats.batches < 150
    finally:
        onelane.uninstall()


def test_a_thousand_random_lengths_are_at_most_96_shapes(paths, installed):
    model = sentences(paths)
    on_threads(model.encode, tiny_models.texts(1000, longest=250))
    assert 0 < _shapes.count("cpu") <= 96
    assert installed.stats()[0].shapes == _shapes.count("cpu")


def test_without_install_nearly_each_call_is_a_new_shape(paths):
    # What the test above would be without: it must be able to fail.
    model, seen = sentences(paths), set()
    hook = model[0].model.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: seen.add(kwargs["input_ids"].shape), with_kwargs=True
    )
    for text in tiny_models.texts(300, longest=250):
        model.encode(text)
    hook.remove()
    assert len(seen) > 96


@pytest.mark.parametrize("form", [str, list, tuple, np.ndarray])
def test_each_form_of_input_and_output(paths, home, form):
    texts = tiny_models.texts(5)
    given = texts[0] if form is str else np.array(texts) if form is np.ndarray else form(texts)
    options = [
        {},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"normalize_embeddings": True},
        {"precision": "binary"},
        {"precision": "ubinary", "convert_to_tensor": True},
        {"truncate_dim": 8},
        {"prompt": "w1 "},
        {"batch_size": 2},
        {"output_value": "token_embeddings"},
        {"output_value": None},
        {"device": "cpu"},
        {"show_progress_bar": True},
    ]
    bare = sentences(paths)
    expected = [bare.encode(given, **named) for named in options]
    onelane.install(home)
    try:
        model = sentences(paths)
        for named, wanted in zip(options, expected, strict=True):
            got = model.encode(given, **named)
            assert type(got) is type(wanted), named
            same(got, wanted)
    finally:
        onelane.uninstall()


def same(got, wanted):
    if isinstance(wanted, dict):
        for name, value in wanted.items():
            same(got[name], value)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            same(a, b)
    elif isinstance(wanted, (torch.Tensor, np.ndarray)):
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), atol=1e-4)
    else:
        assert got == wanted


def test_pairs_lists_of_pairs_and_rank(paths, home):
    draw = tiny_models.texts(40, longest=40)
    pairs = list(zip(draw[::2], draw[1::2], strict=True))
    bare = pairs_model(paths)
    alone = [bare.predict(pair) for pair in pairs]
    whole = bare.predict([list(pair) for pair in pairs])
    ranked = bare.rank(draw[0], draw[1:9], return_documents=True)
    onelane.install(home)
    try:
        model = pairs_model(paths)
        np.testing.assert_allclose(on_threads(model.predict, pairs), alone, atol=1e-4)
        # A list of two texts is one pair.
        one = model.predict([draw[0], draw[1]])
        assert np.ndim(one) == 0
        same(model.predict([list(pair) for pair in pairs]), whole)
        again = model.rank(draw[0], draw[1:9], return_documents=True)
        assert [r["corpus_id"] for r in again] == [r["corpus_id"] for r in ranked]
        activation = torch.nn.Identity()
        same(
            model.predict(pairs, activation_fn=activation),
            bare.predict(pairs, activation_fn=activation),
        )
    finally:
        onelane.uninstall()


def test_calls_with_other_arguments_share_no_batch(paths, home):
    texts = tiny_models.texts(64)
    bare = sentences(paths)
    wanted = [bare.encode(text, normalize_embeddings=bool(i % 2)) for i, text in enumerate(texts)]
    onelane.install(home)
    try:
        model = sentences(paths)
        got = on_threads(
            lambda i: model.encode(texts[i], normalize_embeddings=bool(i % 2)), range(64)
        )
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    finally:
        onelane.uninstall()


def test_a_long_list_lets_queries_pass(paths, installed, home):
    model = sentences(paths)
    texts = tiny_models.texts(600, longest=200)
    # Whoever asks in the middle of the list must be answered before its end.
    ended, begun = threading.Event(), threading.Event()
    answered = []
    home.call(lambda: None)

    def index():
        begun.set()
        result = model.encode(texts)
        ended.set()
        return result

    with ThreadPoolExecutor(3) as pool:
        job = pool.submit(index)
        assert begun.wait(60)
        while not ended.is_set():
            model.encode("w1 w2 w3")
            answered.append(ended.is_set())
        rows = job.result(200)
    assert answered.count(False) >= 10
    assert rows.shape == (600, 32)
    np.testing.assert_allclose(rows[17], model.encode(texts[17]), atol=1e-4)


def test_a_text_that_fails_fails_alone(paths, installed):
    model = sentences(paths)
    original = type(model[0]).forward

    def forward(module, features, **kwargs):
        poison = module.tokenizer.convert_tokens_to_ids("w399")
        if (features["input_ids"] == poison).any():
            raise ValueError("a text that this model does not take")
        return original(module, features, **kwargs)

    texts = ["w1 w2", "w399", "w3 w4 w5"] * 5
    type(model[0]).forward = forward
    try:
        outcomes = on_threads(lambda text: outcome(lambda: model.encode(text)), texts)
    finally:
        type(model[0]).forward = original
    for text, found in zip(texts, outcomes, strict=True):
        assert isinstance(found, ValueError) == (text == "w399")


def outcome(function):
    try:
        return function()
    except Exception as error:
        return error


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


def test_versions_that_are_not_known(monkeypatch, home):
    from onelane._install import versions

    monkeypatch.setattr(versions, "version", {"sentence-transformers": "3.1.0"}.get)
    with pytest.raises(onelane.UnknownVersion, match=r"3\.1\.0.*5\.7 to 6\.2"):
        onelane.install(home)
    monkeypatch.setattr(versions, "version", {"sentence-transformers": "6.9.0"}.get)
    with pytest.warns(UserWarning, match=r"6\.9\.0 is not what"):
        versions.check()
    lacking = versions.Family("transformers", (5, 0), (5, 24), "5.24.0", ("no_such_file.py",))
    monkeypatch.setattr(versions, "version", {"transformers": "5.1.0"}.get)
    with pytest.raises(onelane.UnknownVersion, match=r"no_such_file\.py"):
        versions.check((lacking,))
    monkeypatch.setattr(versions, "version", {}.get)
    with pytest.warns(UserWarning, match="found none"):
        onelane.install(home)
    onelane.uninstall()


def test_settings_are_checked(home):
    with pytest.raises(ValueError, match="transformers"):
        onelane.install(home, skip=("transformer",))
    with pytest.raises(TypeError, match="tuple"):
        onelane.install(home, skip="transformers")
    assert onelane.installed() is None


APPLICATION = """
import sys, threading, anyio, anyio.to_thread
from sentence_transformers import CrossEncoder, SentenceTransformer
import onelane

model = SentenceTransformer(sys.argv[1], device="cpu")
ranker = CrossEncoder(sys.argv[2], device="cpu")

async def main():
    async def ask(i):
        await anyio.to_thread.run_sync(model.encode, f"w{i} w2")
        await anyio.to_thread.run_sync(ranker.predict, [("w1", f"w{i}")])
    async with anyio.create_task_group() as group:
        for i in range(40):
            group.start_soon(ask, i)

anyio.run(main)
print(onelane.installed().stats()[0].completed, __name__)
"""


def test_an_unchanged_application_is_run(paths, tmp_path):
    app = tmp_path / "app.py"
    app.write_text(APPLICATION)
    command = [sys.executable, "-m", "onelane", "run", "--device", "cpu", str(app)]
    done = subprocess.run(
        [*command, paths["sentences"], paths["pairs"]],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["40", "__main__"]
    missing = subprocess.run(
        [*command[:-1], "missing.py"], capture_output=True, text=True, timeout=100, check=False
    )
    assert missing.returncode == 2
    assert "missing.py" in missing.stderr


def test_a_pool_of_processes_works(paths, installed):
    model = sentences(paths)
    texts = tiny_models.texts(8)
    wanted = model.encode(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pool = model.start_multi_process_pool(["cpu"])
        try:
            got = model.encode(texts, pool=pool)
        finally:
            model.stop_multi_process_pool(pool)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


ON_THE_SIMULATED_DEVICE = """
import gc, os, sys, time
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from sentence_transformers import CrossEncoder, SentenceTransformer
import onelane, onelane.sim
from onelane._mac_check import models

texts = models.texts(24, longest=24)
bare = SentenceTransformer(sys.argv[1], device="cpu")
alone = [bare.encode(text) for text in texts]

def application():
    model = SentenceTransformer(sys.argv[1], device="mps")
    ranker = CrossEncoder(sys.argv[2], device="mps")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(model.encode, texts))
        list(pool.map(ranker.predict, [("w1", text) for text in texts]))
    np.testing.assert_allclose(results, alone, atol=1e-4)
    del model, ranker
    gc.collect()

with onelane.sim.device("upstream-2.15"):
    with onelane.audit("mps", report=lambda finding: None) as audit:
        if sys.argv[3] == "install":
            done = onelane.install("mps")
            application()
            limit = time.monotonic() + 30
            while done.unreleased and time.monotonic() < limit:
                time.sleep(0.01)
            stats = onelane.executor("mps").stats()
            assert stats.memory.allocated == 0, stats.memory
            assert 0 < stats.shapes <= 96
        else:
            application()
        print(len(audit.findings), flush=True)
        os._exit(0)
"""


@pytest.mark.skipif(
    sys.platform == "darwin" or not (shutil.which("c++") or shutil.which("g++")),
    reason="needs the simulated device, which needs a C++ compiler",
)
def test_on_the_simulated_device_nothing_goes_around_the_worker(paths):
    found, both = {}, (paths["sentences"], paths["pairs"])
    for way in ("install", "without"):
        done = subprocess.run(
            [sys.executable, "-c", ON_THE_SIMULATED_DEVICE, *both, way],
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[way] = int(done.stdout.split()[-1])
    assert found["install"] == 0
    assert found["without"] > 0


def test_a_web_application_is_unchanged(paths, home):
    fastapi = pytest.importorskip("fastapi")
    texts = tiny_models.texts(64, longest=60)
    documents = tiny_models.texts(600, seed=1, longest=60)
    bare, bare_pairs = sentences(paths), pairs_model(paths)
    alone = [bare.encode(text) for text in texts]
    scores = [float(bare_pairs.predict(("w1 w2", text))) for text in texts]
    done = onelane.install(home)
    try:
        model, ranker, app = sentences(paths), pairs_model(paths), fastapi.FastAPI()

        # Not coroutines: the framework runs them in its pool of threads.
        @app.post("/embed")
        def embed(body: dict):
            return model.encode(body["text"]).tolist()

        @app.post("/score")
        def score(body: dict):
            return float(ranker.predict(("w1 w2", body["text"])))

        @app.post("/index")
        def index(body: dict):
            return len(model.encode(body["texts"]))

        async def post(path, body):
            return json.loads(await ask(app, path, json.dumps(body).encode()))

        async def main():
            limit = asyncio.Semaphore(16)

            async def both(text):
                async with limit:
                    return await post("/embed", {"text": text}), await post(
                        "/score", {"text": text}
                    )

            job = asyncio.ensure_future(post("/index", {"texts": documents}))
            answers = await asyncio.gather(*(both(text) for text in texts))
            return answers, await job

        with Threads() as threads:
            answers, indexed = asyncio.run(main())
        assert indexed == 600
        np.testing.assert_allclose([a for a, _ in answers], alone, atol=1e-4)
        np.testing.assert_allclose([b for _, b in answers], scores, atol=1e-4)
        assert threads.seen == {home.call(threading.get_ident)}
        for stats in done.stats():
            assert stats.batches < stats.completed
            assert stats.shapes <= 2 * 96
    finally:
        onelane.uninstall()


async def ask(app, path, body):
    """Ask an ASGI application, without a server."""
    sent, given = [], iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return next(given, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return b"".join(message.get("body", b"") for message in sent[1:])
