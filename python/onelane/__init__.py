"""Run inference on a device that is not thread-safe from any number of threads and tasks.

One worker thread owns the device, and requests that wait together run as one batch::

    device = onelane.executor("mps")            # a concurrent.futures.Executor
    queue = onelane.BatchQueue(model, "mps")    # queue(x), queue.submit(x), await queue.infer(x)
    st = onelane.guard(lambda: SentenceTransformer(path), "mps")

Nothing is loaded before it is used: `import onelane` imports neither PyTorch nor the native
module, so that `python -m onelane.patch035` works without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onelane._audit import OffWorker, audit
    from onelane._batch_queue import BatchQueue
    from onelane._executor import DeviceExecutor, executor
    from onelane._guard import guard
    from onelane._include import get_include
    from onelane._mps_batch_queue import (
        MPSBatchQueue,
        configure_mps_batch_queue,
        get_mps_batch_queue,
    )
    from onelane._pad import Pad
    from onelane._session import session
    from onelane._stats import Health, QueueStats, Summary
    from onelane.errors import (
        DeadlineExceeded,
        EngineLost,
        ForkedProcess,
        NotBatchable,
        OnelaneError,
        QueueClosed,
        QueueFull,
        RequestCancelled,
        RequestTooLarge,
        WouldDeadlock,
    )

__version__ = "0.1.0"

_HOME = {
    "BatchQueue": "_batch_queue",
    "DeadlineExceeded": "errors",
    "DeviceExecutor": "_executor",
    "EngineLost": "errors",
    "ForkedProcess": "errors",
    "Health": "_stats",
    "MPSBatchQueue": "_mps_batch_queue",
    "NotBatchable": "errors",
    "OffWorker": "_audit",
    "OnelaneError": "errors",
    "Pad": "_pad",
    "QueueClosed": "errors",
    "QueueFull": "errors",
    "QueueStats": "_stats",
    "RequestCancelled": "errors",
    "RequestTooLarge": "errors",
    "Summary": "_stats",
    "WouldDeadlock": "errors",
    "audit": "_audit",
    "configure_mps_batch_queue": "_mps_batch_queue",
    "executor": "_executor",
    "get_include": "_include",
    "get_mps_batch_queue": "_mps_batch_queue",
    "guard": "_guard",
    "session": "_session",
}

__all__ = [
    "BatchQueue",
    "DeadlineExceeded",
    "DeviceExecutor",
    "EngineLost",
    "ForkedProcess",
    "Health",
    "MPSBatchQueue",
    "NotBatchable",
    "OffWorker",
    "OnelaneError",
    "Pad",
    "QueueClosed",
    "QueueFull",
    "QueueStats",
    "RequestCancelled",
    "RequestTooLarge",
    "Summary",
    "WouldDeadlock",
    "audit",
    "configure_mps_batch_queue",
    "executor",
    "get_include",
    "get_mps_batch_queue",
    "guard",
    "session",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        said = ""
        if not name.startswith("_"):
            from onelane._names import nearest

            said = nearest(name, __all__)
        raise AttributeError(f"module 'onelane' has no attribute {name!r}{said}")
    import importlib

    value = getattr(importlib.import_module(f"onelane.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
