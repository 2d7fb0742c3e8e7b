"""Modules in training mode: in a batch, what one request gets depends on its neighbours."""

from __future__ import annotations

from typing import Any

from onelane._modules import imported


def is_module(value: Any) -> bool:
    """Whether `value` is a `torch.nn.Module`; does not load PyTorch."""
    torch = imported("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def mixing(module: Any) -> str | None:
    """Return the name of a part whose training mode changes results; None: there is none.

    Parts of PyTorch's own are known; others are taken to do so if their `forward` reads `training`.
    """
    import torch
    from torch.nn.modules import batchnorm, dropout, instancenorm

    for name, part in module.named_modules():
        if not part.training:
            continue
        where = name or type(part).__name__
        if isinstance(part, dropout._DropoutNd):
            if part.p > 0:
                return where
        elif isinstance(part, instancenorm._InstanceNorm):
            if part.track_running_stats:
                return where
        elif isinstance(part, (batchnorm._BatchNorm, torch.nn.RReLU)):
            return where
        elif isinstance(part, (torch.nn.MultiheadAttention, torch.nn.RNNBase)):
            if part.dropout > 0:
                return where
        elif not type(part).__module__.startswith("torch.nn."):
            code = getattr(getattr(type(part), "forward", None), "__code__", None)
            if code is not None and "training" in code.co_names:
                return where
    return None


def warning(module: Any) -> str | None:
    """Return what to say of a module that is batched; None: nothing."""
    if not module.training and not any(part.training for part in module.modules()):
        return None
    part = mixing(module)
    if part is None:
        return None
    return (
        f"{type(module).__name__} is in training mode ({part}): in a batch, what a request gets "
        f"depends on the others. Call .eval() on it first, or use requests=onelane.Each()"
    )


__all__ = ["is_module", "mixing", "warning"]
