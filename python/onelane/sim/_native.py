"""Words of the native device that several files use."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch

# Whether it is a graph; its name; the shapes that a graph is compiled for; a key of 16 bytes if the
# outputs are a pure function of the inputs.
Command = tuple[bool, str, str, bytes | None]

# Address and length of a block's bytes while a command runs on them.
Bytes = tuple[int, int]


class Layout(NamedTuple):
    """Where a tensor's elements lie in its block; strides and offset are in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """The number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def nbytes(self) -> int:
        """The bytes that a dense tensor of this shape takes."""
        return self.numel * self.dtype.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1:
                if stride != expected:
                    return False
                expected *= length
        return True


def dense_layout(shape: tuple[int, ...], dtype: torch.dtype) -> Layout:
    """The layout of a dense tensor."""
    strides = [1] * len(shape)
    for at in range(len(shape) - 2, -1, -1):
        strides[at] = strides[at + 1] * max(shape[at + 1], 1)
    return Layout(shape, tuple(strides), 0, dtype)


def on_bytes(place: Bytes, layout: Layout) -> torch.Tensor:
    """A CPU tensor over a block's bytes. Only for as long as the command runs."""
    address, length = place
    if layout.numel == 0:
        return torch.empty(layout.shape, dtype=layout.dtype)
    memory = (ctypes.c_char * length).from_address(address)
    flat = torch.frombuffer(memory, dtype=layout.dtype, count=length // layout.dtype.itemsize)
    return flat.as_strided(layout.shape, layout.strides, layout.offset)
