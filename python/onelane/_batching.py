"""The calls of one batched method: one item, or several, and those in pieces of a batch's size.

A call with more items than a batch holds is fed piece by piece, so that others get their turn:
items of like lengths together, the longest first, and smaller pieces while others call. What the
pieces return is put together again, in the order of the items.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol

from onelane import _caller, _tree
from onelane._caller import Caller
from onelane._calls import AS_IT_IS, ITEM, ITEMS, UNKNOWN, CallCollator, Forms
from onelane._exclusive import Hold
from onelane._grouping import size
from onelane._terms import Terms
from onelane.errors import DeadlineExceeded

# Pieces of one call under way, alone: one runs, and the worker need not wait for the next.
_UNDER_WAY = 2
# Beside others there is one, with this part of a batch's items.
_PART = 4


class Queue(Protocol):
    """The queue of the method's requests."""

    def __call__(self, request: Any, **terms: Any) -> Any:
        """Return the response to one request."""

    def submit(self, request: Any, **terms: Any) -> Future[Any]:
        """Submit a request."""

    def try_submit(self, request: Any, **terms: Any) -> Future[Any]:
        """Submit a request if there is room."""

    async def infer(self, request: Any, **terms: Any) -> Any:
        """Await the response to one request."""

    def shutdown(self, *, timeout: float | None = None) -> bool:
        """Refuse new requests and run those that were accepted."""

    def health(self) -> Any:
        """Return whether requests are answered."""


def one(queue: Any, request: tuple[Any, ...], terms: Terms) -> Any:
    """Make one request of a queue, and return the response."""
    if terms.wait:
        return queue(*request, **_of(terms))
    return _result(queue.try_submit(*request, **_of(terms)), terms)


async def aone(
    queue: Any, request: tuple[Any, ...], terms: Terms, caller: Caller | None = None
) -> Any:
    """Do what `one` does, from an event loop; caller: whose state was read at the call."""
    if terms.wait:
        return await _caller.read(caller, queue.infer, *request, **_of(terms))
    future = asyncio.wrap_future(_caller.read(caller, queue.try_submit, *request, **_of(terms)))
    try:
        return await asyncio.wait_for(future, terms.left())
    except asyncio.TimeoutError:
        if future.done() and not future.cancelled():
            raise
        raise _late() from None


class Turns(Protocol):
    """The object's turns, see `Lane`."""

    turns: Any

    def turn(self, terms: Terms) -> Hold | None:
        """Wait until the object may be called."""

    async def aturn(self, terms: Terms) -> Hold | None:
        """Do what `turn` does, from an event loop."""


class Batching:
    """The queue of a batched method, and how its calls are read.

    first: the name of the method's first parameter. size: the most items in a batch. piece: how
    many items of a long list go together, given the longest of them and the most.
    """

    def __init__(
        self,
        queue: Queue,
        first: str | None,
        size: int,
        piece: Callable[[Any, int], int] | None = None,
    ) -> None:
        self._piece = piece or (lambda item, most: most)
        self.queue, self.forms, self._first, self._size = queue, Forms(), first, size
        # Calls that are under way.
        self._inside, self._lock = 0, threading.Lock()
        # What the method returns for several items cannot be put together of pieces.
        self._whole = False
        home = getattr(queue, "executor", None)
        # An isolated worker is never held.
        self._is_held_here = (lambda: False) if home is None else home.is_held_here

    def read(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], str]:
        """Return the arguments, the first one by position, and what that is."""
        if not args and self._first in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop(self._first),)
        if not CallCollator.can_batch(args, kwargs):
            return args, kwargs, AS_IT_IS
        return args, kwargs, self.forms.of(args[0])

    def _is_large(self, first: Any) -> bool:
        return isinstance(first, (list, tuple)) and len(first) > self._size

    def _first_piece(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return arguments to learn from: run as they are, they keep nobody waiting for long."""
        return (args[0][: self._size], *args[1:])

    # --- From threads -------------------------------------------------------------------------

    def call(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        turns: Turns | None,
        terms: Terms,
    ) -> Any:
        """Make a call, batched if it can be; `call` makes it by itself."""
        args, kwargs, form = self.read(args, kwargs)
        if form == AS_IT_IS:
            return call(*args, **kwargs)
        if form == UNKNOWN and self._is_large(args[0]):
            piece = self._first_piece(args)
            with contextlib.suppress(Exception):
                self.forms.note_call(piece[0], call(*piece, **kwargs))
            form = self.forms.of(args[0])
        if form != UNKNOWN:
            result = self._batched(args, kwargs, form, turns, terms)
            if form == ITEM:
                self.forms.note_item(args[0])
            return result
        try:
            result = call(*args, **kwargs)
        except Exception as error:
            if not isinstance(args[0], tuple):
                raise
            try:
                result = self._batched(args, kwargs, ITEM, turns, terms)
            except Exception:
                raise error from None
            self.forms.note_refused(args[0])
            return result
        self.forms.note_call(args[0], result)
        return result

    def _batched(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        form: str,
        turns: Turns | None,
        terms: Terms,
    ) -> Any:
        hold = None if turns is None else turns.turn(terms)
        self._enter(1)
        try:
            if form == ITEMS and self._is_large(args[0]) and not self._whole:
                order = _by_length(args[0])
                parts = self._in_pieces(order, args, kwargs, terms, inline=turns is None)
                try:
                    return _reordered(_joined(parts), order)
                except Exception:
                    self._whole = True
            return one(self.queue, (CallCollator.request(args, kwargs, form),), terms)
        finally:
            self._enter(-1)
            if turns is not None:
                turns.turns.leave(hold)

    def _in_pieces(
        self,
        order: list[int],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        terms: Terms,
        inline: bool,
    ) -> list[Any]:
        requests = self._pieces(order, args, kwargs)
        if inline:
            return [one(self.queue, (request,), terms) for request in requests]
        under_way: deque[Future[Any]] = deque()
        parts = []
        try:
            for number, request in enumerate(requests):
                while len(under_way) >= self._under_way():
                    parts.append(_result(under_way.popleft(), terms))
                submit = self.queue.submit if terms.wait or number else self.queue.try_submit
                under_way.append(submit(request, **_of(terms)))
            while under_way:
                parts.append(_result(under_way.popleft(), terms))
        finally:
            for future in under_way:
                future.cancel()
        return parts

    def _pieces(
        self, order: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Any]:
        """Yield the requests of a call's pieces, as large as they may be when each is asked for."""
        items, rest, at = args[0], args[1:], 0
        while at < len(order):
            most = self._size if self._inside == 1 else -(-self._size // _PART)
            count = self._piece(items[order[at]], most)
            piece = type(items)([items[i] for i in order[at : at + count]])
            at += count
            yield CallCollator.request((piece, *rest), kwargs, ITEMS)

    def _under_way(self) -> int:
        return _UNDER_WAY if self._inside == 1 else 1

    def _enter(self, change: int) -> None:
        with self._lock:
            self._inside += change

    # --- From event loops ---------------------------------------------------------------------

    async def acall(
        self,
        call: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        turns: Turns,
        terms: Terms,
        caller: Caller | None = None,
    ) -> Any:
        """Make a call from an event loop; caller: whose state was read at the call."""
        args, kwargs, form = self.read(args, kwargs)
        if form == AS_IT_IS:
            return await call(*args, **kwargs)
        if form == UNKNOWN and self._is_large(args[0]):
            piece = self._first_piece(args)
            with contextlib.suppress(Exception):
                self.forms.note_call(piece[0], await call(*piece, **kwargs))
            form = self.forms.of(args[0])
        if form != UNKNOWN:
            result = await self._abatched(args, kwargs, form, turns, terms, caller)
            if form == ITEM:
                self.forms.note_item(args[0])
            return result
        try:
            result = await call(*args, **kwargs)
        except Exception as error:
            if not isinstance(args[0], tuple):
                raise
            try:
                result = await self._abatched(args, kwargs, ITEM, turns, terms, caller)
            except Exception:
                raise error from None
            self.forms.note_refused(args[0])
            return result
        self.forms.note_call(args[0], result)
        return result

    async def _abatched(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        form: str,
        turns: Turns,
        terms: Terms,
        caller: Caller | None,
    ) -> Any:
        hold = await turns.aturn(terms)
        self._enter(1)
        try:
            if form == ITEMS and self._is_large(args[0]) and not self._whole:
                order = _by_length(args[0])
                parts = await self._in_pieces_async(order, args, kwargs, terms, caller)
                try:
                    return _reordered(_joined(parts), order)
                except Exception:
                    self._whole = True
            request = CallCollator.request(args, kwargs, form)
            return await aone(self.queue, (request,), terms, caller)
        finally:
            self._enter(-1)
            turns.turns.leave(hold)

    async def _in_pieces_async(
        self,
        order: list[int],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        terms: Terms,
        caller: Caller | None,
    ) -> list[Any]:
        under_way: deque[asyncio.Task[Any]] = deque()
        parts = []
        if self._is_held_here():
            # Tasks of their own would be someone else's, who wait for the end of the hold.
            for request in self._pieces(order, args, kwargs):
                parts.append(await aone(self.queue, (request,), terms, caller))
            return parts
        try:
            for number, request in enumerate(self._pieces(order, args, kwargs)):
                while len(under_way) >= self._under_way():
                    parts.append(await under_way.popleft())
                of_piece = terms if not number else terms._replace(wait=True)
                piece = aone(self.queue, (request,), of_piece, caller)
                under_way.append(asyncio.ensure_future(piece))
            while under_way:
                parts.append(await under_way.popleft())
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        return parts


def _of(terms: Terms) -> dict[str, Any]:
    return {"deadline": terms.deadline, "priority": terms.priority}


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed while the call was running")


def _result(future: Future[Any], terms: Terms) -> Any:
    try:
        return future.result(terms.left())
    except FutureTimeout:
        if future.done():
            raise
        future.cancel()
        raise _late() from None


def _by_length(items: Any) -> list[int]:
    """Return the positions of items, the longest first; as they are if they have no lengths."""
    return sorted(range(len(items)), key=lambda at: -size(items[at]))


def _reordered(value: Any, order: list[int]) -> Any:
    """Return what a method returned for sorted items in the order that they had."""
    if order == list(range(len(order))):
        return value
    back = sorted(range(len(order)), key=order.__getitem__)
    if isinstance(value, Mapping):
        return _tree.rebuild_mapping(
            value, {key: _reordered(part, order) for key, part in value.items()}
        )
    if _tree.is_tensor(value) or _tree.is_array(value):
        return value[back]
    if isinstance(value, tuple) and _has_columns(value):
        columns = [_reordered(column, order) for column in value]
        return _tree.rebuild_sequence(type(value), columns)
    return type(value)(value[at] for at in back)


def _has_columns(value: tuple[Any, ...]) -> bool:
    """Whether a tuple is a structure of results for all items, and not one result an item."""
    return any(_tree.is_tensor(p) or _tree.is_array(p) or isinstance(p, list) for p in value)


def _joined(parts: list[Any]) -> Any:
    """Put together what a method has returned for the pieces of one call."""
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        raise TypeError("the pieces returned different types")
    if _tree.is_tensor(first):
        return sys.modules["torch"].cat(parts)
    if _tree.is_array(first):
        return sys.modules["numpy"].concatenate(parts)
    if isinstance(first, Mapping):
        keys = first.keys()
        if any(part.keys() != keys for part in parts):
            raise TypeError("the pieces returned different keys")
        return _tree.rebuild_mapping(
            first, {key: _joined([part[key] for part in parts]) for key in keys}
        )
    if type(first) is list:
        return [item for part in parts for item in part]
    if isinstance(first, tuple):
        if _has_columns(first):
            columns = [_joined(list(column)) for column in zip(*parts, strict=True)]
            return _tree.rebuild_sequence(type(first), columns)
        if type(first) is tuple:
            return tuple(item for part in parts for item in part)
    raise TypeError(f"{type(first).__name__} cannot be put together of pieces")


__all__ = ["Batching"]
