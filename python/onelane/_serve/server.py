"""A server beside the interpreter: started, waited for, ended."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from onelane import _devices, _isolation, _model, _names, _onelane
from onelane._batch_queue import BatchQueue
from onelane._executor import DeviceExecutor, executor
from onelane._isolated_guard import IsolatedObject
from onelane._item_collator import ItemCollator
from onelane._requests import Each, Items
from onelane._serve.bridge import Bridge
from onelane._serve.source import Describing, Source, source_of
from onelane._serve.tensors import TensorBridge

# What a model in a queue of its own would have; see `BatchQueue`.
_SETTINGS: dict[str, Any] = {
    "to_cpu": True,
    "copy_outputs": True,
    "cuda_graphs": False,
    "costed": False,
}


class Server:
    """A running server: what `serve(..., block=False)` returns.

    `with` ends it: what was accepted is answered first, for up to `drain_timeout`. At the end of
    the process one that still runs is cut off.
    """

    def __init__(self, core: _onelane.Server) -> None:
        self._core = core
        weakref.finalize(self, core.stop)
        _running.add(self)

    @property
    def address(self) -> str:
        """Where it listens: a URL, or the path of a Unix socket."""
        return self._core.address

    def ready(self) -> bool:
        """Whether its models are loaded and checked, and it has not ended."""
        return self._core.is_ready()

    def stop(self) -> None:
        """Have it drain, and return at once: `/ready` fails, and after `drain_delay` nothing more
        is accepted. Called again, it aborts.
        """
        self._core.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; False if the time, in seconds, was over first.

        Raises why it ended, if nobody has stopped it, and if not everything was answered.
        """
        return self._core.wait(timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Stop it and wait; False if the time was over first."""
        if not self._core.has_ended():
            self.stop()
        return self.wait(timeout)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<onelane.Server at {self.address}>"


_running: weakref.WeakSet[Server] = weakref.WeakSet()


def _at_exit() -> None:
    for server in list(_running):
        if not server._core.has_ended():
            server.stop()
            server.stop()


atexit.register(_at_exit)


@_names.settings
def serve(
    models: Mapping[str, Any] | Any,
    *,
    device: Any = None,
    isolation: _isolation.Setting = None,
    block: bool = True,
    hostname: str = "127.0.0.1",
    port: int = 3000,
    uds_path: str | os.PathLike[str] | None = None,
    max_concurrent_requests: int = 4096,
    max_queued_tokens: int | None = None,
    max_batch_tokens: int = 16384,
    max_batch_requests: int = 32,
    max_client_batch_size: int = 2048,
    ageing: float = 60.0,
    stall_after: float = 30.0,
    auto_truncate: bool = True,
    matryoshka: bool = False,
    token_ids: bool = False,
    payload_limit: int = 2_000_000,
    api_key: str | None = None,
    cors_allow_origin: Sequence[str] = (),
    request_timeout: float | None = None,
    drain_delay: float = 5.0,
    drain_timeout: float = 30.0,
    stall_exit: float | None = 300.0,
    self_check: bool = True,
) -> Server | None:
    """Serve models over HTTP and gRPC: the routes of OpenAI, TEI, Ollama, rerankers and the Open
    Inference Protocol, on one port.

    ::

        onelane.serve({"minilm": "models/all-MiniLM-L6-v2"}, device="mps")
        onelane.serve({"minilm": onelane.guard(load_minilm, "mps"), "rerank": load_reranker})
        onelane.serve({"double": onelane.Predictor(lambda x: 2 * x, {"x": ("FP32", [-1, 4])})})

    models: by name: a `SentenceTransformer`, a `CrossEncoder` or an `onelane.Encoder`, an
        `onelane.Predictor` or any other callable of arrays, what `guard` made of one, a function
        that makes one (on the worker), the import path of such a function, or a directory. One
        alone is called "model". The first of each kind answers calls that name none. A function
        that can be called without arguments makes the model; one that is the model all the same
        goes into a `Predictor`.
    device: of what is not guarded; default: `mps` where there is one, else `cuda`, else `cpu`.
    isolation: as for `BatchQueue`: each model in a child process, which may die and costs the text
        or row at fault only. It is loaded twice at the start, once to be described.
    block: serve until SIGTERM or Ctrl-C, drain, and return None; a second signal aborts. False:
        load, and return a `Server` when it is ready.

    The other settings are the flags of `onelane serve`, with their meanings, in docs/serve.md;
    times are in seconds. Every text, and every row of tensors, is a request of its own to the queue
    of its model, and the interpreter is entered once for a batch.

    Raises what loading a model raises, `RuntimeError` if a model has another answer in a batch than
    alone, `OSError` if it cannot listen, and `TimeoutError` if a batch hangs for `stall_exit`, or
    if not everything could be answered at the end.
    """
    given = models if isinstance(models, Mapping) else {"model": models}
    if not given:
        raise ValueError("serve() needs a model: {'name': model}")
    if device is None:
        isolated = _isolation.of(isolation)
        device = _devices.default() if isolated is None else _isolation.default_device()
    home = device if isinstance(device, DeviceExecutor) else executor(device)
    specs = [_spec(str(name), model, home, isolation) for name, model in given.items()]
    queues = {
        "max_batch_requests": max_batch_requests,
        "max_batch_tokens": max_batch_tokens,
        "max_concurrent_requests": max_concurrent_requests,
        "max_queued_tokens": max_queued_tokens,
        "ageing": ageing,
        "stall_after": stall_after,
    }
    settings = {
        "hostname": hostname,
        "port": port,
        "uds_path": None if uds_path is None else os.fspath(uds_path),
        "max_client_batch_size": max_client_batch_size,
        "payload_limit": payload_limit,
        "auto_truncate": auto_truncate,
        "matryoshka": matryoshka,
        "token_ids": token_ids,
        "request_timeout": request_timeout,
        "api_key": api_key,
        "cors_allow_origin": list(cors_allow_origin),
        "self_check": self_check,
        "drain_delay": drain_delay,
        "drain_timeout": drain_timeout,
        "stall_exit": stall_exit,
    }
    server = Server(_onelane.Server(specs, queues, settings))
    if not block:
        server._core.wait_ready()
        return server
    with _stopping(server):
        server.wait()
    return None


@contextmanager
def _stopping(server: Server) -> Iterator[None]:
    """Have SIGTERM and SIGINT stop a server, where handlers can be set, and say that it listens."""

    def say() -> None:
        print(f"listening on {server.address}", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        say()
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        server.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        say()
        yield
    finally:
        for number, handler in before.items():
            # One that was not set from Python cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _spec(name: str, given: Any, home: DeviceExecutor, setting: Any) -> dict[str, Any]:
    """Load a model far enough to say what it is, and return what the native server is given."""
    if isinstance(given, IsolatedObject):
        raise TypeError(
            f"{name!r} is guarded in a child of its own: give what makes it to serve(), with "
            f"isolation="
        )
    source, own = source_of(given, home.device)
    isolated = _isolation.of(setting, own or home)
    if isolated is not None and own is not None:
        raise TypeError(
            f"{name!r} is guarded in this process, so it cannot be isolated: give what makes it"
        )
    at = own or home
    collator = ItemCollator(None)
    build: Any
    if isolated is None:
        facts = at.call(source.describe)
        build = _model.Build(
            source,
            factory=True,
            device=at.device,
            collator=collator,
            note=at._note,
            **_SETTINGS,
        )
    else:
        facts = _described(source, at, isolated)
        spec = _isolation.Spec(source, True, at.device, Items(), _SETTINGS, True)
        build = _isolation.supervisor(isolated, spec)
    return {
        "name": name,
        "aliases": [],
        "executor": at._core,
        "build": build,
        "bridge": Bridge(collator) if "tokenizer" in facts else TensorBridge(collator),
        # Where each new shape costs memory, there are few.
        "pads": at.device.startswith("mps"),
        "facts": facts,
    }


def _described(source: Source, at: DeviceExecutor, isolated: _isolation.Isolation) -> Any:
    """Describe a model in a child, which ends again."""
    with BatchQueue(Describing(source), at, Each(), factory=True, isolation=isolated) as queue:
        return queue(None)


__all__ = ["Server", "serve"]
