"""Collates objects of any kind: into a list, or into what a function makes of that list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onelane import _tensors, _tree
from onelane._collate import Input, Target, place
from onelane._responses import leave, split
from onelane.errors import NotBatchable


class ItemCollator:
    """Gives the model the list of inputs, or what a function makes of it; one result an item."""

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self._collate = collate

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        if len(args) != 1 or kwargs:
            raise TypeError(
                f"with requests=onelane.Items() a request is one object; this one has "
                f"{len(args)} positional and {len(kwargs)} keyword arguments: put them in a tuple"
            )
        return Input(args, {}), None

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`."""
        batch: Any = [self.private(request) for request in inputs]
        if self._collate is not None:
            batch = _tree.map_tensors(self._collate(batch), lambda t: place(target, t))
        output = target.call(batch)
        count = len(inputs)
        if isinstance(output, (list, tuple)) and not hasattr(output, "_fields"):
            if len(output) != count:
                raise NotBatchable(
                    f"the model returned {len(output)} results for {count} inputs: with "
                    f"requests=onelane.Items() it has to return one for each, in "
                    f"order. If this model cannot be batched, use requests=onelane.Each()"
                )
            return self.responses(target, output), count
        bounds = [(i, i + 1) for i in range(count)]
        return split(target, output, bounds, count, item=True), count

    def private(self, request: Input) -> Any:
        """Return an item for the model, which may write into it.

        A failed batch is run again in parts: with what the callers gave.
        """
        return _tensors.private_arrays(request.args[0])

    def responses(self, target: Target, output: Any) -> list[Any]:
        """Return results as they leave the worker."""
        return [leave(target, part) for part in output]


__all__ = ["ItemCollator"]
