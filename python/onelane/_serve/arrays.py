"""Tensors of the Open Inference Protocol as arrays, and arrays as such tensors."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from onelane import _tensors, _tree

if TYPE_CHECKING:
    import numpy as np

_DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
# By the names of the Open Inference Protocol.
DATATYPES = (*_DTYPES, "BF16", "BYTES")


class Raw(NamedTuple):
    """A tensor as the protocol writes it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: np.ndarray  # of bytes, which are nobody else's


def to_array(raw: Raw, encoding: str | None) -> np.ndarray:
    """Return a tensor as an array on its memory; a BF16 as one of 32 bits, BYTES as objects."""
    import numpy as np

    if raw.datatype == "BYTES":
        return _elements(raw, encoding)
    if raw.datatype == "BF16":
        bits = raw.data.view("<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(raw.shape)
    return raw.data.view(_DTYPES[raw.datatype]).reshape(raw.shape)


def to_torch(raw: Raw, encoding: str | None, device: Any) -> Any:
    """Return a tensor on the device; BYTES as an array of objects, since there is none of texts."""
    import torch

    if raw.datatype == "BYTES":
        return _elements(raw, encoding)
    if raw.datatype == "BF16":
        tensor = torch.from_numpy(raw.data.view("<i2").reshape(raw.shape)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(to_array(raw, encoding))
    return tensor.to(device)


def to_raw(name: str, value: Any, datatype: str | None, encoding: str | None) -> Raw:
    """Return an output as the protocol writes it, of the type if one is declared."""
    import numpy as np

    is_bfloat = False
    if _tree.is_tensor(value):
        value = _tensors.resolved(value.detach().cpu())
        is_bfloat = value.dtype == sys.modules["torch"].bfloat16
        value = (value.float() if is_bfloat else value).numpy()
    array = np.asarray(value)
    if datatype is None:
        datatype = "BF16" if is_bfloat else _datatype(name, array)
    shape = array.shape
    if datatype == "BYTES":
        return Raw(name, datatype, shape, _joined(name, array, encoding))
    target = np.dtype(np.float32 if datatype == "BF16" else _DTYPES[datatype])
    if not np.can_cast(array.dtype, target, "same_kind"):
        raise TypeError(
            f"the model's output {name!r} has the dtype {array.dtype}, which does not become the "
            f"declared {datatype}"
        )
    array = np.ascontiguousarray(array, target)
    if datatype == "BF16":
        array = _halved(array)
    return Raw(name, datatype, shape, array.reshape(-1).view(np.uint8))


def _elements(raw: Raw, encoding: str | None) -> np.ndarray:
    import numpy as np

    data, at = raw.data.tobytes(), 0
    elements: list[Any] = []
    while at < len(data):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        elements.append(data[start:at] if encoding is None else data[start:at].decode(encoding))
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(raw.shape)


def _joined(name: str, array: np.ndarray, encoding: str | None) -> np.ndarray:
    import numpy as np

    parts = []
    for element in array.reshape(-1).tolist():
        if isinstance(element, str):
            element = element.encode(encoding or "utf-8")
        if not isinstance(element, bytes):
            raise TypeError(
                f"the model's output {name!r} is of BYTES and has a {type(element).__name__}: "
                f"return texts or bytes"
            )
        parts += [len(element).to_bytes(4, "little"), element]
    return np.frombuffer(bytearray(b"".join(parts)), np.uint8)


def _halved(array: np.ndarray) -> np.ndarray:
    """Return floats of 32 bits as the upper halves that are nearest to them."""
    import numpy as np

    bits = array.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return np.where(np.isnan(array), 0x7FC0, nearest).astype("<u2")


def _datatype(name: str, array: np.ndarray) -> str:
    if array.dtype.kind in "OSU":
        return "BYTES"
    native = array.dtype.newbyteorder("=")
    for datatype, dtype in _DTYPES.items():
        if native == dtype:
            return datatype
    raise TypeError(
        f"the model's output {name!r} has the dtype {array.dtype}, which the protocol has no name "
        f"for: return another"
    )


__all__ = ["DATATYPES", "Raw", "to_array", "to_raw", "to_torch"]
