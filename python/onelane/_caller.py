"""Who calls: context variables and PyTorch's modes, read at the call.

A coroutine starts when it is first awaited, perhaps in another task and after the `with` block of
the call has ended. What belongs to the call is therefore read before the coroutine is made.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from onelane import _exclusive, _modes

P = ParamSpec("P")
T = TypeVar("T")


class Caller:
    """The context variables and the modes of a call.

    device_types: as `_modes.capture` takes them.
    """

    __slots__ = ("context", "modes")

    def __init__(self, device_types: Iterable[str]) -> None:
        self.context = contextvars.copy_context()
        self.modes = _modes.capture(device_types)

    def read(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something that reads the caller's state, as it was at the call.

        Whether the device is held is a matter of who awaits, not of who called.
        """
        asker = _exclusive.here()

        def run() -> T:
            _exclusive.adopt(asker)
            result: T = _modes.call(self.modes, function, args, kwargs)
            return result

        return self.context.run(run)


def read(caller: Caller | None, function: Callable[P, T], /, *args: P.args, **kw: P.kwargs) -> T:
    """Do what `Caller.read` does; for None the caller's state is that of now."""
    return function(*args, **kw) if caller is None else caller.read(function, *args, **kw)


__all__ = ["Caller", "read"]
