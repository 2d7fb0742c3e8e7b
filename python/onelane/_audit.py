"""Finds what goes around the worker: uses of a device from threads that do not own it.

Three things watch while an audit is on: a global forward pre-hook, which sees every thread; a
dispatch mode in the thread that started the audit and in each that is started later, which sees
operators; and stand-ins for functions such as `torch.mps.synchronize`. The simulated device tells
of every action itself, frees included. While no audit is on, nothing of this is there.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onelane import _devices, _onelane
from onelane._modules import imported
from onelane.errors import OnelaneError

_LOG = logging.getLogger("onelane.audit")
# Functions of `torch.mps`, `torch.cuda` and the like that act on the device.
_FUNCTIONS = (
    "synchronize", "empty_cache", "current_allocated_memory", "driver_allocated_memory",
    "set_per_process_memory_fraction",
)  # fmt: skip


class OffWorker(OnelaneError, RuntimeError):
    """A device was used by a thread that is not its worker, under `audit(strict=True)`."""


@dataclass(frozen=True)
class Finding:
    """A call site that used the device from a thread that is not its worker."""

    device: str
    # What was done first there: "forward of Linear", "aten.add.Tensor", "torch.mps.synchronize".
    action: str
    thread: str
    file: str
    line: int
    stack: str
    # The worker's name and stack; None if no worker has used the device up to then.
    worker: str | None
    worker_stack: str | None

    def __str__(self) -> str:
        owner = self.worker_stack or "no worker has used the device since the audit began\n"
        belongs = f", which belongs to {self.worker!r}" if self.worker else ""
        return (
            f"{self.action} on {self.device} from thread {self.thread!r}{belongs}\n"
            f"  at {self.file}:{self.line}\n"
            f"This thread:\n{self.stack}The worker:\n{owner}"
        )


@dataclass
class _Owner:
    """A worker thread, and where it used the device first."""

    name: str
    stack: str


class Audit:
    """Watches a device. Made by `audit`; a context manager, or `start()` and `stop()`."""

    def __init__(
        self, device: Any, strict: bool, report: Callable[[Finding], object] | None
    ) -> None:
        self.device = _devices.canonical(device)
        self.strict = strict
        self._report = report or (lambda finding: _LOG.warning("%s", finding))
        self._findings: dict[tuple[str, int], Finding] = {}
        self._owners: dict[int, _Owner] = {}
        self._lock = threading.Lock()
        self._undo: list[Callable[[], object]] = []
        self._busy = threading.local()
        self._on = False

    @property
    def findings(self) -> list[Finding]:
        """What was found, one for each call site, in order."""
        with self._lock:
            return list(self._findings.values())

    def __enter__(self) -> Audit:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to watch."""
        if self._on:
            raise RuntimeError("the audit is on already")
        import torch
        from torch.nn.modules.module import register_module_forward_pre_hook

        self._torch_device = torch.device(self.device)
        self._on = True
        self._undo.append(register_module_forward_pre_hook(self._before_forward).remove)
        self._replace_functions(getattr(torch, self._torch_device.type, None))
        if not self._watch_simulated():
            self._enter_modes()

    def stop(self) -> None:
        """Stop watching: on the thread that called `start`, whose dispatch mode it takes away.

        Threads that were started while the audit was on keep a mode that does nothing until they
        end.
        """
        self._on = False
        while self._undo:
            self._undo.pop()()

    # --- What watches -------------------------------------------------------------------------

    def _before_forward(self, module: Any, inputs: Any) -> None:
        parameter = next(module.parameters(), None)
        if parameter is None:
            parameter = next(module.buffers(), None)
        if self._is_guarded(parameter) or any(self._is_guarded(x) for x in inputs):
            self._used(f"forward of {type(module).__name__}")

    def _replace_functions(self, where: Any) -> None:
        for name in _FUNCTIONS:
            original = getattr(where, name, None)
            if original is not None:
                kind = self._torch_device.type
                setattr(where, name, self._watched(original, f"torch.{kind}.{name}"))
                self._undo.append(functools.partial(setattr, where, name, original))

    def _watched(self, function: Callable[..., Any], action: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._used(action)
            return function(*args, **kwargs)

        return watched

    def _watch_simulated(self) -> bool:
        """Have the simulated device that stands in for mps tell of every action."""
        sim = imported("onelane.sim")
        device = None if sim is None else sim.active()
        if device is None or self._torch_device.type != "mps":
            return False
        owners: set[int] = set()

        def watch(kind: str, operation: str) -> None:
            ident = threading.get_ident()
            if ident not in owners and self._is_worker():
                owners.add(ident)
                # From now on the device's own check (rule R10) has the violations, too.
                device.own("record")
            self._used(
                f"{kind} of {operation} (simulated)" if kind == "encode" else f"{kind} (simulated)"
            )

        device.native.watch(watch)
        self._undo.append(functools.partial(device.native.watch, None))
        return True

    def _enter_modes(self) -> None:
        mode = _mode(self)
        mode.__enter__()
        self._undo.append(functools.partial(self._leave, mode, threading.get_ident()))
        original = threading.Thread.start
        audit = self

        @functools.wraps(original)
        def start(thread: threading.Thread) -> None:
            run = thread.run

            def with_mode() -> None:
                del thread.run
                with _mode(audit):
                    run()

            if audit._on:
                thread.run = with_mode  # type: ignore[method-assign]
            original(thread)

        threading.Thread.start = start  # type: ignore[method-assign, assignment]
        self._undo.append(functools.partial(setattr, threading.Thread, "start", original))

    @staticmethod
    def _leave(mode: Any, ident: int) -> None:
        if threading.get_ident() == ident:
            mode.__exit__(None, None, None)

    # --- What is found ------------------------------------------------------------------------

    def _is_guarded(self, value: Any) -> bool:
        """Whether a tensor, device or name of a device means the guarded device."""
        import torch

        if isinstance(value, torch.Tensor):
            value = value.device
        elif isinstance(value, str):
            value = torch.device(value)
        if not isinstance(value, torch.device) or value.type != self._torch_device.type:
            return False
        return value.index is None or (value.index or 0) == (self._torch_device.index or 0)

    def _is_worker(self) -> bool:
        return _onelane.worker_device() == self.device

    def _used(self, action: str) -> None:
        """The calling thread uses the device."""
        if not self._on or getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            if self._is_worker():
                ident = threading.get_ident()
                if ident not in self._owners:
                    name = threading.current_thread().name
                    stack = f"(when it first used the device)\n{_stack(sys._getframe(1))}"
                    self._owners[ident] = _Owner(name, stack)
                return
            finding = self._found(action)
        finally:
            self._busy.now = False
        if finding is not None and self.strict:
            raise OffWorker(str(finding))

    def _found(self, action: str) -> Finding | None:
        frame = sys._getframe(2)
        file, line = _site(frame)
        with self._lock:
            known = self._findings.get((file, line))
        if known is not None:
            return known
        owner = next(iter(self._owners.items()), None)
        worker_stack = None
        if owner is not None:
            running = sys._current_frames().get(owner[0])
            worker_stack = f"(now)\n{_stack(running)}" if running else owner[1].stack
        finding = Finding(
            device=self.device,
            action=action,
            thread=threading.current_thread().name,
            file=file,
            line=line,
            stack=_stack(frame),
            worker=owner[1].name if owner else None,
            worker_stack=worker_stack,
        )
        with self._lock:
            first = self._findings.setdefault((file, line), finding) is finding
        if first and not self.strict:
            self._report(finding)
        return finding


def _site(frame: Any) -> tuple[str, int]:
    """The innermost line that is neither PyTorch's nor ours."""
    outer = frame
    while outer is not None:
        module = outer.f_globals.get("__name__", "")
        if module.partition(".")[0] not in ("torch", "onelane"):
            break
        outer = outer.f_back
    place = outer or frame
    return place.f_code.co_filename, place.f_lineno


def _stack(frame: Any) -> str:
    return "".join(traceback.format_stack(frame))


def _mode(audit: Audit) -> Any:
    """A dispatch mode for one thread; modes are per thread, and so are their objects."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if audit._on and not func.is_view:
                named = kwargs.get("device")
                # Without a name it is the default device's, which an operand has or a result tells.
                operands = [*tree_leaves(args), *tree_leaves(kwargs)]
                if (named is not None and audit._is_guarded(named)) or any(
                    audit._is_guarded(x) for x in operands if not isinstance(x, str)
                ):
                    audit._used(str(func))
            return func(*args, **kwargs)

    return Watch()  # type: ignore[no-untyped-call]


def audit(
    device: Any = "mps",
    *,
    strict: bool = False,
    report: Callable[[Finding], object] | None = None,
) -> Audit:
    """Report what uses a device from a thread that is not a worker of its executors.

    ::

        with onelane.audit("mps"):
            serve()

    A context manager; or `start()` and `stop()`. Each call site is reported once, with its stack
    and the worker's, to `report` (default: a warning of the logger `onelane.audit`); `findings`
    keeps them. With `strict` the use raises `OffWorker` instead, every time.

    Forward calls of modules are seen in all threads; operators in the thread that starts the audit
    and in threads started later; `torch.mps.synchronize()` and its like everywhere. Not seen:
    operators outside of modules in threads that ran before, tensors that are freed, and threads of
    PyTorch's own. On the simulated device, start the audit inside of its `with` block: then every
    action of every thread is seen, frees too.
    """
    return Audit(device, strict, report)


__all__ = ["Audit", "Finding", "OffWorker", "audit"]
