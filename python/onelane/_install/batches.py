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

from onelane._batch_queue import BatchQueue
from onelane._install.place import Place
from onelane._lengths import ROWS, LaunchCost, plan, row_bucket
from onelane._requests import Items
from onelane._shaping import Estimate, Shaping, longest_of
from onelane.errors import QueueClosed

# Rows of a piece of a long list at most, alone and beside others, and about how long it may take:
# who asks meanwhile waits for one piece, or for two at first.
_PIECE_ALONE, _PIECE_BESIDE = 32, 8
_PIECE_S = 0.2
# Queues of one model: more sets of arguments than this run call by call.
_MOST_QUEUES = 16

# A list of texts or pairs, and the tensors for it, in the same order.
Run = Callable[[Any, list[Any]], Sequence[Any]]


class Batches:
    """The queues of one method of one model. Does not keep the model alive."""

    def __init__(self, model: Any, method: str, place: Place) -> None:
        self._model = weakref.ref(model)
        self._name = f"{type(model).__name__}.{method}"
        self._place = place
        self._queues: dict[Hashable, Future[BatchQueue]] = {}
        self._lock = threading.Lock()
        self._cost, self._estimate = LaunchCost(), Estimate()
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
                    piece = order[at : at + self._piece(items[order[at]], alone)]
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

    def _piece(self, item: Any, alone: bool) -> int:
        """Return how many items the next piece has; this one is the longest."""
        length = self._estimate.tokens(size(item))
        return self._cost.rows(length, _PIECE_ALONE if alone else _PIECE_BESIDE, _PIECE_S)

    # --- On the worker ------------------------------------------------------------------------

    def _batch(self, most_rows: int, run: Run) -> Callable[[list[Any]], list[Any]]:
        """Return what a queue runs. It keeps neither the model nor its other queues."""
        of_model, cost, estimate = self._model, self._cost, self._estimate
        place = self._place

        def batch(items: list[Any]) -> list[Any]:
            model = of_model()
            if model is None:
                raise ReferenceError("the model was dropped while a call of it was waiting")
            longest = longest_of(model)
            sizes = [size(item) for item in items]
            lengths = [estimate.tokens(characters) for characters in sizes]
            if longest is not None:
                lengths = [min(length, float(longest)) for length in lengths]
            results: list[Any] = [None] * len(items)
            for group in plan(lengths, cost.tokens, most_rows, longest):
                rows = row_bucket(len(group), most_rows)
                # Filled up with the shortest.
                texts = [items[at] for at in group] + [items[group[0]]] * (rows - len(group))
                shape = Shaping(model, place.name, longest, len(group))
                began = time.perf_counter()
                with shape.in_force():
                    made = run(model, texts)
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


__all__ = ["Batches", "is_text", "size"]
