"""Batching the calls of one method: many `encode("a text")` become one `encode([...])`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onelane import _collate, _tree
from onelane._collate import Input, Target
from onelane.errors import NotBatchable


class CallCollator:
    """A request is a method's arguments; the first is an item, or a list of items."""

    @staticmethod
    def can_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether there is a first argument, and the others can be compared."""
        try:
            hash((args[1:], tuple(kwargs.items())))
        except TypeError:
            return False
        return bool(args) and args[0] != []

    @staticmethod
    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pack the arguments into one object, as `prepare` takes it."""
        return (args, kwargs)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        ((call_args, call_kwargs),) = args
        first, rest = call_args[0], call_args[1:]
        items = first if isinstance(first, list) else [first]
        # 1 and True are equal, but not as arguments.
        key = (
            tuple((type(value), value) for value in rest),
            frozenset((name, type(value), value) for name, value in call_kwargs.items()),
        )
        request = Input(rest, call_kwargs, rows=len(items), spec=(items, items is first))
        return request, key

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`."""
        items: list[Any] = []
        bounds = []
        for request in inputs:
            bounds.append((len(items), len(items) + request.rows))
            items += request.spec[0]
        output = target.call(items, *inputs[0].args, **inputs[0].kwargs)
        if isinstance(output, list):
            if len(output) != len(items):
                raise NotBatchable(
                    f"the method returned {len(output)} results for {len(items)} items: leave it "
                    f"out of guard(..., batch=...)"
                )
            left = _collate.leave(target, output)
            responses: list[Any] = [left[a:b] for a, b in bounds]
        else:
            responses = _collate.split(target, output, bounds, len(items))
        for i, request in enumerate(inputs):
            if not request.spec[1]:
                responses[i] = _only(responses[i])
        return responses, len(items)


def _only(value: Any) -> Any:
    """The response to a single item, without the dimension of the items."""
    if isinstance(value, Mapping):
        return {key: _only(part) for key, part in value.items()}
    if _tree.is_tensor(value) or _tree.is_array(value) or isinstance(value, list):
        return value[0]
    if isinstance(value, tuple):
        return tuple(_only(part) for part in value)
    return value
