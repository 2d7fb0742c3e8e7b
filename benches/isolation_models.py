"""The models of `isolation.py`; their workers load nothing more than NumPy."""

import time


def identity(x):
    """Takes no time."""
    return x


def waits(items):
    """Waits for a device for 1 ms a batch."""
    time.sleep(0.001)
    return items


def burns(items):
    """Computes for 5 ms on one thread, by the thread's own clock."""
    end = time.thread_time() + 0.005
    while time.thread_time() < end:
        pass
    return items


_kept = []


def grows(items):
    """Keeps 40 MiB more with each batch, and uses them."""
    _kept.append(bytearray(b"x") * (40 << 20))
    return items
