"""Which operators the simulated device has, and which of them are graphs.

A kernel stays pending until something commits its stream; a graph is committed at once (rule R2 in
docs/simulated-device.md). What is listed nowhere is refused.
"""

from __future__ import annotations

import functools
from typing import Any

GRAPHS = frozenset((
    "linear", "addmm", "addmv", "addbmm", "baddbmm", "bmm", "mm", "mv", "dot", "convolution",
    "scaled_dot_product_attention", "_softmax", "_log_softmax", "softmax", "log_softmax",
    "gelu", "sum", "mean", "prod", "amax", "amin", "max", "min", "argmax", "argmin", "any",
    "all", "var", "var_mean", "std", "std_mean", "linalg_vector_norm", "norm", "logsumexp",
    "cumsum", "cumprod", "topk", "sort", "native_batch_norm",
    "_native_batch_norm_legit_no_training", "avg_pool2d", "max_pool2d_with_indices",
    "_adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
))  # fmt: skip

KERNELS = frozenset((
    "add", "sub", "rsub", "mul", "div", "pow", "remainder", "fmod", "floor_divide", "maximum",
    "minimum", "atan2", "lerp", "addcmul", "addcdiv", "sqrt", "rsqrt", "exp", "exp2", "expm1",
    "log", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh", "sigmoid", "erf", "abs",
    "neg", "sign", "square", "reciprocal", "floor", "ceil", "round", "trunc", "frac", "relu",
    "leaky_relu", "elu", "silu", "mish", "hardtanh", "hardswish", "hardsigmoid", "softplus",
    "threshold", "clamp", "clamp_min", "clamp_max", "where", "masked_fill", "eq", "ne", "lt",
    "le", "gt", "ge", "isnan", "isinf", "isfinite", "logical_and", "logical_or", "logical_not",
    "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor",
    "native_layer_norm", "native_group_norm", "rms_norm", "_fused_rms_norm", "embedding",
    "index_select", "gather", "index", "scatter", "scatter_add", "index_put", "index_add",
    "cat", "stack", "repeat", "repeat_interleave", "roll", "flip", "tril", "triu",
    "constant_pad_nd", "fill", "zero", "zeros_like", "ones_like", "full_like", "new_zeros",
    "new_ones", "new_full", "copy", "_to_copy", "arange", "range", "linspace", "logspace",
    "eye", "tril_indices", "triu_indices", "renorm",
))  # fmt: skip

# Made without a look at the input's elements.
WITHOUT_INPUT = frozenset((
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full",
))  # fmt: skip

# How the simulated device calls what PyTorch calls otherwise.
_NAMES = {
    "_softmax": "softmax", "_log_softmax": "log_softmax", "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm", "_fused_rms_norm": "rms_norm", "zero": "fill",
    "zeros_like": "fill", "ones_like": "fill", "full_like": "fill", "new_zeros": "fill",
    "new_ones": "fill", "new_full": "fill", "_to_copy": "copy", "convolution": "conv2d",
    "mm": "matmul",
}  # fmt: skip


@functools.cache
def base_name(func: Any) -> str:
    """The operator's name without `aten::` and without the underscore of the in-place variant."""
    name: str = func._schema.name
    name = name.removeprefix("aten::")
    in_place = name.endswith("_") and not name.endswith("__")
    return name[:-1] if in_place else name


def simulated_name(name: str) -> str:
    """The name on the simulated device."""
    return _NAMES.get(name, name)


@functools.cache
def is_view(func: Any) -> bool:
    """Whether the result shares the memory of an argument that it does not write to."""
    returned = [r.alias_info for r in func._schema.returns]
    return bool(returned) and all(a is not None and not a.is_write for a in returned)


@functools.cache
def written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Positions and names of the arguments that the operator writes to."""
    found = enumerate(func._schema.arguments)
    return tuple((at, a.name) for at, a in found if a.alias_info and a.alias_info.is_write)


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether PyTorch itself takes the operator apart into others."""
    return bool(func._can_decompose())


@functools.cache
def kind(func: Any) -> str:
    """`"graph"`, `"kernel"` or, for an operator that the device does not have, `""`."""
    if not func._schema.name.startswith("aten::"):
        return ""
    name = base_name(func)
    if name in GRAPHS:
        return "graph"
    return "kernel" if name in KERNELS else ""
