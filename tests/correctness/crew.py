"""Threads that run at once under watch: what they give arrives in one thread, a hang is noticed."""

from __future__ import annotations

import faulthandler
import queue
import threading
from collections.abc import Callable


class Hung(Exception):
    """Threads made no progress; they are left behind."""


def crew(
    threads: int,
    body: Callable[[int, Callable[[object], None]], None],
    take: Callable[[int, object], None],
    stall_after: float,
) -> None:
    """Run `body(thread, give)` in threads at once, handing to `take` whatever they give.

    `take` runs in the calling thread. Raises Hung if no thread gives anything or ends for
    `stall_after` seconds; an exception that leaves `body` is given in its place.
    """
    # Bounded: results can be large, and threads can be faster than who takes them.
    news: queue.Queue[tuple[int, object, bool]] = queue.Queue(maxsize=threads)

    def run(thread: int) -> None:
        try:
            body(thread, lambda x: news.put((thread, x, False)))
        except Exception as error:
            news.put((thread, error, False))
        finally:
            news.put((thread, None, True))

    # Daemons, so that one that hangs does not keep the process; all others are joined.
    members = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(threads)]
    for member in members:
        member.start()
    running = set(range(threads))
    while running:
        # A hang inside a call that holds the GIL stops Python itself: then this ends the process.
        faulthandler.dump_traceback_later(stall_after * 2 + 30, exit=True)
        try:
            thread, given, ended = news.get(timeout=stall_after)
        except queue.Empty:
            count = "1 thread" if len(running) == 1 else f"{len(running)} threads"
            raise Hung(f"hung: {count} made no progress for {stall_after:g} s") from None
        finally:
            faulthandler.cancel_dump_traceback_later()
        if ended:
            running.discard(thread)
        else:
            take(thread, given)
    # One that is still on its way out when the interpreter ends would bring the process down.
    for member in members:
        member.join(stall_after)
        if member.is_alive():
            raise Hung(f"hung: a thread did not end for {stall_after:g} s")
