"""Tiny random models, made by the real libraries and saved: no download, seconds to make."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = [f"w{i}" for i in range(400)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def texts(count, seed=0, longest=120):
    """Texts of random lengths, one token a word."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest))) for _ in range(count)
    ]


def _tokenizer(folder: Path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: at for at, token in enumerate(SPECIAL + WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=256,
    )
    fast.save_pretrained(folder)
    return fast


def _config(**more):
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        **more,
    )


def sentence_transformer(folder: Path) -> str:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertModel

    torch.manual_seed(1)
    inner = folder / "bert"
    BertModel(_config()).save_pretrained(inner)
    _tokenizer(inner)
    words = Transformer(str(inner), max_seq_length=256)
    path = folder / "sentences"
    SentenceTransformer(modules=[words, Pooling(32)], device="cpu").save(str(path))
    return str(path)


def cross_encoder(folder: Path) -> str:
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(2)
    path = folder / "pairs"
    BertForSequenceClassification(_config(num_labels=1)).save_pretrained(path)
    _tokenizer(path)
    return str(path)


def language_model(folder: Path) -> str:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    path = folder / "gpt"
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(WORDS) + len(SPECIAL),
            n_positions=256,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )  # fmt: skip
    ).save_pretrained(path)
    _tokenizer(path)
    return str(path)
