"""A batch of rows between the server and a predictor: tensors in, tensors out."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Mapping
from typing import Any

from onelane import _devices
from onelane._item_collator import ItemCollator
from onelane._model import Payload
from onelane._serve.arrays import Raw, to_array, to_raw, to_torch
from onelane._serve.predictor import Predictor
from onelane._training import is_module

Parts = tuple[str, str, tuple[int, ...], bytes]


class TensorBridge:
    """The server's side: makes requests of tensors, and tensors of responses."""

    def __init__(self, collator: ItemCollator) -> None:
        self._collator = collator

    def pack(self, tensors: list[Parts]) -> Payload:
        """Return the request that tensors are, which the server gives as its bytes."""
        import numpy as np

        raw = [
            Raw(name, datatype, tuple(shape), np.frombuffer(data, np.uint8))
            for name, datatype, shape, data in tensors
        ]
        request, _ = self._collator.prepare((raw,), {})
        return Payload(request, None, contextvars.Context())

    def unpack(self, response: list[Raw]) -> list[Parts]:
        """Return the bytes of a response."""
        return [(raw.name, raw.datatype, raw.shape, raw.data.tobytes()) for raw in response]


class LoadedPredictor:
    """The worker's side: a predictor as the model of a queue."""

    def __init__(self, predictor: Predictor, device: str) -> None:
        self._encoding = predictor.encoding
        self._device = _devices.torch_device(device)
        self._torch = predictor.wants_torch()
        self._run = _placed(predictor.run, self._device)
        self._declared = {name: kind for name, (kind, _) in (predictor.outputs or {}).items()}
        self._by_name: dict[tuple[str, ...], bool] = {}

    def __call__(self, requests: list[list[Raw]]) -> list[list[Raw]]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: list[Raw]) -> list[Raw]:
        if self._torch:
            import torch

            with torch.inference_mode():
                output = self._call(
                    {raw.name: to_torch(raw, self._encoding, self._device) for raw in request}
                )
        else:
            output = self._call({raw.name: to_array(raw, self._encoding) for raw in request})
        return [
            to_raw(name, value, self._declared.get(name), self._encoding)
            for name, value in self._named(output).items()
        ]

    def _call(self, arrays: dict[str, Any]) -> Any:
        names = tuple(arrays)
        by_name = self._by_name.get(names)
        if by_name is None:
            by_name = self._by_name[names] = _takes(self._run, names)
            # Clients name undeclared inputs as they like.
            while len(self._by_name) > 64:
                del self._by_name[next(iter(self._by_name))]
        if by_name:
            return self._run(**arrays)
        return self._run(*arrays.values())

    def _named(self, output: Any) -> dict[str, Any]:
        if isinstance(output, Mapping):
            return {str(name): value for name, value in output.items()}
        parts = output if isinstance(output, tuple) else (output,)
        names = [*self._declared] or [f"output-{at}" for at in range(len(parts))]
        if len(parts) != len(names):
            raise ValueError(
                f"the model returned {len(parts)} outputs and declares {len(names)}: "
                f"{', '.join(names)}"
            )
        return dict(zip(names, parts, strict=True))


def _placed(run: Any, device: Any) -> Any:
    return run.to(device).eval() if is_module(run) else run


def _takes(run: Any, names: tuple[str, ...]) -> bool:
    """Whether a callable takes arguments of these names; else it takes one, by position."""
    try:
        signature = inspect.signature(run.forward if is_module(run) else run)
    except (TypeError, ValueError):
        return len(names) > 1
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        if len(names) == 1:
            return False
        raise TypeError(
            f"the model takes {signature}, and the call has the inputs {', '.join(names)}: {error}"
        ) from None
    return True


__all__ = ["LoadedPredictor", "TensorBridge"]
