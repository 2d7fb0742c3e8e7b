"""Tiny random models of each family that `onelane` knows, and what transformers makes of texts.

    python tests/tiny_models.py DIRECTORY

Each folder is what `save_pretrained` writes, and `expected.json`: texts, pairs, and what the model
answers. The tests `agree::` of the engines compare.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

WORDS = 60
POSITIONS = 160
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": POSITIONS}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
DISTIL |= {"max_position_embeddings": POSITIONS}

# A window that most texts are longer than, and long before the end of a vector of keys.
MODERN = SIZES | {"num_hidden_layers": 4, "local_attention": 9, "global_attn_every_n_layers": 2}
MODERN |= {"global_rope_theta": 3000.0, "local_rope_theta": 100.0}
# Everything that may have a bias, other non-linearities, and a name for each layer.
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
BIASED = SIZES | {"num_hidden_layers": 3, "local_attention": 62, "layer_types": KINDS}
BIASED |= dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)
BIASED |= {"hidden_activation": "gelu_pytorch_tanh", "classifier_activation": "relu"}
BIASED |= {"classifier_pooling": "mean", "global_rope_theta": 900.0, "local_rope_theta": 80.0}

# By folder: the class of the configuration, its sizes, and whether its tokeniser is RoBERTa's.
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "bert": ("BertConfig", SIZES, False),
    "distilbert": ("DistilBertConfig", DISTIL, False),
    "roberta": ("RobertaConfig", SIZES | {"type_vocab_size": 1}, True),
    "xlm-roberta": ("XLMRobertaConfig", SIZES | {"type_vocab_size": 1}, True),
    "camembert": ("CamembertConfig", SIZES | {"type_vocab_size": 1}, True),
    "mpnet": ("MPNetConfig", SIZES, True),
    "modernbert": ("ModernBertConfig", MODERN, False),
    "modernbert-biased": ("ModernBertConfig", BIASED, False),
}


def tokeniser(roberta: bool) -> PreTrainedTokenizerFast:
    """One word a token, with the special tokens and the pairs of BERT or of RoBERTa."""
    special = ["<s>", "<pad>", "</s>", "<unk>"] if roberta else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate(special + [f"w{i}" for i in range(WORDS)])}
    start, end = ("<s>", "</s>") if roberta else ("[CLS]", "[SEP]")
    pad, unknown = ("<pad>", "<unk>") if roberta else ("[PAD]", "[UNK]")
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pair = f"{start} $A {end} {end} $B {end}" if roberta else f"{start} $A {end} $B:1 {end}:1"
    fast.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=pair,
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token=pad,
        unk_token=unknown,
        cls_token=start,
        sep_token=end,
        model_max_length=POSITIONS - (2 if roberta else 0),
    )


def randomise(model: torch.nn.Module) -> None:
    """Weights large enough that nothing is nearly linear, biases included."""
    for name, weights in model.named_parameters():
        noise = torch.randn_like(weights) * 0.3
        is_scale = weights.dim() == 1 and name.endswith("weight")
        weights.data = noise + 1 if is_scale else noise


def text(words: int, seed: int) -> str:
    """The text of so many words that the tests in Rust make too."""
    return " ".join(f"w{(i * i + 7 * seed + i * seed) % WORDS}" for i in range(words))


TEXTS = [text(words, seed) for seed, words in enumerate([1, 2, 6, 33, 90, 150, 400])]
LENGTHS = [(1, 1), (3, 40), (20, 5), (60, 70), (300, 9), (200, 400)]
PAIRS = [(text(a, seed), text(b, seed + 20)) for seed, (a, b) in enumerate(LENGTHS)]


def answers(model: Any, encode: Any, inputs: list[Any], read: Any) -> list[list[float]]:
    """What the model makes of each input alone."""
    takes_kinds = model.config.model_type in ("bert", "roberta", "xlm-roberta", "camembert")
    found = []
    for one in inputs:
        texts = (one,) if isinstance(one, str) else one
        tokens = encode(
            *texts, truncation=True, return_tensors="pt", return_token_type_ids=takes_kinds
        )
        with torch.no_grad():
            found.append(read(model(**tokens))[0].tolist())
    return found


def make(folder: Path, family: str, labels: int) -> None:
    """Writes a model that embeds (0 labels) or has a head of so many labels."""
    config_class, sizes, roberta = FAMILIES[family]
    encode = tokeniser(roberta)
    pad = encode.pad_token_id
    config = getattr(transformers, config_class)(**sizes, vocab_size=len(encode), pad_token_id=pad)
    expected: dict[str, Any] = {"texts": TEXTS}
    if labels:
        config.num_labels = labels
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModel.from_config(config)
    randomise(model.eval())
    if labels:
        expected["pairs"] = PAIRS
        expected["labels"] = [f"LABEL_{i}" for i in range(labels)]
        expected["of_texts"] = answers(model, encode, TEXTS, lambda y: y.logits)
        expected["of_pairs"] = answers(model, encode, PAIRS, lambda y: y.logits)
    else:

        def mean(y: Any) -> Any:
            return torch.nn.functional.normalize(y.last_hidden_state.mean(1), dim=-1)

        def flat(y: Any) -> Any:
            return y.last_hidden_state.flatten(1)

        expected["of_texts"] = answers(model, encode, TEXTS, mean)
        expected["of_tokens"] = answers(model, encode, TEXTS, flat)
    model.save_pretrained(folder)
    encode.save_pretrained(folder)
    if family == "modernbert":
        with_old_names(folder / "config.json")
    (folder / "expected.json").write_text(json.dumps(expected))


def with_old_names(file: Path) -> None:
    """Says the same as models that transformers 4 saved."""
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["global_rope_theta"] = rope["full_attention"]["rope_theta"]
    config["local_rope_theta"] = rope["sliding_attention"]["rope_theta"]
    del config["layer_types"]
    assert config["global_attn_every_n_layers"] == MODERN["global_attn_every_n_layers"]
    file.write_text(json.dumps(config))


def make_sentence(folder: Path, dense: bool) -> None:
    """Writes what sentence-transformers saves: with a projection, or the first token's vector."""
    encode = tokeniser(False)
    bert = folder.parent / "bert-embed"
    transformer = Transformer(str(bert))
    width = transformer.get_embedding_dimension()
    modules: list[Any] = [transformer]
    if dense:
        modules.append(Pooling(width, pooling_mode="mean"))
        modules.append(Dense(width, 24, activation_function=torch.nn.Tanh()))
        modules.append(Normalize())
    else:
        modules.append(Pooling(width, pooling_mode="cls"))
    model = SentenceTransformer(modules=modules, device="cpu")
    if dense:
        model.prompts = {"query": "w1 w2 ", "document": "w5 "}
        model.default_prompt_name = "document"
    expected = {"texts": TEXTS, "of_texts": [model.encode(t, prompt="").tolist() for t in TEXTS]}
    model.save(str(folder))
    encode.save_pretrained(folder)
    (folder / "expected.json").write_text(json.dumps(expected))


def main() -> None:
    root = Path(sys.argv[1])
    torch.manual_seed(0)
    for family in FAMILIES:
        for kind, labels in [("embed", 0), ("rerank", 1), ("classify", 3)]:
            make(root / f"{family}-{kind}", family, labels)
    make_sentence(root / "bert-dense", dense=True)
    make_sentence(root / "bert-cls", dense=False)


if __name__ == "__main__":
    main()
