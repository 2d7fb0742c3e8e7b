"""Memory of a server: its process and all that it started, what they share counted once."""

from __future__ import annotations

import psutil


def resident_mb(pid: int) -> float:
    """Proportional set size in MB, summed over the process and its children."""
    try:
        first = psutil.Process(pid)
        family = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        raise ProcessLookupError(f"the server's process {pid} is gone") from None
    total = 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue  # a child that has just ended
    return total / 1e6
