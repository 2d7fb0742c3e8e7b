"""What several files of tests share."""

from __future__ import annotations

import threading
from concurrent.futures import wait


class Hold:
    """Occupies the worker, so that what is submitted meanwhile waits together."""

    def __init__(self, device):
        self.started, self.release = threading.Event(), threading.Event()
        self.future = device.submit(self._hold)
        assert self.started.wait(30)

    def _hold(self):
        self.started.set()
        assert self.release.wait(30)
        return "held"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release.set()


def cancel_storm(submit):
    """Submits numbers while three threads cancel; each future is cancelled or right."""
    futures, stop = [], threading.Event()

    def cancel():
        while not stop.is_set():
            for future in futures[-20:]:
                future.cancel()

    threads = [threading.Thread(target=cancel) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(2000):
        futures.append(submit(i))
    done = wait(futures, timeout=60)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not done.not_done
    for i, future in enumerate(futures):
        assert future.cancelled() or future.result() == i


def close(a, b):
    # Not above: where there is no torch, this file is imported all the same.
    import torch

    torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-5)
