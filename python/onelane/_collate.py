"""How requests become one call of the model, and its output one response each.

A collator has two halves. `prepare` runs on the calling thread: it looks at the input, says what
is wrong with it, and gives a payload and a batch key. `run` runs on the worker, with payloads of
equal keys. Here is what all collators share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from onelane import _leave, _modes
from onelane._graphs import Graphs
from onelane._pad import Pad
from onelane._staging import Staging


class Defaults:
    """What requests are unless their kind says otherwise; see `_requests.Requests`."""

    output: Literal["cpu", "device"] = "cpu"
    copy: bool = True
    cuda_graphs: bool = False
    pad: Pad | None = None
    cost: Callable[..., float] | None = None
    shared: bool = True
    # What counts the elements of batches, where the collator itself does.
    elements: Any = None


@dataclass(slots=True)
class Input:
    """One request on its way to the worker."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int = 1
    length: int = 0
    bucket: int = 0
    spec: Any = None
    names: list[str] = field(default_factory=list)
    numpy: bool = False
    # What it counts for in a batch, where that is not its rows.
    cost: int = 0


class Target(Protocol):
    """What a collator runs on."""

    @property
    def call(self) -> Callable[..., Any]:
        """The model."""

    @property
    def device(self) -> str:
        """The name of the device."""

    @property
    def torch_device(self) -> Any:
        """The `torch.device`; None if PyTorch is not used, or knows no such device."""

    @property
    def graphs(self) -> Graphs | None:
        """What the model is called through with host tensors, and returns host tensors."""

    @property
    def to_cpu(self) -> bool:
        """Whether results leave as CPU copies."""

    @property
    def wrap(self) -> Callable[[_leave.Departure, Any], Any]:
        """What becomes of objects that are neither plain, tensors, nor containers of such."""

    @property
    def copy_outputs(self) -> bool:
        """Whether each part of an output has memory of its own, not a view of the batch's copy."""


class PlainTarget(Target, Protocol):
    """What batches of plain tensors run on."""

    @property
    def modes(self) -> _modes.Modes:
        """Those of the requests."""

    @property
    def staging(self) -> Staging | None:
        """Host buffers that a CUDA device copies from and to; None on other devices."""


class Collator(Protocol):
    """The two halves."""

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """Return the input for the worker and its batch key, which is hashable."""

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """Return one response an input, and the number of rows computed, padding included."""


def unpack(args: tuple[Any, ...], kwargs: dict[str, Any], unpack: bool) -> Any:
    """A mapping given alone is keyword arguments, and a tuple is positional ones."""
    if unpack and len(args) == 1 and not kwargs:
        (only,) = args
        if isinstance(only, Mapping):
            for name in only:
                if not isinstance(name, str):
                    raise TypeError(
                        f"a dict given alone is the keyword arguments of the model, and {name!r} "
                        f"is no name: use onelane.Tensors(unpack=False) to give the dict itself"
                    )
            return (), dict(only)
        if isinstance(only, tuple) and not hasattr(only, "_fields"):
            return only, {}
    return args, kwargs


def place(target: Target, tensor: Any) -> Any:
    """Return the tensor where the target's model wants it."""
    if target.torch_device is None or target.graphs is not None:
        return tensor
    return tensor.to(target.torch_device)


__all__ = ["Collator", "Input", "PlainTarget", "Target", "place", "unpack"]
