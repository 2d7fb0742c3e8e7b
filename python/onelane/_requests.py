"""What a request of a batch queue is: `Tensors`, `Items` or `Each`.

Each kind has the settings that make sense for it, and is checked when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from onelane import _names
from onelane._collate import Collator, Defaults
from onelane._each_collator import EachCollator
from onelane._item_collator import ItemCollator
from onelane._pad import Pad
from onelane._tensor_collator import TensorCollator

Output = Literal["cpu", "device"]
Cost = Callable[..., float]


class Requests(Protocol):
    """What a batch queue has to know of its requests."""

    @property
    def output(self) -> Output:
        """Where results are."""

    @property
    def copy(self) -> bool:
        """Whether each response has memory of its own, not a view of the batch's copy."""

    @property
    def cuda_graphs(self) -> bool:
        """Whether what the model does is recorded and replayed."""

    @property
    def pad(self) -> Pad | None:
        """How a dimension that varies is padded."""

    @property
    def cost(self) -> Cost | None:
        """What a request costs."""

    @property
    def shared(self) -> bool:
        """Whether requests share batches."""

    @property
    def elements(self) -> Any:
        """What counts the elements of batches; None: nothing, or the queue by its `pad`."""

    def collator(self) -> Collator:
        """Make what collates them."""


@dataclass(frozen=True, kw_only=True)
class Tensors(Defaults):
    """A request is one or several tensors or arrays whose first dimension is the batch's.

    Of any size there, in any nesting of dicts, tuples and lists, beside plain values; what the
    model would be called with. A batch is their concatenation. Requests share one when dtypes,
    trailing shapes, structure and plain values agree. The default of `BatchQueue`.

    pad: a `Pad`, for a dimension that varies.
    unpack: whether a dict given alone becomes keyword arguments of the model, and a tuple
        positional ones.
    copy: False copies the output of a batch once, as a whole, and responses are views of that
        copy: cheaper where rows are many and small. A response that is kept then keeps the memory
        of its whole batch, and `torch.save` of it writes all of that.
    cuda_graphs: True records what the model does for a batch of some shape, as a CUDA graph, and
        replays it: one launch, where a small model's batch is more launches than work. Rows are
        filled up, to a quarter more at most, with copies of the last one. What the model does must
        depend on its inputs' shapes alone and on weights that stay where they are; one that waits
        for the device (`.item()`) runs without, with a warning. For `output="cpu"` and CUDA. The
        first batch of a shape takes longer, and each shape takes memory.
    output: `"cpu"`: results are CPU tensors of their own, detached. `"device"`: they stay on the
        device, complete; touching or freeing them off the worker is then your risk.
    cost: for `max_batch_cost`: a function of a request's inputs, as they are given, that returns
        its cost, a number of at least 0. Called where the request is made. With a `Pad` and
        without this it is the rows times their padded length.
    """

    pad: Pad | None = None
    unpack: bool = True
    copy: bool = True
    cuda_graphs: bool = False
    output: Output = "cpu"
    cost: Cost | None = None

    def __post_init__(self) -> None:
        _check(self)
        if self.pad is not None and not isinstance(self.pad, Pad):
            raise TypeError(f"Tensors(pad={self.pad!r}): give an onelane.Pad")
        if self.cuda_graphs and self.output != "cpu":
            raise ValueError(
                "Tensors(cuda_graphs=True) is for results that leave the device: use output='cpu' "
                "with it"
            )

    def collator(self) -> Collator:
        """See `Requests`."""
        return TensorCollator(self.pad, self.unpack)


@dataclass(frozen=True, kw_only=True)
class Items(Defaults):
    """A request is any one object, a text for example.

    The model gets a list of them and returns a list, tuple, array or tensor with one result each.

    collate: a function that makes of the list what the model is called with.
    copy, output, cost: as for `Tensors`.
    """

    collate: Callable[[list[Any]], Any] | None = None
    copy: bool = True
    output: Output = "cpu"
    cost: Cost | None = None

    def __post_init__(self) -> None:
        _check(self)
        if self.collate is not None and not callable(self.collate):
            raise TypeError(f"Items(collate={self.collate!r}): give a function of a list")

    def collator(self) -> Collator:
        """See `Requests`."""
        return ItemCollator(self.collate)


@dataclass(frozen=True, kw_only=True)
class Each(Defaults):
    """Each request runs by itself, with any shapes in and out: an order, and no batches.

    unpack, output: as for `Tensors`.
    """

    unpack: bool = True
    output: Output = "cpu"
    shared = False

    def __post_init__(self) -> None:
        _check(self)

    def collator(self) -> Collator:
        """See `Requests`."""
        return EachCollator(self.unpack)


def _check(requests: Any) -> None:
    kind = type(requests).__name__
    for name in ("unpack", "copy", "cuda_graphs"):
        value = getattr(requests, name, True)
        if not isinstance(value, bool):
            raise TypeError(f"{kind}({name}={value!r}): use True or False")
    if requests.output not in ("cpu", "device"):
        said = _names.nearest(str(requests.output), ("cpu", "device"))
        raise ValueError(f"{kind}(output={requests.output!r}): use 'cpu' or 'device'{said}")
    if requests.cost is not None and not callable(requests.cost):
        raise TypeError(f"{kind}(cost={requests.cost!r}): give a function of a request's inputs")


for _kind in (Tensors, Items, Each):
    _kind.__init__ = _names.settings(_kind.__init__)  # type: ignore[method-assign]


def checked(requests: Any) -> Requests:
    """Return what a queue was told that its requests are; the default for None."""
    if requests is None:
        return Tensors()
    if isinstance(requests, type) or not hasattr(requests, "collator"):
        given = requests.__name__ if isinstance(requests, type) else repr(requests)
        raise TypeError(
            f"requests={given}: give onelane.Tensors(...), onelane.Items(...) or onelane.Each(...)"
        )
    kind: Requests = requests
    return kind


__all__ = ["Each", "Items", "Requests", "Tensors", "checked"]
