"""Checks of isolated workers: what aborts and hangs in a child, and a child that is replaced.

On the simulated device a child has one of its own, with faults that are real.
"""

from __future__ import annotations

import functools
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import onelane
from onelane._mac_check.device import Device

_ABORTS, _HANGS, _REQUESTS = 3, 5, 8


def isolation(device: Device) -> dict[str, Any]:
    """One request of eight aborts the child, and one hangs it."""
    queue = onelane.BatchQueue(
        functools.partial(_faulty, _profile(device)), "mps", onelane.Items(), factory=True,
        isolation=onelane.Isolation(hang_s=float(device.size(5, 40)), retries=0),
        max_batch_size=_REQUESTS,
    )  # fmt: skip
    return answers(queue, device.size(100, 400))


def answers(queue: Any, within_s: float) -> dict[str, Any]:
    """Ask a queue whose model is `_faulty`, and return what became of each kind of request."""
    futures = queue.submit_many(list(range(_REQUESTS)))
    right, found = 0, {_ABORTS: "an answer", _HANGS: "an answer"}
    for at, future in enumerate(futures):
        try:
            right += future.result(within_s) == at * 2 and at not in found
        except Exception as error:
            found[at] = type(error).__name__
    others = _REQUESTS - 2
    wrong = {at: name for at, name in found.items() if at not in (_ABORTS, _HANGS)}
    return {
        "abort": found[_ABORTS], "hang": found[_HANGS], "others right": right, "others": others,
        "wrong": wrong,
    }  # fmt: skip


def _profile(device: Device) -> str | None:
    return None if device.sim is None else "upstream-2.15"


def _own_device(profile: str | None) -> None:
    if profile is not None:
        import onelane.sim

        onelane.sim.install(profile, 0, real_faults=True)


def _faulty(profile: str | None) -> Callable[[list[int]], list[int]]:
    _own_device(profile)
    import torch

    def model(items: list[int]) -> list[int]:
        if _ABORTS in items:
            os.abort()
        if _HANGS in items:
            threading.Event().wait()
        return [int(x) for x in (torch.tensor(items, dtype=torch.float32).to("mps") * 2).cpu()]

    # What PyTorch loads when it first computes is loaded now: a start may take longer than a batch.
    model([0])
    return model


def shapes_recycled(device: Device) -> dict[str, Any]:
    """Run random lengths in a child that is replaced every so many batches."""
    count = device.size(300, 60)
    queue = onelane.BatchQueue(
        functools.partial(_encoder, _profile(device)), "mps", onelane.Each(), factory=True,
        isolation=onelane.Isolation(recycle_batches=count // 3, max_memory="64GiB"),
    )  # fmt: skip
    draw, most = random.Random(1), []
    for third in range(3):
        for _ in range(count // 3):
            queue(draw.randint(1, 500), timeout=device.size(100, 400))
        stats = _isolation(queue)
        most.append(stats.max_footprint)
        if not third and stats.max_footprint <= 0:
            raise RuntimeError("the footprint of a child cannot be read here")
    stats = _isolation(queue)
    queue.close()
    return {
        "most in the first third": most[0], "most at the end": most[-1],
        "replaced": stats.recycled_for_batches, "lost": stats.losses, "batches": count,
    }  # fmt: skip


def _isolation(queue: onelane.BatchQueue) -> onelane.IsolationStats:
    stats = queue.stats().isolation
    if stats is None:
        raise RuntimeError("the queue has no isolated workers")
    return stats


def _encoder(profile: str | None) -> Callable[[int], int]:
    _own_device(profile)
    import torch

    from onelane._mac_check.upkeep import encoder

    made = encoder()

    def model(length: int) -> int:
        with torch.no_grad():
            return int(made(torch.zeros(1, length, 64, device="mps")).cpu().shape[1])

    return model


__all__ = ["answers", "isolation", "shapes_recycled"]
