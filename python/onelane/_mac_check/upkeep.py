"""Checks of memory: shapes, compiled graphs, autorelease pools."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import onelane
from onelane import _memory
from onelane._mac_check.device import Device, NotRun


def encoder() -> Any:
    """Make a small encoder on the device."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval().to("mps")


def _lengths(count: int) -> list[int]:
    draw = random.Random(1)
    return [draw.randint(1, 500) for _ in range(count)]


def _run_lengths(device: Device, bucketed: bool, count: int) -> list[int]:
    import torch

    from onelane._lengths import length_bucket

    worker = onelane.executor("mps")
    model = worker.call(encoder)

    def run(length: int) -> int:
        with torch.no_grad():
            model(torch.zeros(1, length, 64, device="mps")).cpu()
        return device.memory()

    taken = [
        worker.call(run, length_bucket(length) if bucketed else length)
        for length in _lengths(count)
    ]
    worker.call(_empty)
    return taken


def _empty() -> None:
    import torch

    torch.mps.empty_cache()


def shapes(device: Device) -> dict[str, Any]:
    count = device.size(300, 90)
    bucketed = _run_lengths(device, True, count)
    plain = _run_lengths(device, False, count)
    return {
        "plain after 100": plain[count // 3],
        "plain at the end": plain[-1],
        "bucketed after 100": bucketed[count // 3],
        "bucketed at the end": bucketed[-1],
        "batches": count,
    }


def graphs_vs_pool(device: Device) -> dict[str, Any]:
    import torch

    worker = onelane.executor("mps")
    model = worker.call(encoder)
    start = worker.call(device.memory)

    def run(length: int) -> None:
        with torch.no_grad():
            model(torch.zeros(1, length, 64, device="mps")).cpu()

    for length in _lengths(device.size(300, 60)):
        worker.call(run, length)
    full = worker.call(device.memory)
    worker.call(_empty)
    return {"start": start, "full": full, "emptied": worker.call(device.memory)}


def missing_pools(device: Device) -> dict[str, Any]:
    if sys.platform != "darwin":
        raise NotRun("there is no Objective-C here")
    import torch

    worker = onelane.executor("mps")

    def run() -> None:
        x = torch.ones(64, 64, device="mps")
        for _ in range(20):
            (x @ x).cpu()

    for _ in range(100):
        worker.call(run)
    # Objective-C writes to stderr, which the parent counts.
    return {"products": 2000}


# What a matmul of candle leaves to the pool, and how often.
_OBJECT_BYTES, _OBJECTS, _OBJECTS_A_CALL = 480, 50_000, 100


def candle_pool(device: Device) -> dict[str, Any]:
    """Leave objects to the autorelease pool, as candle's products do, with ours and without."""
    if sys.platform != "darwin":
        raise NotRun("there is no Objective-C here")
    leave = _autoreleased()
    calls = range(_OBJECTS // _OBJECTS_A_CALL)

    def some() -> None:
        for _ in range(_OBJECTS_A_CALL):
            leave(_OBJECT_BYTES)

    def on_worker() -> None:
        worker = onelane.executor("mps")
        for _ in calls:
            worker.call(some)

    grown = {"with our pool": _grown(on_worker)}

    def without() -> None:
        # A thread whose pool nobody drains before it ends.
        grown["without"] = _grown(lambda: [some() for _ in calls])

    thread = threading.Thread(target=without)
    thread.start()
    thread.join()
    return grown


def _grown(run: Callable[[], object]) -> int:
    before = _memory.footprint() or 0
    run()
    return (_memory.footprint() or 0) - before


def _autoreleased() -> Callable[[int], object]:
    """Return what makes an object that the pool of the calling thread releases."""
    import ctypes

    objc = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
    ctypes.CDLL("/System/Library/Frameworks/Foundation.framework/Foundation")
    objc.objc_getClass.restype = objc.sel_registerName.restype = ctypes.c_void_p
    kind = objc.objc_getClass(b"NSMutableData")
    selector = objc.sel_registerName(b"dataWithLength:")
    signature = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong)
    send = signature(("objc_msgSend", objc))
    return lambda length: send(kind, selector, length)
