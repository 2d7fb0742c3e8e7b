"""A session: several calls of one guarded object with no other between them."""

from __future__ import annotations

from typing import Any

from onelane._exclusive import Exclusive, Hold


class Session:
    """A context manager, also an asynchronous one: the thread or task has the object alone."""

    def __init__(self, guarded: Any, turns: Exclusive) -> None:
        self._guarded, self._turns = guarded, turns
        self._held: list[Hold | None] = []

    def __enter__(self) -> Any:
        self._held.append(self._turns.wait(self._turns.take(Hold("a session"))))
        return self._guarded

    def __exit__(self, *error: object) -> None:
        self._turns.leave(self._held.pop())

    async def __aenter__(self) -> Any:
        self._held.append(await self._turns.wait_async(self._turns.take(Hold("a session"))))
        return self._guarded

    async def __aexit__(self, *error: object) -> None:
        self._turns.leave(self._held.pop())


def session(guarded: Any) -> Session:
    """Return a `with` block's worth of calls of a guarded object that no other call comes between.

    ::

        with onelane.session(pipe):
            pipe.set_adapter("night")
            image = pipe(prompt)

    Calls of other threads and tasks, and their streams, wait until it ends; so does an open stream
    of another's before it begins. Also `async with`. `pipe.session()` is the same, unless the
    object has a `session` of its own.
    """
    if not hasattr(type(guarded), "_onelane_is_proxy"):
        raise TypeError(
            f"session() is for what guard() returns, and this is a {type(guarded).__name__}"
        )
    return Session(guarded, object.__getattribute__(guarded, "_onelane_lane").turns)


__all__ = ["Session", "session"]
