"""Models of texts as `serve` knows them, whatever runs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Task = Literal["embed", "rerank", "classify"]


@dataclass
class Encoder:
    """A model of texts for `serve`, whatever runs it: MLX, ONNX Runtime, code of your own.

    ::

        def load():
            model = ...                                    # lives on the worker
            def run(ids, mask, types):
                return model(ids, mask)                    # one row of numbers a text
            return onelane.Encoder(run, "model/tokenizer.json", max_tokens=512)

        onelane.serve({"mine": load}, device="mlx")

    run: called on the worker with three arrays of int64, of shape (texts, tokens): the ids, 1 where
        a token is real, and the segment kinds. Returns an array of shape (texts, width):
        embeddings, or raw scores (logits), one for each label.
    tokenizer: a `tokenizer.json`, or a fast tokenizer of transformers or tokenizers.
    max_tokens: of a text, special ones included; what is longer is cut.
    task: `"embed"`, `"rerank"` (pairs in, one score out) or `"classify"`.
    labels: of a classifier, in the order of the scores.
    dimensions: the width of an embedding, where clients are to be told.
    pad_id: what rows are filled with.
    prompts: what may be put before a text, by name; default_prompt: the text that is put there
        unless another is asked for.
    lower_case: whether texts are put into lower case first.
    matryoshka: whether clients may ask for fewer dimensions.
    pooling, dtype: what clients are told.
    """

    run: Callable[..., Any]
    tokenizer: Any
    max_tokens: int
    task: Task = "embed"
    labels: Sequence[str] = ()
    dimensions: int | None = None
    pad_id: int = 0
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    lower_case: bool = False
    matryoshka: bool = False
    pooling: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not callable(self.run):
            raise TypeError(f"Encoder(run=...): a {type(self.run).__name__} cannot be called")
        if self.task not in ("embed", "rerank", "classify"):
            raise ValueError(f"Encoder(task={self.task!r}): use 'embed', 'rerank' or 'classify'")
        if self.task == "classify" and len(self.labels) < 1:
            raise ValueError("Encoder(task='classify') needs labels=, in the order of the scores")
        if isinstance(self.max_tokens, bool) or not isinstance(self.max_tokens, int):
            raise TypeError(f"Encoder(max_tokens={self.max_tokens!r}): give a number of tokens")

    def facts(self) -> dict[str, Any]:
        """Return what the server has to know of it: plain values."""
        file, size = _read(self.tokenizer, self.max_tokens)
        return {
            "task": self.task,
            "tokenizer": file,
            "vocabulary": size,
            "kinds": 2,
            "positions": self.max_tokens,
            "lower_case": self.lower_case,
            "pad_id": self.pad_id,
            "dtype": self.dtype,
            "labels": [str(label) for label in self.labels],
            "dimensions": self.dimensions,
            "matryoshka": self.matryoshka,
            "pooling": self.pooling,
            "prompts": {name: text for name, text in self.prompts.items() if text},
            "default_prompt": self.default_prompt or None,
        }


def _read(tokenizer: Any, max_tokens: int) -> tuple[bytes, int]:
    """Return the content of a tokenizer.json, and how many ids there are."""
    if isinstance(tokenizer, (str, os.PathLike)):
        import json

        file = Path(tokenizer).read_bytes()
        model = json.loads(file)
        ids = [added["id"] for added in model.get("added_tokens") or ()]
        known = model.get("model", {}).get("vocab") or {}
        ids += known.values() if isinstance(known, dict) else [len(known) - 1]
        return file, max(ids, default=0) + 1
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(inner, "to_str"):
        raise TypeError(
            f"a {type(tokenizer).__name__} is no fast tokenizer: serve() tokenises outside of "
            f"Python, by the tokenizer.json that fast tokenizers have (use_fast=True)"
        )
    own = type(inner).from_str(inner.to_str())
    side = getattr(tokenizer, "truncation_side", "right")
    own.enable_truncation(max_length=max_tokens, direction=side)
    return own.to_str().encode(), own.get_vocab_size(with_added_tokens=True)


__all__ = ["Encoder", "Task"]
