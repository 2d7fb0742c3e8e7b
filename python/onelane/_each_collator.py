"""Collates nothing: each request runs by itself, as it is."""

from __future__ import annotations

from typing import Any

from onelane import _tensors, _tree
from onelane._collate import Input, Target, place, unpack
from onelane._responses import leave


class EachCollator:
    """Runs each request by itself, as it is."""

    def __init__(self, unpack: bool) -> None:
        self._unpack = unpack

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        args, kwargs = unpack(args, kwargs, self._unpack)
        return Input(args, kwargs), None

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`."""
        responses = []
        for request in inputs:
            numpy = False

            def change(value: Any) -> Any:
                nonlocal numpy
                if _tree.is_array(value):
                    import torch

                    numpy = True
                    value = _tensors.from_numpy(torch, value)
                placed = place(target, value)
                return placed.clone() if placed is value else placed

            arrays = target.torch_device is not None
            args, kwargs = _tree.map_tensors((request.args, request.kwargs), change, arrays=arrays)
            if not arrays:
                args, kwargs = _tensors.private_arrays((args, kwargs))
            responses.append(leave(target, target.call(*args, **kwargs), numpy))
        return responses, len(inputs)


__all__ = ["EachCollator"]
