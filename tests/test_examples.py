"""The examples run, and say what they are there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(300)

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a sentence embedding model of random weights."""
    models = pytest.importorskip("sentence_transformers.models")
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "lane", "for", "many", "threads"]
    (folder / "vocab.txt").write_text("\n".join(words))
    encoder = folder / "encoder"
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(encoder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=256,
    )  # fmt: skip
    BertModel(config).eval().save_pretrained(encoder)
    part = models.Transformer(str(encoder), max_seq_length=256)
    whole = folder / "model"
    SentenceTransformer(modules=[part, models.Pooling(32)], device="cpu").save(str(whole))
    return whole


def test_a_sentence_transformer_behind_a_queue_that_pads(tiny):
    said = run("sentence_transformer.py", str(tiny), "cpu")
    assert float(re.search(r"difference (\S+)", said)[1]) < 1e-5
    requests, batches = map(int, re.search(r"(\d+) requests in (\d+) batches", said).groups())
    assert requests == 241
    assert batches < requests / 2
    assert re.search(r"padding: \d+%", said)


def test_one_model_many_threads_and_tasks():
    said = run("batch_queue.py", "cpu")
    assert len(re.findall(r"greatest difference \d\.\de-0[6-9]|difference 0.0e", said)) == 2, said
