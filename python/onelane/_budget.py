"""What a batch may cost beside its rows: a bound on padded tokens, pixels or bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onelane._collate import Input
    from onelane._requests import Requests


class Budget:
    """The most cost of a batch, and the cost of a request.

    INVARIANT: as many requests as fit into `most` have no more than `most_rows` rows, where a batch
    has no more requests than that: a row costs at least its share.
    """

    def __init__(self, most: int, cost: Callable[..., float] | None, most_rows: int) -> None:
        self.most, self._cost, self._most_rows = most, cost, most_rows

    @classmethod
    def of(cls, most: Any, requests: Requests, most_rows: int) -> Budget | None:
        """Read the settings of a queue; None if it has no budget."""
        cost = requests.cost
        if most is None:
            if cost is not None:
                raise ValueError("cost= is of use with max_batch_cost= alone: give it, too")
            return None
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"max_batch_cost={most!r}: use a whole number of at least 1")
        if not requests.shared:
            raise ValueError("max_batch_cost= is for batches, and these requests run each alone")
        if cost is None and requests.pad is None:
            raise ValueError(
                f"max_batch_cost={most}: say what a request costs: Tensors(cost=a function of its "
                f"inputs) (for tokens: cost=lambda ids: ids.numel()), or Tensors(pad=Pad(...)), "
                f"whose padded lengths are counted"
            )
        return cls(most, cost, most_rows)

    def of_request(self, request: Input, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return the cost of a request, no more than `most`."""
        if self._cost is None:
            cost: Any = request.rows * request.bucket
        else:
            cost = self._cost(*args, **kwargs)
            if hasattr(cost, "item"):
                cost = cost.item()
            if not isinstance(cost, (int, float)) or not 0 <= cost < math.inf:
                raise ValueError(f"cost= returned {cost!r} for a request: return a number >= 0")
        # One row's share is rounded down: the number of requests bounds these, too.
        share = request.rows * self.most + (request.rows > 1) * (self._most_rows - 1)
        share //= self._most_rows
        counted: int = min(max(math.ceil(cost), share, 1), self.most)
        return counted


__all__ = ["Budget"]
