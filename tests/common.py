"""What several files of tests share."""

from __future__ import annotations

import threading


class Hold:
    """Occupies the worker, so that what is submitted meanwhile waits together."""

    def __init__(self, device):
        self.started, self.release = threading.Event(), threading.Event()
        self.future = device.submit(self._hold)
        assert self.started.wait(30)

    def _hold(self):
        self.started.set()
        assert self.release.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release.set()


def close(a, b):
    # Not above: where there is no torch, this file is imported all the same.
    import torch

    torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-5)
