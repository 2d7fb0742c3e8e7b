"""`onelane.install`: concurrent calls, on the worker, in batches of known shapes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import onelane
from install_common import Threads, on_threads, pairs_model, sentences
from onelane import _shapes
from onelane._mac_check import models as tiny_models

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.timeout(300)


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
