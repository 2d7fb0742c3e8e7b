"""Models of the tests of Ray and KServe."""

import os
import time


def worker(items):
    """Answer with twice the number; "pids": of this process and its parent; "poison": abort."""
    time.sleep(0.005)
    if "poison" in items:
        os.abort()
    return [[os.getpid(), os.getppid()] if item == "pids" else 2 * item for item in items]


def sleeps(items):
    """Wait for a device for 5 ms a batch."""
    time.sleep(0.005)
    return items
