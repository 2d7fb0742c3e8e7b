"""Filling a batch up to a known shape: what pads the features that a tokenizer has made.

For models of sentence-transformers, whose `preprocess` makes them; on the worker.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from onelane import _shapes
from onelane._lengths import length_bucket

# What pads in `preprocess`; of a worker's thread.
_shaping = threading.local()


class Shaping:
    """Pads what a tokenizer made for one batch to a known length; on the worker."""

    def __init__(self, model: Any, device: str, longest: int | None, rows: int) -> None:
        self.model, self.longest = model, longest
        self._device, self._rows = device, rows
        # Tokens without padding of the requests, and with padding of all rows.
        self.tokens = self.padded = 0

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Have `shaping` return this, on the calling thread."""
        _shaping.present = self
        try:
            yield
        finally:
            _shaping.present = None

    def pad(self, features: Any, tokenizer: Any) -> Any:
        """Return the features of a batch, ids, mask and token types padded to their bucket."""
        ids, mask = features.get("input_ids"), features.get("attention_mask")
        if getattr(ids, "ndim", 0) != 2 or getattr(mask, "shape", None) != ids.shape:
            return features
        rows, length = ids.shape
        self.tokens += int(mask[: self._rows].sum())
        known = ("input_ids", "attention_mask", "token_type_ids")
        others = [
            name
            for name, value in features.items()
            if name not in known and tuple(getattr(value, "shape", ()))[1:2] == (length,)
        ]
        missing = 0 if others else length_bucket(length, self.longest) - length
        if missing > 0:
            left = getattr(tokenizer, "padding_side", "right") == "left"
            fill = {"input_ids": getattr(tokenizer, "pad_token_id", None) or 0}
            for name in known:
                tensor = features.get(name)
                if getattr(tensor, "shape", None) == ids.shape:
                    block = tensor.new_full((rows, missing), fill.get(name, 0))
                    parts = (block, tensor) if left else (tensor, block)
                    features[name] = _cat(parts)
        self.padded += rows * (length + missing)
        _shapes.note(self._device, (type(self.model).__name__, rows, length + missing))
        return features


def _cat(parts: Any) -> Any:
    import torch

    return torch.cat(parts, dim=1)


def shaping(model: Any) -> Shaping | None:
    """Return what pads the batch of a model that is being run on this thread, if one is."""
    present: Shaping | None = getattr(_shaping, "present", None)
    return present if present is not None and present.model is model else None


class Estimate:
    """Tokens of a text, from its characters: learnt from what was tokenized."""

    def __init__(self) -> None:
        self._characters, self._tokens = 40.0, 12.0

    def note(self, characters: int, tokens: int) -> None:
        self._characters = 0.9 * self._characters + characters
        self._tokens = 0.9 * self._tokens + tokens

    def tokens(self, characters: int) -> float:
        return max(1.0, characters * self._tokens / self._characters)


def longest_of(model: Any) -> int | None:
    """Return the most tokens that a model takes, if it says so."""
    longest = getattr(model, "max_seq_length", None)
    return longest if isinstance(longest, int) and longest > 0 else None


__all__ = ["Estimate", "Shaping", "longest_of", "shaping"]
