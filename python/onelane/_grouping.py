"""Which requests of a batch share a call of the method, and how often it is called.

A method that takes a list mostly pads its items to the longest. So a batch is sorted by length and
split where the padding of one call costs more than a second call; what a call costs is learnt.
"""

from __future__ import annotations

import contextlib
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from onelane import _onelane, _tree
from onelane._collate import Input
from onelane._lengths import ROWS, LaunchCost, plan, row_bucket
from onelane._shaping import Estimate, Shaping, longest_of

# Items that are no texts are taken for so many tokens on the average.
_TYPICAL = 32.0
# About how long a piece of a long list may take.
_PIECE_S = 0.2
_clock = time.perf_counter


def size(item: Any) -> int:
    """Return the length of an item: characters, tokens or elements; 0 if it has none."""
    if isinstance(item, (str, bytes)):
        return len(item)
    if _tree.is_tensor(item):
        return int(item.numel())
    if _tree.is_array(item):
        return int(item.size)
    if isinstance(item, Mapping):
        return sum(map(size, item.values()))
    if isinstance(item, (list, tuple)):
        return sum(map(size, item)) or len(item)
    return 0


def _is_text(item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return bool(item) and all(map(_is_text, item))
    return isinstance(item, str)


class Rounding:
    """Fills the batches of one method of a sentence-transformers model up to known shapes.

    Keeps the model only as long as it lives; used on the worker. See `of`.
    """

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device = weakref.ref(model), device

    @classmethod
    def of(cls, value: Any, method: str, device: str) -> Rounding | None:
        """Return what rounds the calls of a method; None if it is none that is known."""
        names = {"encode": "SentenceTransformer", "predict": "CrossEncoder"}
        known = any(
            base.__name__ == names.get(method)
            and base.__module__.partition(".")[0] == "sentence_transformers"
            for base in type(value).__mro__
        )
        if not known or not callable(getattr(value, "preprocess", None)):
            return None
        return cls(value, device)

    def model(self) -> Any:
        """Return the model, for a call whose results padding does not change; else None."""
        return self._model()

    @contextlib.contextmanager
    def in_force(self, model: Any, rows: int) -> Iterator[Shaping]:
        """Have the model pad what its tokenizer makes; `rows` of them are requests'."""
        shape = Shaping(model, self._device, longest_of(model), rows)
        own, preprocess = vars(model).get("preprocess"), model.preprocess

        def padded(*args: Any, **kwargs: Any) -> Any:
            return shape.pad(preprocess(*args, **kwargs), model.tokenizer)

        vars(model)["preprocess"] = padded
        try:
            yield shape
        finally:
            if own is None:
                del vars(model)["preprocess"]
            else:
                vars(model)["preprocess"] = own


def changes_with_neighbours(kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of a sentence-transformers model is calibrated over all of its texts."""
    return kwargs.get("precision") in ("int8", "uint8")


def _shows_padding(kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("output_value", "sentence_embedding") != "sentence_embedding")


class Grouping:
    """Splits the batches of one method.

    rounding: what fills them up to known shapes, if it can. elements: counts padding.
    """

    def __init__(
        self, rounding: Rounding | None = None, elements: _onelane.Elements | None = None
    ) -> None:
        self._rounding, self._elements = rounding, elements
        self._cost, self._estimate = LaunchCost(), Estimate()

    def piece(self, item: Any, most: int) -> int:
        """Return how many items of a long list go together, this one being the longest."""
        length = size(item)
        if not length or not _is_text(item):
            return most
        return self._cost.rows(self._estimate.tokens(length), most, _PIECE_S)

    def calls(self, inputs: list[Input]) -> list[list[int]]:
        """Return which requests share a call, each call's sorted by length."""
        lengths = self._tokens(inputs)
        rounds = self._rounds(inputs[0].kwargs)
        if lengths is None or (len(set(lengths)) == 1 and not rounds):
            return [list(range(len(inputs)))]
        model = None if not rounds or self._rounding is None else self._rounding.model()
        most = _most_rows(inputs[0].kwargs) if rounds else sys.maxsize
        rows = [request.rows for request in inputs]
        longest = None if model is None else longest_of(model)
        return plan(lengths, self._cost.tokens, most, longest, rows=rows, rounds=rounds)

    def _rounds(self, kwargs: Mapping[str, Any]) -> bool:
        return self._rounding is not None and not _shows_padding(kwargs)

    def _tokens(self, inputs: list[Input]) -> list[float] | None:
        """Return the length of each request's longest item, in tokens; None: it is not known."""
        sizes = [max(map(size, request.spec[0]), default=0) for request in inputs]
        if not all(sizes):
            return None
        if all(_is_text(request.spec[0][0]) for request in inputs):
            return [self._estimate.tokens(characters) for characters in sizes]
        return [_TYPICAL * one * len(sizes) / sum(sizes) for one in sizes]

    def call(
        self,
        inputs: list[Input],
        items: list[Any],
        method: Callable[[list[Any]], Any],
    ) -> Any:
        """Call the method with the items of some requests, and return what it returns for them.

        items: of the requests, in their order. Counts the padding, and learns what a call costs.
        """
        rounds = self._rounds(inputs[0].kwargs)
        model = None if not rounds or self._rounding is None else self._rounding.model()
        sizes = list(map(size, items))
        began = _clock()
        if model is None or self._rounding is None:
            output = method(items)
            elements, padded = sum(sizes), len(items) * max(sizes, default=0)
            tokens = self._tokens(inputs)
            if tokens is not None:
                self._cost.note(len(items) * round(max(tokens)), _clock() - began)
        else:
            rows = row_bucket(len(items), _most_rows(inputs[0].kwargs))
            # Filled up with the shortest.
            shortest = items[min(range(len(items)), key=sizes.__getitem__)] if items else None
            with self._rounding.in_force(model, len(items)) as shape:
                output = method(items + [shortest] * (rows - len(items)))
            if rows > len(items):
                output = _first(output, len(items))
            elements, padded = shape.tokens, shape.padded
            if padded:
                self._cost.note(padded, _clock() - began)
                self._estimate.note(sum(sizes), elements)
        if self._elements is not None and padded:
            self._elements.add(elements, padded)
        return output


def _most_rows(kwargs: Mapping[str, Any]) -> int:
    """Return how many rows the library runs at once, at most as many as are known shapes."""
    said = kwargs.get("batch_size", ROWS[-1])
    return max(1, min(said, ROWS[-1])) if isinstance(said, int) else ROWS[-1]


def _first(output: Any, rows: int) -> Any:
    """Return an output without the rows that a batch was filled up with."""
    if isinstance(output, Mapping):
        return _tree.rebuild_mapping(output, {k: _first(v, rows) for k, v in output.items()})
    return output[:rows]


__all__ = ["Grouping", "Rounding", "changes_with_neighbours", "size"]
