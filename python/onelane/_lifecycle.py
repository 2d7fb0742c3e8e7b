"""What has to happen at a fork and at the end of the interpreter.

At the end everything that was accepted is run, for at most `ONELANE_DRAIN_S` seconds. When they are
over, or at Ctrl-C, what waits is given up, and what runs is asked to end. A worker that does not is
left behind: the process ends without it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

from onelane import _onelane

_in_child: list[Callable[[], None]] = []

_DRAIN_S = 30.0
# For what was asked to end.
_GRACE_S = 1.0


class _Core(Protocol):
    """An executor or a queue of the native module."""

    def shutdown(self, abort: bool, timeout: float | None) -> bool:
        """Refuse new work; says whether it has ended."""


_given_up: list[_Core] = []


def after_fork_in_child(hook: Callable[[], None]) -> None:
    """Have `hook` called in the child of each fork, after the native module has been told."""
    _in_child.append(hook)


def _after_fork_in_child() -> None:
    _given_up.clear()
    _onelane.after_fork_in_child()
    for hook in _in_child:
        hook()


def ending() -> bool:
    """Whether the interpreter has begun to end."""
    return _ending


_ending = False


def give_up(core: _Core) -> None:
    """Wait no longer for the end of an executor or a queue: what has not started is given up.

    Called when a wait was interrupted. If that one has not ended by then, nothing is waited for at
    the end of the process.
    """
    _given_up.append(core)
    core.shutdown(True, 0.0)


def drain_s() -> float:
    """Return how long the end of the process may wait for what was accepted."""
    said = os.environ.get("ONELANE_DRAIN_S")
    if said is None:
        return _DRAIN_S
    try:
        return max(0.0, float(said))
    except ValueError:
        print(f"onelane: ONELANE_DRAIN_S={said!r} is no number of seconds", file=sys.stderr)
        return _DRAIN_S


def _at_exit() -> None:
    global _ending
    _ending = True
    if sys.is_finalizing():
        # A sub-interpreter that nobody has ended goes with the main one, whose threads cannot let
        # go of the interpreter any more: to wait for a worker would be to wait for ever.
        return
    # Handlers of atexit run when all threads that are not daemons have ended, so thread pools
    # that use an executor have finished with it, and the interpreter still works.
    try:
        hurried = not all(core.shutdown(True, 0.0) for core in _given_up)
        ended = not hurried and _onelane.shutdown_all(False, drain_s())
        if ended:
            # Daemon threads that were waiting have their answers: let them take these before the
            # interpreter goes.
            _onelane.wait_for_waiters(2.0)
    except BaseException:
        # Ctrl-C: it is not the first, or there was nothing else to end.
        ended = False
    try:
        if not ended:
            _give_up_all()
    except BaseException:
        # Once more: nothing is waited for.
        pass
    finally:
        _onelane.end()


def _give_up_all() -> None:
    until = time.monotonic() + _GRACE_S
    _onelane.shutdown_all(True, 0.0)
    # Code in Python ends at its next step; a call into a driver, when it returns.
    _onelane.interrupt_workers()
    if not _onelane.shutdown_all(True, max(0.0, until - time.monotonic())):
        with contextlib.suppress(Exception):
            print(
                "onelane: a worker has not ended in time; the process ends without it",
                file=sys.stderr,
                flush=True,
            )
    _onelane.wait_for_waiters(max(0.0, until - time.monotonic()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
