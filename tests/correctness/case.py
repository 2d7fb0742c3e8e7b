"""The ten tests: modules, shapes of their inputs, and how their data are drawn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

SEED = 42
# How many different inputs the threads of a test use between them. With one input for all, an
# answer that reaches the wrong thread would hold the right numbers and pass.
ROTATIONS = 4

_building = threading.Lock()

Inputs = tuple[Tensor, ...]


class Matmul(nn.Module):
    """`torch.matmul` of two inputs."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b)


class Bmm(nn.Module):
    """`torch.bmm` of two inputs."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a, b)


def layer_norm() -> nn.Module:
    """LayerNorm with weights that are not all one and zero, so that leaving them out shows."""
    module = nn.LayerNorm(768)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


def transformer_block() -> nn.Module:
    """The encoder layer in eval mode, with attention biases that are not all zero."""
    module = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    nn.init.uniform_(module.self_attn.in_proj_bias, -0.1, 0.1)
    nn.init.uniform_(module.self_attn.out_proj.bias, -0.1, 0.1)
    return module


class Case(NamedTuple):
    """One test: a module, the shapes of its inputs, and whether requests can be stacked."""

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    stacks: bool = True

    def module(self) -> nn.Module:
        """The module in eval mode on the CPU, with the weights of seed 42."""
        # Modules draw from the generator that all threads share, and workers build at once.
        with _building:
            torch.manual_seed(SEED)
            return self.build().eval()

    def inputs(self, rotation: int) -> Inputs:
        """The inputs of seed 42 on the CPU, with rows rotated."""
        generator = torch.Generator().manual_seed(SEED)
        drawn = [torch.randn(shape, generator=generator) for shape in self.shapes]
        return tuple(x.roll(rotation, dims=0) for x in drawn)


CASES = (
    Case("Linear", lambda: nn.Linear(512, 256), ((16, 512),)),
    Case("LinearLarge", lambda: nn.Linear(2048, 2048), ((64, 2048),)),
    # Each request brings its own right operand: matrix products cannot share one.
    Case("Matmul", Matmul, ((256, 512), (512, 256)), stacks=False),
    Case("MatmulLarge", Matmul, ((1024, 1024), (1024, 1024)), stacks=False),
    Case("BMM", Bmm, ((8, 64, 64), (8, 64, 64))),
    Case("LayerNorm", layer_norm, ((16, 512, 768),)),
    Case("Softmax", lambda: nn.Softmax(dim=-1), ((4, 128, 32000),)),
    Case("Conv2d", lambda: nn.Conv2d(3, 64, 3, padding=1), ((4, 3, 224, 224),)),
    Case("GELU", nn.GELU, ((16, 512, 768),)),
    Case("TransformerBlock", transformer_block, ((4, 128, 256),)),
)
