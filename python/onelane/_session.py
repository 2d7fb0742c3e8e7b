"""A session: several calls of one guarded object with no other between them."""

from __future__ import annotations

from typing import Any

from onelane._exclusive import Hold
from onelane._isolated_guard import IsolatedObject
from onelane._proxy import Guarded, lane_of


class Session:
    """A context manager, also an asynchronous one: the thread or task has the object alone."""

    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded
        self._held: list[Hold | None] = []

    def __enter__(self) -> Any:
        turns = lane_of(self._guarded).turns
        self._held.append(turns.wait(turns.take(Hold("a session"))))
        return self._guarded

    def __exit__(self, *error: object) -> None:
        lane_of(self._guarded).turns.leave(self._held.pop())

    async def __aenter__(self) -> Any:
        turns = lane_of(self._guarded).turns
        self._held.append(await turns.wait_async(turns.take(Hold("a session"))))
        return self._guarded

    async def __aexit__(self, *error: object) -> None:
        lane_of(self._guarded).turns.leave(self._held.pop())


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
    if not issubclass(type(guarded), (Guarded, IsolatedObject)):
        raise TypeError(
            f"session() is for what guard() returns, and this is a {type(guarded).__name__}"
        )
    return Session(guarded)


__all__ = ["Session", "session"]
