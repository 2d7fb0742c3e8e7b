"""Isolation: how a queue's model comes to run in a child process.

INVARIANT: the parent never touches the device, and loads PyTorch only for tensors that it is given.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from onelane import _devices, _log, _names, _onelane, _training
from onelane._collate import Collator
from onelane._modules import imported
from onelane._parent_collate import ParentTensorCollator
from onelane._remote import Codec
from onelane._requests import Requests, Tensors
from onelane._stats import IsolationStats, QueueStats

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40
}  # fmt: skip
# A worker that hangs has so long to write its stacks before it is killed.
_ABORT_GRACE_S = 1.0
_FOREVER_S = 1e9

_in_child = False


@dataclasses.dataclass(frozen=True)
class Isolation:
    """How an isolated worker is treated: a model in a child process, which may die.

    ::

        queue = onelane.BatchQueue("app.models:load", "mps", isolation="process")
        queue = onelane.BatchQueue(load, "cuda", isolation=onelane.Isolation(max_memory="8GiB"))

    hang_s: seconds after which a batch hangs and its worker is killed; None: never.
    start_s: seconds that a worker may take to start, load its model and warm up.
    max_memory: bytes, or a text like "4GiB": a worker of more is replaced between two batches. It
        is what the process alone has resident (macOS: its physical footprint).
    recycle_batches: after so many batches a worker is replaced; recycle_s: after so many seconds.
    spare: whether a second worker is kept, loaded and warm, for when the first is lost or
        replaced. It takes the memory of a second model.
    retries: how often a request that was alone when its worker was lost is run again, in another
        one, if the queue is idempotent.
    env: environment variables of the workers, beside this process's.
    executable: their Python; default: this process's. It needs the same version of onelane.
    """

    hang_s: float | None = 30.0
    start_s: float = 120.0
    max_memory: int | str | None = None
    recycle_batches: int | None = None
    recycle_s: float | None = None
    spare: bool = False
    retries: int = 1
    env: Mapping[str, str] | None = None
    executable: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("hang_s", "start_s", "recycle_s"):
            value = getattr(self, name)
            if value is None and name != "start_s":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"Isolation({name}={value!r}): give seconds, more than 0")
        for name, least in (("recycle_batches", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is None and name != "retries":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Isolation({name}={value!r}): give a number of at least {least}")
        if not isinstance(self.spare, bool):
            raise TypeError(f"Isolation(spare={self.spare!r}): use True or False")
        if self.max_memory is not None:
            _bytes(self.max_memory)
        for name, text in (self.env or {}).items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError(f"Isolation(env=...): {name!r}: {text!r}: give texts")

    def _settings(self) -> dict[str, Any]:
        """Return the settings by the names of `_onelane.Supervisor`."""
        return {
            "hang_s": _FOREVER_S if self.hang_s is None else float(self.hang_s),
            "start_s": float(self.start_s),
            "abort_grace_s": _ABORT_GRACE_S,
            "max_memory": None if self.max_memory is None else _bytes(self.max_memory),
            "recycle_batches": self.recycle_batches,
            "recycle_s": self.recycle_s,
            "spare": self.spare,
            "retries": self.retries,
        }


def _bytes(given: int | str) -> int:
    if isinstance(given, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|)\s*", given)
        if found:
            given = int(float(found[1]) * _UNITS[found[2]])
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ValueError(f"Isolation(max_memory={given!r}): give bytes, or a text like '4GiB'")
    return given


Setting = Isolation | Literal["process"] | None


def of(setting: Any, device: Any = None) -> Isolation | None:
    """Return what `isolation=` means; by default what the given executor has."""
    if setting is None:
        return getattr(device, "_isolation", None)
    if setting == "process":
        setting = Isolation()
    if not isinstance(setting, Isolation):
        said = _names.nearest(str(setting), ("process",))
        raise ValueError(f"isolation={setting!r}: use 'process' or an onelane.Isolation(...){said}")
    if _in_child:
        raise RuntimeError(
            "this is an isolated worker, which has none of its own: a module that it loads makes a "
            "queue with isolation= when it is imported. Guard that with `if __name__ == "
            "'__main__':`, or move what makes the model to a module of its own"
        )
    return setting


def default_device() -> str:
    """Return the device of a queue that names none, without loading PyTorch for it."""
    if "torch" in sys.modules:
        return _devices.default()
    if sys.platform == "darwin":
        return "mps" if os.uname().machine == "arm64" else "cpu"
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


class ByName:
    """A model, or what makes it, by its import path: nothing of it is loaded here."""

    def __init__(self, path: str) -> None:
        module, colon, name = path.partition(":")
        parts = (*module.split("."), *name.split("."))
        if not colon or not all(part.isidentifier() for part in parts):
            raise ValueError(
                f"{path!r} is no import path: write 'package.module:name', as in 'app.models:load'"
            )
        self.path, self.__name__ = path, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.find()(*args, **kwargs)

    def find(self) -> Any:
        """Return what the path names."""
        module, _, name = self.path.partition(":")
        __import__(module)
        return functools.reduce(getattr, name.split("."), sys.modules[module])


def named(model: Any, factory: bool | None) -> tuple[Any, bool | None]:
    """Return a model, or its factory, given by an import path or not."""
    if not isinstance(model, str):
        return model, factory
    return ByName(model), True if factory is None else factory


def collator(requests: Requests) -> Collator:
    """Return the parent's half of what collates a queue's requests."""
    if type(requests) is Tensors and imported("torch") is None:
        return ParentTensorCollator(requests.pad, requests.unpack)
    return requests.collator()


@dataclasses.dataclass
class Spec:
    """What the child builds."""

    model: Any
    factory: bool
    device: str
    requests: Requests
    settings: dict[str, Any]
    idempotent: bool

    def __post_init__(self) -> None:
        # Costs are counted where requests are made.
        if getattr(self.requests, "cost", None) is not None:
            self.requests = dataclasses.replace(self.requests, cost=None)  # type: ignore[type-var]


def supervisor(isolation: Isolation, spec: Spec) -> _onelane.Supervisor:
    """Return the supervisor of a queue's children; it starts none yet."""
    if not spec.settings["to_cpu"]:
        raise ValueError(
            "output='device' keeps results on the device, and with isolation= that is in another "
            "process: use output='cpu'"
        )
    check_module(spec.model)
    payload = pickle.dumps(
        {
            "path": [os.path.abspath(part) if part == "" else part for part in sys.path],
            "keep_path": isolation.executable is not None,
            "levels": _log.levels(),
            "numpy": "numpy" in sys.modules,
            "spec": packed(
                spec, getattr(spec.model, "__name__", None) or type(spec.model).__name__
            ),
        }
    )
    return _onelane.Supervisor(
        [os.fspath(isolation.executable or sys.executable), *_flags(), "-m", "onelane._child"],
        list((_path(isolation) | dict(isolation.env or {})).items()),
        payload,
        Codec(each=not spec.idempotent),
        _log.receive,
        **isolation._settings(),
    )


def _flags() -> list[str]:
    # As `multiprocessing` starts its children.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


def _path(isolation: Isolation) -> dict[str, str]:
    """Return what makes this package importable in a child, if it is not where packages are."""
    root = str(Path(__file__).parent.parent)
    usual = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    if isolation.executable is not None or os.path.realpath(root) in usual:
        return {}
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": root if not before else os.pathsep.join((root, before))}


def check_module(model: Any) -> None:
    """Refuse a module that is on a device of this process."""
    if not _training.is_module(model):
        return
    for kind in (model.parameters(), model.buffers()):
        away = next((part.device for part in kind if part.device.type not in ("cpu", "meta")), None)
        if away is not None:
            raise ValueError(
                f"the model is on {str(away)!r} in this process, and an isolated worker has the "
                f"device in a process of its own: give a function that loads the model there"
            )


def packed(value: Any, name: str) -> bytes:
    """Pickle what a child is to build or call; by value what it could not import."""
    try:
        data = pickle.dumps(value, 5)
        # The child's own main module is another one.
        if b"__main__" not in data:
            return data
        why = f"{name} is defined in the script that runs, which a child does not run"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:
        cure = "or install cloudpickle, which sends lambdas, closures and what a script defines"
    else:
        try:
            return bytes(cloudpickle.dumps(value, 5))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        cure = "that makes in the child what cannot be sent there"
    raise TypeError(
        f"{name} cannot be sent to an isolated worker ({why}). Give a function of a module, by "
        f"itself or as 'package.module:name', {cure}"
    )


def poisoned(device: str, error: BaseException) -> str:
    """Return why an executor of this process refuses calls, and what would help."""
    said = (str(error).splitlines() or [""])[0]
    return (
        f"{device} answers nothing but errors until this process ends: {type(error).__name__}: "
        f'{said}. In a child process it would be replaced instead: isolation="process"'
    )


def with_children(stats: QueueStats, supervisor: _onelane.Supervisor) -> QueueStats:
    """Return statistics of a queue together with those of its children."""
    found = supervisor.stats()
    found["pids"] = tuple(found["pids"])
    return dataclasses.replace(stats, isolation=IsolationStats(**found))


__all__ = ["ByName", "Isolation", "Setting", "Spec", "collator", "default_device", "named", "of"]
