"""The parent's half of an isolated queue of tensors, while this process has not loaded PyTorch.

It reads arrays by NumPy alone; the child makes tensors of them, and arrays of the results. As soon
as PyTorch is there, for whatever reason, requests are read as everywhere else.
"""

from __future__ import annotations

import sys
from typing import Any

from onelane import _tree
from onelane._collate import Input, Target, unpack
from onelane._modules import imported
from onelane._pad import Pad
from onelane._tensor_collator import TensorCollator


class ParentTensorCollator:
    """Reads requests of arrays. Its other half is a `TensorCollator` in the child."""

    def __init__(self, pad: Pad | None, unpack: bool) -> None:
        self._pad, self._unpack = pad, unpack
        self._full: TensorCollator | None = None

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        if imported("torch") is not None:
            if self._full is None:
                self._full = TensorCollator(self._pad, self._unpack)
            return self._full.prepare(args, kwargs)
        args, kwargs = unpack(args, kwargs, self._unpack)
        arrays: list[Any] = []
        names: list[str] = []
        spec = _tree.flatten((args, kwargs), arrays, names)
        structure = _tree.key(spec)
        if not arrays:
            raise TypeError(
                "there is no array in this input: give an array whose first dimension is the "
                "batch's, or a dict or tuple of such; for other inputs use requests=onelane.Items()"
            )
        for array, name in zip(arrays, names, strict=True):
            _check(array, name)
        rows = arrays[0].shape[0]
        if any(array.shape[0] != rows for array in arrays):
            shapes = ", ".join(
                f"{name or 'x'}: {array.shape} {array.dtype}"
                for array, name in zip(arrays, names, strict=True)
            )
            raise ValueError(
                f"the inputs of one request disagree about the number of rows, which is their "
                f"first dimension: {shapes}. An input that is not per row cannot be batched: keep "
                f"it in the model, or use requests=onelane.Each()"
            )
        pad = self._pad
        named = list(zip(names, (array.shape for array in arrays), strict=True))
        length, bucket = (0, 0) if pad is None else pad.length(named)
        request = Input(tuple(arrays), {}, rows, length, bucket, spec, names, True)
        kinds = tuple(
            (
                array.dtype.str,
                tuple(shape[1:]) if pad is None else pad.row_shape(shape, name, bucket),
            )
            for array, (name, shape) in zip(arrays, named, strict=True)
        )
        return request, (structure, kinds, bucket)

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`; this half runs nothing."""
        raise RuntimeError("batches of an isolated queue run in its child")


def _check(array: Any, name: str) -> None:
    numpy = sys.modules["numpy"]
    if type(array) not in (numpy.ndarray, numpy.memmap, numpy.matrix):
        cure = "its mask is lost: give array.filled(...)" if hasattr(array, "mask") else (
            "what it has beyond an array's numbers is lost: give numpy.asarray(...) of it"
        )  # fmt: skip
        raise TypeError(
            f"a {type(array).__name__} cannot become a tensor, because {cure}, or use "
            f"requests=onelane.Items()"
        )
    if not array.ndim:
        raise ValueError(
            f"input {name or 'x'!r} is an array without dimensions ({array.dtype}): the first "
            f"dimension has to be the batch's. Give it one (x[None]), pass a plain number, or use "
            f"requests=onelane.Each()"
        )
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"an array of dtype {array.dtype} has no tensor type: convert it, or use "
            f"requests=onelane.Items()"
        )


__all__ = ["ParentTensorCollator"]
