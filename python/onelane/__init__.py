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
    from onelane._hygiene import hygiene
    from onelane._include import get_include
    from onelane._install import Installed, UnknownVersion, install, installed, uninstall
    from onelane._isolation import Isolation
    from onelane._memory import Memory
    from onelane._pad import Pad
    from onelane._proxy import aclose, aget, close, health, stats
    from onelane._replicas import Replicas
    from onelane._requests import Each, Items, Tensors
    from onelane._serve import Encoder, Predictor, Server, serve
    from onelane._session import session
    from onelane._stats import (
        ClassStats,
        GuardStats,
        Health,
        Histogram,
        IsolationStats,
        QueueHistograms,
        QueueStats,
        Summary,
    )
    from onelane.errors import (
        DeadlineExceeded,
        EngineCrashed,
        EngineHung,
        EngineLost,
        ForkedProcess,
        ModelError,
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
    "ClassStats": "_stats",
    "DeadlineExceeded": "errors",
    "DeviceExecutor": "_executor",
    "Each": "_requests",
    "Encoder": "_serve",
    "EngineCrashed": "errors",
    "EngineHung": "errors",
    "EngineLost": "errors",
    "ForkedProcess": "errors",
    "GuardStats": "_stats",
    "Health": "_stats",
    "Histogram": "_stats",
    "Installed": "_install",
    "Isolation": "_isolation",
    "IsolationStats": "_stats",
    "Items": "_requests",
    "Memory": "_memory",
    "ModelError": "errors",
    "NotBatchable": "errors",
    "OffWorker": "_audit",
    "OnelaneError": "errors",
    "Pad": "_pad",
    "Predictor": "_serve",
    "QueueClosed": "errors",
    "QueueFull": "errors",
    "QueueHistograms": "_stats",
    "QueueStats": "_stats",
    "Replicas": "_replicas",
    "RequestCancelled": "errors",
    "RequestTooLarge": "errors",
    "Server": "_serve",
    "Summary": "_stats",
    "Tensors": "_requests",
    "UnknownVersion": "_install",
    "WouldDeadlock": "errors",
    "aclose": "_proxy",
    "aget": "_proxy",
    "audit": "_audit",
    "close": "_proxy",
    "executor": "_executor",
    "get_include": "_include",
    "guard": "_guard",
    "health": "_proxy",
    "hygiene": "_hygiene",
    "install": "_install",
    "installed": "_install",
    "serve": "_serve",
    "session": "_session",
    "stats": "_proxy",
    "uninstall": "_install",
}

# What has moved to `onelane.compat`.
_MOVED = ("MPSBatchQueue", "configure_mps_batch_queue", "get_mps_batch_queue")

__all__ = [
    "BatchQueue",
    "ClassStats",
    "DeadlineExceeded",
    "DeviceExecutor",
    "Each",
    "Encoder",
    "EngineCrashed",
    "EngineHung",
    "EngineLost",
    "ForkedProcess",
    "GuardStats",
    "Health",
    "Histogram",
    "Installed",
    "Isolation",
    "IsolationStats",
    "Items",
    "Memory",
    "ModelError",
    "NotBatchable",
    "OffWorker",
    "OnelaneError",
    "Pad",
    "Predictor",
    "QueueClosed",
    "QueueFull",
    "QueueHistograms",
    "QueueStats",
    "Replicas",
    "RequestCancelled",
    "RequestTooLarge",
    "Server",
    "Summary",
    "Tensors",
    "UnknownVersion",
    "WouldDeadlock",
    "aclose",
    "aget",
    "audit",
    "close",
    "executor",
    "get_include",
    "guard",
    "health",
    "hygiene",
    "install",
    "installed",
    "serve",
    "session",
    "stats",
    "uninstall",
]


def __getattr__(name: str) -> Any:
    if name == "compat":
        return _imported("onelane.compat")
    if name in _MOVED:
        import warnings

        warnings.warn(
            f"onelane.{name} is the old spelling. Write: from onelane.compat import {name}",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(_imported("onelane.compat"), name)
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
