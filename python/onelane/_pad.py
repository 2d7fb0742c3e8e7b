"""Padding of a variable dimension to a bounded set of lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onelane import _names


@dataclass(frozen=True)
class Pad:
    """How a `BatchQueue` pads a variable dimension, tokens for one.

    Requests of different lengths share a batch when they fall into the same bucket, and the model
    sees only as many shapes as there are buckets (MPS keeps a compiled graph for each shape).

    dim: the dimension that varies; 0 is the batch dimension, so at least 1.
    buckets: the lengths to pad to, ascending. A longer request is refused with a `ValueError`.
    value: what to pad with; a mapping gives a value by input name, other inputs get 0.
    names: the inputs to pad, by keyword name. Default: all that have this dimension, which must
        then agree on its size.
    mask: the keyword name of a mask of ones, with zeros in the padding, of shape (rows, length) and
        dtype int64. An input of that name is padded with zeros; without one, it is made.
    trim: which outputs to cut back to the request's own length along `dim`: True for all whose size
        there is the bucket, or the names of fields of the output. An output that has the bucket's
        size there for another reason must not be trimmed, so nothing is unless asked for.
    rows: numbers of rows to pad a batch to, ascending, by repeating its last row; their outputs are
        dropped. Bounds the shapes in the batch dimension too. Beyond the last: not padded.
    side: "right" or "left" of what is there.
    """

    dim: int = 1
    buckets: Sequence[int] = (16, 32, 64, 128, 256, 512)
    value: float | Mapping[str, float] = 0
    names: Sequence[str] | None = None
    mask: str | None = None
    trim: bool | Sequence[str] = False
    rows: Sequence[int] | None = None
    side: str = "right"
    _trimmed: frozenset[str] = field(init=False, repr=False, default=frozenset())

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"Pad(dim={self.dim}): dimension 0 is the batch's; use 1 or more")
        for name, sizes in (("buckets", self.buckets), ("rows", self.rows)):
            if sizes is not None and (
                not sizes or min(sizes) < 1 or list(sizes) != sorted(set(sizes))
            ):
                raise ValueError(f"Pad({name}={sizes!r}): give ascending sizes of at least 1")
        if self.side not in ("right", "left"):
            raise ValueError(f"Pad(side={self.side!r}): use 'right' or 'left'")
        if isinstance(self.trim, str):
            raise ValueError(f"Pad(trim={self.trim!r}): give a sequence of names, or True")
        if not isinstance(self.trim, bool):
            object.__setattr__(self, "_trimmed", frozenset(self.trim))

    def bucket(self, length: int) -> int:
        """Return the smallest bucket that `length` fits into."""
        for bucket in self.buckets:
            if length <= bucket:
                return bucket
        raise ValueError(
            f"dimension {self.dim} is {length} long, and the largest bucket is "
            f"{self.buckets[-1]}: cut the input, or give Pad a larger bucket"
        )

    def length(self, inputs: Iterable[tuple[str, Sequence[int]]]) -> tuple[int, int]:
        """Return the length of a request of inputs by name and shape, and its bucket."""
        lengths = {
            name: shape[self.dim]
            for name, shape in inputs
            if self.pads(name) and len(shape) > self.dim
        }
        if not lengths:
            raise ValueError(
                f"there is nothing to pad: no input has a dimension {self.dim}"
                + (f" among {list(self.names)}" if self.names is not None else "")
            )
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"the inputs of one request disagree about dimension {self.dim}: {lengths}. Name "
                f"those that are to be padded: Pad(names=...)"
            )
        length = next(iter(lengths.values()))
        return length, self.bucket(length)

    def row_shape(self, shape: Sequence[int], name: str, bucket: int) -> tuple[int, ...]:
        """Return the shape of a row of the input of that name, padded."""
        padded = list(shape)
        if self.pads(name) and len(padded) > self.dim:
            padded[self.dim] = bucket
        return tuple(padded[1:])

    def row_count(self, rows: int) -> int:
        """Return the number of rows that a batch of `rows` is padded to."""
        return next((size for size in self.rows or () if rows <= size), rows)

    def pads(self, name: str) -> bool:
        """Whether the input of that name is padded."""
        return self.names is None or name in self.names or name == self.mask

    def fill(self, name: str) -> float:
        """Return what the input of that name is padded with."""
        if name == self.mask:
            return 0
        if isinstance(self.value, Mapping):
            return self.value.get(name, 0)
        return self.value

    def trims(self, name: str) -> bool:
        """Whether the output field of that name is cut back."""
        return self.trim is True or name in self._trimmed

    def concatenate(self, torch: Any, parts: list[Any], bucket: int, name: str) -> Any:
        """Concatenate tensors by rows, each padded to `bucket` along `dim`."""
        first = parts[0]
        if all(part.shape[self.dim] == bucket for part in parts):
            return first if len(parts) == 1 else torch.cat(parts)
        shape = list(first.shape)
        shape[0] = sum(part.shape[0] for part in parts)
        shape[self.dim] = bucket
        out = first.new_full(shape, self.fill(name))
        row = 0
        for part in parts:
            place = out.narrow(0, row, part.shape[0])
            row += part.shape[0]
            place.narrow(
                self.dim, self.start(part.shape[self.dim], bucket), part.shape[self.dim]
            ).copy_(part)
        return out

    def start(self, length: int, bucket: int) -> int:
        """Return where along `dim` a request of `length` begins in its bucket."""
        return bucket - length if self.side == "left" else 0

    def make_mask(self, torch: Any, lengths: list[tuple[int, int]], bucket: int) -> Any:
        """Make a mask from (rows, length) of each request."""
        mask = torch.zeros(sum(rows for rows, _ in lengths), bucket, dtype=torch.int64)
        row = 0
        for rows, length in lengths:
            start = self.start(length, bucket)
            mask[row : row + rows, start : start + length] = 1
            row += rows
        return mask


Pad.__init__ = _names.settings(Pad.__init__)  # type: ignore[method-assign]
