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
    from onelane._mps_batch_queue import (
        MPSBatchQueue,
        configure_mps_batch_queue,
        get_mps_batch_queue,
    )
    from onelane._pad import Pad
    from onelane._proxy import aclose, aget, close, health, stats
    from onelane._requests import Each, Items, Tensors
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
    "Each": "_requests",
    "EngineLost": "errors",
    "ForkedProcess": "errors",
    "Health": "_stats",
    "Items": "_requests",
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
    "Tensors": "_requests",
    "WouldDeadlock": "errors",
    "aclose": "_proxy",
    "aget": "_proxy",
    "audit": "_audit",
    "close": "_proxy",
    "configure_mps_batch_queue": "_mps_batch_queue",
    "executor": "_executor",
    "get_mps_batch_queue": "_mps_batch_queue",
    "guard": "_guard",
    "health": "_proxy",
    "session": "_session",
    "stats": "_proxy",
}

__all__ = [
    "BatchQueue",
    "DeadlineExceeded",
    "DeviceExecutor",
    "Each",
    "EngineLost",
    "ForkedProcess",
    "Health",
    "Items",
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
    "Tensors",
    "WouldDeadlock",
    "aclose",
    "aget",
    "audit",
    "close",
    "configure_mps_batch_queue",
    "executor",
    "get_mps_batch_queue",
    "guard",
    "health",
    "session",
    "stats",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        said = ""
        if not name.startswith("_"):
            from onelane._names import nearest

            said = nearest(name, __all__)
        raise AttributeError(f"module 'onelane' has no attribute {name!r}{said}")
    value = getattr(_imported(f"onelane.{home}"), name)
    globals()[name] = value
    return value


def _imported(module: str) -> Any:
    """Import a module, so that a signal handler may do the same in the middle of it.

    A handler runs on the main thread, inside of whatever is there: an import of its own would find
    modules half made. So the main thread has another import, and both wait for that one.
    """
    import importlib
    import threading

    if threading.current_thread() is not threading.main_thread():
        return importlib.import_module(module)
    failed: list[BaseException] = []

    def load() -> None:
        try:
            importlib.import_module(module)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=load, name="onelane import", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # No thread can be had; the interpreter is ending, say.
        return importlib.import_module(module)
    thread.join()
    if failed:
        raise failed[0]
    return importlib.import_module(module)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
