"""A batch of texts between the server and an encoder: one table in, one table of numbers out."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

from onelane._item_collator import ItemCollator
from onelane._model import Payload
from onelane._serve.encoder import Encoder

if TYPE_CHECKING:
    import numpy as np

# What a row begins with: how many tokens it has, and where the second segment kind begins.
_HEAD = 2


class Bridge:
    """The server's side: makes requests of tables, and numbers of responses."""

    def __init__(self, collator: ItemCollator) -> None:
        self._collator = collator

    def pack(self, table: bytes, rows: int, columns: int) -> Payload:
        """Return the request that a table of 32-bit numbers is."""
        import numpy as np

        array = np.frombuffer(table, np.int32).reshape(rows, columns)
        request, _ = self._collator.prepare((array,), {})
        return Payload(request, None, contextvars.Context())

    def unpack(self, response: np.ndarray) -> tuple[bytes, int]:
        """Return the floats of a response, and how many there are for a text."""
        return response.tobytes(), response.shape[1]


class Loaded:
    """The worker's side: an encoder as the model of a queue."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, tables: list[np.ndarray]) -> list[np.ndarray]:
        return [self._run(table) for table in tables]

    def _run(self, table: np.ndarray) -> np.ndarray:
        import numpy as np

        counts, seconds = table[:, :1], table[:, 1:_HEAD]
        ids = table[:, _HEAD:].astype(np.int64)
        at = np.arange(ids.shape[1])
        real = at < counts
        types = real & (at >= seconds)
        answer = numbers(self._encoder.run(ids, real.astype(np.int64), types.astype(np.int64)))
        if answer.ndim == 1 and self._encoder.task == "rerank":
            answer = answer[:, None]
        if answer.ndim != 2 or len(answer) != len(ids):
            raise ValueError(
                f"run() returned numbers of shape {answer.shape} for {len(ids)} texts: return one "
                f"row for each"
            )
        return answer


def numbers(value: Any) -> np.ndarray:
    """Return what a model gave as floats of 32 bits on the host."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


__all__ = ["Bridge", "Loaded", "numbers"]
