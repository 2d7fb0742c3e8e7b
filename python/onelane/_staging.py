"""Page-locked host buffers, which a CUDA device copies from and to by itself."""

from __future__ import annotations

import math
from typing import Any

from onelane import _devices, _tensors


class Staging:
    """Page-locked host buffers of one worker, used again for each batch.

    One for each dtype and trailing shape. The worker synchronises before it hands results over, so
    that no copy is under way when a buffer is used again.
    """

    _KEPT = 16
    _MOST_BYTES = 64 * 2**20

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device, self._name = torch, device, str(device)
        self._buffers: dict[Any, Any] = {}

    def _buffer(self, direction: str, like: Any, rows: int) -> Any:
        """A page-locked tensor of so many rows of the shape of those of `like`; None: too large."""
        key = (direction, like.dtype, like.shape[1:])
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape[0] < rows:
            size = 1 << (rows - 1).bit_length() if rows else 1
            shape = (size, *like.shape[1:])
            if math.prod(shape) * like.element_size() > self._MOST_BYTES:
                return None
            if len(self._buffers) >= self._KEPT:
                self._buffers.clear()
            buffer = self._torch.empty(shape, dtype=like.dtype, pin_memory=True)
            self._buffers[key] = buffer
        return buffer[:rows]

    def bring(self, tensors: list[Any], rows: list[int]) -> Any:
        """Return the rows of all tensors on the device."""
        buffer = self._buffer("in", tensors[0], sum(rows))
        if buffer is None:
            return self._torch.cat(tensors).to(self._device)
        _tensors.concatenate(self._torch, tensors, rows, buffer)
        return buffer.to(self._device, non_blocking=True)

    def take(self, output: Any) -> Any:
        """Return an output on the host; to be copied from before the next batch."""
        buffer = self._buffer("out", output, output.shape[0])
        if buffer is None:
            buffer = output.cpu()
        else:
            buffer.copy_(output, non_blocking=True)
        _devices.synchronize(self._name)
        return buffer


__all__ = ["Staging"]
