"""A CPU tensor that takes the branch that patch 035 adds for MPS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class ReportsMps(torch.Tensor):
    """A CPU tensor that says `is_mps`, and so takes the branch that patch 035 adds.

    Every operation is carried out by the plain tensor inside and is written down in `calls`.
    """

    is_mps = True
    inner: Tensor
    calls: list[str] = []  # noqa: RUF012 - shared by all, emptied by each test
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> ReportsMps:
        made: ReportsMps = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=requires_grad,
        )
        return made

    def __init__(self, inner: Tensor, requires_grad: bool = False) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(func.overloadpacket.__name__)
        args, kwargs = tree_map_only(cls, lambda x: x.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, func(*args, **kwargs))


def plain(x: Any) -> Tensor:
    return x.inner if isinstance(x, ReportsMps) else x
