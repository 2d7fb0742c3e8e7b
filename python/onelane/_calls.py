"""Batching the calls of one method: many `encode("a text")` become one `encode([...])`.

The first argument of a call is one item, or several. Whether a list of strings is two texts or one
pair for a cross encoder, the method alone knows: `Forms` finds it out, and until it has, such a
call runs as it was made, by itself. So a call that is batched means what it meant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from onelane import _keys, _onelane, _responses, _tensors, _tree
from onelane._collate import Collator, Defaults, Input, Target
from onelane._grouping import Grouping, changes_with_neighbours
from onelane._lane import Lane
from onelane.errors import NotBatchable

# What the first argument of a call is.
ITEM, ITEMS, UNKNOWN, AS_IT_IS = "item", "items", "unknown", "as it is"


class Forms:
    """What one method takes lists and tuples for, learnt from its calls."""

    def __init__(self) -> None:
        self._known: dict[Any, str] = {}

    def of(self, first: Any) -> str:
        """Return what the first argument of a call is."""
        if isinstance(first, (list, tuple)) and not hasattr(first, "_fields"):
            if not first:
                return AS_IT_IS
            kinds = frozenset(map(type, first))
            known = self._known.get((type(first), kinds))
            if known is not None:
                return known
            # A caller gave one of these by itself, or the method took a list of them apart. Numbers
            # say nothing: a list of them is a row or a sequence of tokens.
            apart = not kinds & {int, float, bool} and all(
                self._known.get(kind) or self._known.get((list, frozenset({kind}))) == ITEMS
                for kind in kinds
            )
            return ITEMS if apart else UNKNOWN
        if _tree.is_array(first):
            # Strings are taken for a list of them, numbers for one image, sound or row.
            return AS_IT_IS if first.ndim and first.dtype.kind in "OUSTM" else ITEM
        if isinstance(first, (str, bytes, bytearray, memoryview, Mapping, tuple)):
            return ITEM
        several = isinstance(first, (Sequence, Set, Iterator, deque)) or hasattr(first, "iloc")
        return AS_IT_IS if several and not _tree.is_tensor(first) else ITEM

    def note_item(self, first: Any) -> None:
        """A caller gave this as one item."""
        self._known.setdefault(type(first), ITEM)

    def note_call(self, first: Any, result: Any) -> None:
        """The method itself was called with this list or tuple, and returned that."""
        count = len(first)
        try:
            results = -1 if isinstance(result, (str, bytes, Mapping)) else len(result)
        except TypeError:
            results = -1
        kinds = frozenset(map(type, first))
        if results != count:
            self._known[type(first), kinds] = ITEM
        elif count != 2:
            # Two results for two strings may also be two scores of one pair: that says nothing.
            self._known[type(first), kinds] = ITEMS

    def note_refused(self, first: Any) -> None:
        """The method itself does not take this tuple, so it is one item of a list."""
        self._known[type(first), frozenset(map(type, first))] = ITEM


class CallCollator:
    """A request is a method's arguments; the first is an item, or a list or tuple of items.

    lane: through which responses leave, and arguments enter. grouping: how a batch is split into
    calls of the method.
    """

    def __init__(self, lane: Lane, grouping: Grouping | None = None) -> None:
        self._lane = lane
        self._grouping = Grouping() if grouping is None else grouping

    @staticmethod
    def can_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether there is a first argument, and the others can be compared."""
        if changes_with_neighbours(kwargs):
            return False
        try:
            _keys.of_value((args[1:], kwargs))
        except TypeError:
            return False
        return bool(args)

    @staticmethod
    def request(args: tuple[Any, ...], kwargs: dict[str, Any], form: str) -> Any:
        """Pack the arguments into one object, as `prepare` takes it."""
        return (args, kwargs, form)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        ((call_args, call_kwargs, form),) = args
        first, rest = call_args[0], call_args[1:]
        items = list(first) if form == ITEMS else [first]
        # The order of keyword arguments is nothing to a method that names them.
        named = frozenset((name, _keys.of_value(value)) for name, value in call_kwargs.items())
        request = Input(rest, call_kwargs, rows=len(items), spec=(items, form == ITEMS))
        return request, (_keys.of_value(rest), named)

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`."""
        responses: list[Any] = [None] * len(inputs)
        computed = 0
        for group in self._grouping.calls(inputs):
            some, rows = self._call(target, [inputs[at] for at in group])
            computed += rows
            for at, response in zip(group, some, strict=True):
                responses[at] = response
        return responses, computed

    def _call(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """Make one call of the method for some requests."""
        items: list[Any] = []
        bounds = []
        for request in inputs:
            bounds.append((len(items), len(items) + request.rows))
            items += _tensors.private_arrays(request.spec[0])
        enter = self._lane.enter
        rest, named = enter(inputs[0].args), enter(inputs[0].kwargs)

        def method(items: list[Any]) -> Any:
            return target.call(enter(items), *rest, **named)

        output = self._grouping.call(inputs, items, method)
        if _is_results(output, len(items)):
            if len(output) != len(items):
                raise NotBatchable(
                    f"the method returned {len(output)} results for {len(items)} items: leave it "
                    f"out of guard(..., batch=...)"
                )
            left = [self._lane.leave(part) for part in output]
            responses: list[Any] = [
                type(output)(left[a:b]) if request.spec[1] else left[a]
                for (a, b), request in zip(bounds, inputs, strict=True)
            ]
        else:
            try:
                responses = [
                    part if request.spec[1] else _only(part)
                    for part, request in zip(
                        _responses.split(target, output, bounds, len(items)), inputs, strict=True
                    )
                ]
            except NotBatchable as error:
                text = str(error).partition(": the first dimension")[0]
                raise NotBatchable(
                    f"{text}, so its calls cannot be batched: leave it out of guard(..., batch=...)"
                ) from None
        return responses, len(items)


@dataclass(frozen=True)
class Calls(Defaults):
    """What the requests of a batched method's queue are; see `_requests.Requests`."""

    lane: Lane
    grouping: Grouping
    elements: _onelane.Elements

    def collator(self) -> Collator:
        """See `_requests.Requests`."""
        return CallCollator(self.lane, self.grouping)


def _is_results(output: Any, count: int) -> bool:
    """Whether an output is one result an item, and not a structure of results for all."""
    if type(output) is list:
        return True
    return (
        type(output) is tuple
        and len(output) == count
        and not any(_tree.is_tensor(p) or _tree.is_array(p) or isinstance(p, list) for p in output)
    )


def _only(value: Any) -> Any:
    """The response to a single item, without the dimension of the items."""
    if isinstance(value, Mapping):
        return _tree.rebuild_mapping(value, {key: _only(part) for key, part in value.items()})
    if _tree.is_tensor(value) or _tree.is_array(value) or isinstance(value, list):
        return value[0]
    if isinstance(value, tuple):
        return _tree.rebuild_sequence(type(value), [_only(part) for part in value])
    return value
