"""Concurrent calls of one method of a model as batches that know lengths.

Each text, or pair, of a call is one request of a `BatchQueue`; there is one queue for each set of
other arguments. On the worker what has come together is sorted by length, split (see `lengths`),
filled up to a known shape, and given to the library's own method. A long list is fed in pieces,
so that the queries of others pass it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from onelane import _shapes
from onelane._batch_queue import BatchQueue
from onelane._install.lengths import ROWS, LaunchCost, length_bucket, plan, row_bucket
from onelane._install.place import Place
from onelane._requests import Items
from onelane.errors import QueueClosed

# Rows of a piece of a long list, alone and beside others.
_PIECE_ALONE, _PIECE_BESIDE = 32, 8
# Queues of one model: more sets of arguments than this run call by call.
_MOST_QUEUES = 16

# What pads in `preprocess`; of a worker's thread.
_shaping = threading.local()

# A list of texts or pairs, and the tensors for it, in the same order.
Run = Callable[[Any, list[Any]], Sequence[Any]]


class Shaping:
    """Pads what a tokenizer made for one batch to a known length; on the worker."""

    def __init__(self, model: Any, place: Place, longest: int | None, rows: int) -> None:
        self.model, self.longest = model, longest
        self._place, self._rows = place, rows
        # Tokens without padding of the requests, and with padding of all rows.
        self.tokens = self.padded = 0

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
        _shapes.note(self._place.name, (type(self.model).__name__, rows, length + missing))
        return features


def _cat(parts: Any) -> Any:
    import torch

    return torch.cat(parts, dim=1)


def shaping(model: Any) -> Shaping | None:
    """Return what pads the batch of a model that is being run on this thread, if one is."""
    present: Shaping | None = getattr(_shaping, "present", None)
    return present if present is not None and present.model is model else None


class _Estimate:
    """Tokens of a text, from its characters: learnt from what was tokenized."""

    def __init__(self) -> None:
        self._characters, self._tokens = 40.0, 12.0

    def note(self, characters: int, tokens: int) -> None:
        self._characters = 0.9 * self._characters + characters
        self._tokens = 0.9 * self._tokens + tokens

    def tokens(self, characters: int) -> float:
        return max(1.0, characters * self._tokens / self._characters)


class Batches:
    """The queues of one method of one model. Does not keep the model alive."""

    def __init__(self, model: Any, method: str, place: Place) -> None:
        self._model = weakref.ref(model)
        self._name = f"{type(model).__name__}.{method}"
        self._place = place
        self._queues: dict[Hashable, Future[BatchQueue]] = {}
        self._lock = threading.Lock()
        self._cost, self._estimate = LaunchCost(), _Estimate()
        # Calls that are under way.
        self._inside = 0

    def call(self, items: list[Any], key: Hashable, most_rows: int, run: Run) -> list[Any] | None:
        """Return the result of each item; None: this call has to be made by itself.

        key: calls whose keys are equal share batches. most_rows: of a batch. run: the library's
        method, for the calls of this key.
        """
        queue = self._queue_of(key, most_rows, run)
        if queue is None:
            return None
        with self._call():
            try:
                return self._one(queue, items[0]) if len(items) == 1 else self._feed(queue, items)
            except QueueClosed:
                # Its executor was shut down. The next call finds the one that has come after it.
                self._forget(key, None)
                raise

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def _queue_of(self, key: Hashable, most_rows: int, run: Run) -> BatchQueue | None:
        with self._lock:
            made = self._queues.get(key)
            if made is None and len(self._queues) < _MOST_QUEUES:
                # On the worker, where its engine is built: so it waits in line like a request, and
                # nobody who wants the lock waits for it.
                made = self._queues[key] = self._place.waits(
                    self._place.home.submit(self._make, self._batch(most_rows, run))
                )
        if made is None:
            return None
        try:
            return made.result()
        except BaseException:
            self._forget(key, made)
            raise

    def _make(self, batch: Callable[[list[Any]], list[Any]]) -> BatchQueue:
        return BatchQueue(
            batch,
            self._place.home,
            Items(),
            max_batch_size=ROWS[-1],
            factory=False,
            name=self._name,
        )

    def _forget(self, key: Hashable, made: Future[BatchQueue] | None) -> None:
        with self._lock:
            if made is None or self._queues.get(key) is made:
                self._queues.pop(key, None)

    def _one(self, queue: BatchQueue, item: Any) -> list[Any]:
        future = self._place.waits(queue.submit(item))
        try:
            return [future.result()]
        except BaseException:
            # Of Ctrl-C: nobody waits for it any more.
            future.cancel()
            raise

    def _feed(self, queue: BatchQueue, items: list[Any]) -> list[Any]:
        """Submit a list in pieces of like lengths, the longest first, and collect its results."""
        order = sorted(range(len(items)), key=lambda at: -size(items[at]))
        results: list[Any] = [None] * len(items)
        waiting: list[tuple[list[int], list[Future[Any]]]] = []
        at = 0
        try:
            while at < len(order) or waiting:
                alone = self._inside == 1
                # Alone, the next piece waits while one runs. Beside others they keep it busy.
                while at < len(order) and len(waiting) < (2 if alone else 1):
                    piece = order[at : at + (_PIECE_ALONE if alone else _PIECE_BESIDE)]
                    at += len(piece)
                    futures = queue.submit_many([items[i] for i in piece])
                    waiting.append((piece, futures))
                    self._place.waits(futures[0])
                piece, futures = waiting[0]
                for position, future in zip(piece, futures, strict=True):
                    results[position] = future.result()
                waiting.pop(0)
        except BaseException:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()
            raise
        return results

    # --- On the worker ------------------------------------------------------------------------

    def _batch(self, most_rows: int, run: Run) -> Callable[[list[Any]], list[Any]]:
        """Return what a queue runs. It keeps neither the model nor its other queues."""
        of_model, cost, estimate = self._model, self._cost, self._estimate
        place = self._place

        def batch(items: list[Any]) -> list[Any]:
            model = of_model()
            if model is None:
                raise ReferenceError("the model was dropped while a call of it was waiting")
            longest = getattr(model, "max_seq_length", None)
            longest = longest if isinstance(longest, int) and longest > 0 else None
            sizes = [size(item) for item in items]
            lengths = [estimate.tokens(characters) for characters in sizes]
            if longest is not None:
                lengths = [min(length, float(longest)) for length in lengths]
            results: list[Any] = [None] * len(items)
            for group in plan(lengths, cost.tokens, most_rows, longest):
                rows = row_bucket(len(group), most_rows)
                # Filled up with the shortest.
                texts = [items[at] for at in group] + [items[group[0]]] * (rows - len(group))
                shape = Shaping(model, place, longest, len(group))
                began = time.perf_counter()
                _shaping.present = shape
                try:
                    made = run(model, texts)
                finally:
                    _shaping.present = None
                if shape.padded:
                    cost.note(shape.padded, time.perf_counter() - began)
                    estimate.note(sum(sizes[at] for at in group), shape.tokens)
                for at, result in zip(group, made, strict=False):
                    results[at] = result
            return results

        return batch

    def stats(self) -> list[Any]:
        """Return the statistics of the queues."""
        with self._lock:
            made = list(self._queues.values())
        return [
            queue.result().stats() for queue in made if queue.done() and queue.exception() is None
        ]


def size(item: Any) -> int:
    """Return the characters of a text, or of all texts of a pair."""
    if isinstance(item, str):
        return len(item)
    return sum(len(part) for part in item)


def is_text(item: Any) -> bool:
    """Whether this is a text, or a pair of texts: what is batched."""
    if isinstance(item, str):
        return True
    return (
        isinstance(item, (list, tuple))
        and len(item) == 2
        and all(isinstance(part, str) for part in item)
    )


__all__ = ["Batches", "Shaping", "is_text", "shaping", "size"]
