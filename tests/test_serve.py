"""`onelane.serve`: a model in Python behind the native server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

import onelane  # noqa: E402

pytestmark = pytest.mark.timeout(300)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "bad", "slow"]


def tokenizer():
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


class Sums:
    """Embeds a text as the sum of its ids and how many there are; it notes its batches."""

    def __init__(self):
        self.batches, self.threads = [], set()
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, ids, mask, types):
        self.batches.append(len(ids))
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.go.wait(60)
        if (ids == WORDS.index("bad")).any():
            raise ValueError("a bad text")
        return np.stack([(ids * mask).sum(1), mask.sum(1), types.sum(1)], 1).astype(np.float32)


def encoder(run, **settings):
    return onelane.Encoder(run, tokenizer(), 16, **settings)


def ask(server, route, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        server.address + route, data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def started(models, **settings):
    settings = {"device": "cpu", "port": 0, "drain_delay": 0.0, "block": False, **settings}
    return onelane.serve(models, **settings)


def embeddings(server, texts):
    return [one["embedding"] for one in ask(server, "/v1/embeddings", {"input": texts})["data"]]


def test_a_model_answers_from_one_thread_in_batches():
    run = Sums()
    with started({"sums": encoder(run)}) as server:
        run.batches.clear()
        run.entered.clear()
        run.go.clear()
        with ThreadPoolExecutor(9) as pool:
            first = pool.submit(embeddings, server, ["one"])
            assert run.entered.wait(60)
            waiting = [pool.submit(embeddings, server, ["two three"]) for _ in range(8)]
            while "onelane_waiting" not in (text := metrics(server)) or not waits(text, 8):
                pass
            run.go.set()
            assert first.result() == [[4 + 2 + 3, 3, 0]]
            assert all(one.result() == [[5 + 6 + 2 + 3, 4, 0]] for one in waiting)
        assert run.batches == [1, 8]
        assert len(run.threads) == 1
    assert server.wait(0)


def metrics(server):
    with urllib.request.urlopen(server.address + "/metrics", timeout=60) as response:
        return response.read().decode()


def waits(text, count):
    lines = [line for line in text.splitlines() if line.startswith("onelane_waiting{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines) == count


def test_a_bad_text_fails_alone_and_is_named():
    with started(encoder(Sums())) as server:
        with pytest.raises(urllib.error.HTTPError) as failed:
            embeddings(server, ["one", "bad", "two"])
        assert failed.value.code == 500
        said = failed.value.read().decode()
        assert "input[1]" in said
        assert "a bad text" in said
        assert embeddings(server, ["one"]) == [[9, 3, 0]]


def test_a_reranker_and_a_classifier():
    def scores(ids, mask, types):
        return (ids * types).sum(1)

    def labels(ids, mask, types):
        return np.stack([ids.sum(1), mask.sum(1)], 1)

    models = {
        "ranks": lambda: encoder(scores, task="rerank"),
        "says": lambda: encoder(labels, task="classify", labels=["a", "b"]),
    }
    with started(models) as server:
        body = {"query": "one", "texts": ["two", "three"], "raw_scores": True}
        ranked = ask(server, "/rerank", body)
        assert [(one["index"], one["score"]) for one in ranked] == [(1, 6 + 3), (0, 5 + 3)]
        said = ask(server, "/predict", {"inputs": "one", "raw_scores": True})
        assert {one["label"]: one["score"] for one in said} == {"a": 9, "b": 3}


def test_what_is_guarded_is_served_where_it_lives():
    run = Sums()
    with onelane.DeviceExecutor("cpu") as device:
        guarded = onelane.guard(lambda: encoder(run), device)
        with started({"sums": guarded}) as server:
            assert embeddings(server, ["one"]) == [[9, 3, 0]]
        worker = device.call(lambda: threading.current_thread().name)
    assert run.threads == {worker}


def test_a_sentence_transformer_and_a_cross_encoder_agree_with_their_own(paths):
    from install_common import pairs_model, sentences

    model, cross = sentences(paths), pairs_model(paths)
    texts = ["one two", "three", "one " * 40, "two three one two three"]
    expected = model.encode(texts)
    pairs = cross.predict([("one two", text) for text in texts], activation_fn=_identity())
    with started({"st": model, "ce": cross}) as server:
        found = np.array(embeddings(server, texts))
        body = {"query": "one two", "texts": texts, "raw_scores": True, "truncate": True}
        ranked = {one["index"]: one["score"] for one in ask(server, "/rerank", body)}
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(np.array([ranked[i] for i in range(len(texts))]) - pairs).max() < 1e-4


def _identity():
    import torch

    return torch.nn.Identity()


def test_an_isolated_model_may_die():
    with started("isolated_models:dying_encoder", isolation="process") as server:
        assert embeddings(server, ["one"]) == [[9, 3, 0]]
        with pytest.raises(urllib.error.HTTPError) as failed:
            embeddings(server, ["bad"])
        assert "input[0]" in failed.value.read().decode()
        assert embeddings(server, ["two"]) == [[10, 3, 0]]


def test_a_wrong_model_is_named_and_nothing_is_left_listening():
    with pytest.raises(TypeError, match="a dict is no model that serve"):
        started(dict)
    with pytest.raises(ValueError, match="neither a directory nor an import path"):
        started("nowhere")
    with pytest.raises(ValueError, match="serve\\(\\) needs a model"):
        started({})
    with pytest.raises(TypeError, match="Did you mean 'port'"):
        started({"a": encoder(Sums())}, prot=1)
    with started(encoder(Sums())) as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(OSError, match="cannot listen"):
            started(encoder(Sums()), port=port)


def test_a_model_that_differs_in_a_batch_is_not_served():
    def differs(ids, mask, types):
        return np.full((len(ids), 2), len(ids), np.float32)

    with pytest.raises(RuntimeError, match="self-check"):
        started(encoder(differs))


_PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import onelane, test_serve
onelane.serve({{"sums": test_serve.encoder(test_serve.Sums())}}, device="cpu", port=0,
              drain_delay=0.0)
print("drained")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number):
    program = _PROGRAM.format(tests=os.path.dirname(__file__))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert "listening on" in child.stderr.readline()
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert (out, child.returncode) == ("drained\n", 0), err


@pytest.mark.parametrize(
    ("models", "status", "said"),
    [
        (["sums=isolated_models:dying_encoder"], 0, "listening on"),
        (["nowhere"], 2, "neither a directory nor an import path"),
        (["a=m:x", "a=m:y"], 2, "two models are called 'a'"),
    ],
)
def test_the_command(models, status, said):
    command = [sys.executable, "-m", "onelane", "serve", *models]
    command += ["--device", "cpu", "--port", "0", "--drain-delay", "0"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        line = child.stderr.readline()
        if status == 0:
            child.send_signal(signal.SIGTERM)
        assert child.wait(60) == status
    assert said in line


def test_what_hangs_at_the_end_is_told():
    run = Sums()
    server = started(encoder(run), drain_timeout=0.05)
    run.go.clear()
    run.entered.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(embeddings, server, ["one"])
        assert run.entered.wait(60)
        with pytest.raises(TimeoutError, match="cut short"):
            server.close()
        run.go.set()
        with pytest.raises((urllib.error.URLError, OSError)):
            asked.result()
