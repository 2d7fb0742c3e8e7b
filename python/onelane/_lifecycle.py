"""What has to happen at a fork and at the end of the interpreter."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable

from onelane import _onelane

_in_child: list[Callable[[], None]] = []


def after_fork_in_child(hook: Callable[[], None]) -> None:
    """Have `hook` called in the child of each fork, after the native module has been told."""
    _in_child.append(hook)


def _after_fork_in_child() -> None:
    _onelane.after_fork_in_child()
    for hook in _in_child:
        hook()


def ending() -> bool:
    """Whether the interpreter has begun to end."""
    return _ending


_ending = False


def _at_exit() -> None:
    global _ending
    _ending = True
    # Handlers of atexit run when all threads that are not daemons have ended, so thread pools
    # that use an executor have finished with it, and the interpreter still works. Everything that
    # was accepted is run.
    _onelane.shutdown_all()
    # Daemon threads that were waiting have their answers: let them take these before the
    # interpreter goes.
    _onelane.wait_for_waiters(2.0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
