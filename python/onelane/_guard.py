"""Guarding an object: it lives on a device's worker, and every thread has a proxy of it."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from onelane import _devices, _factory, _isolated_guard, _isolation, _names, _onelane, _training
from onelane._batch_queue import BatchQueue
from onelane._batching import Batching
from onelane._call_queue import CallQueue
from onelane._calls import Calls
from onelane._executor import DeviceExecutor, executor
from onelane._grouping import Grouping, Rounding
from onelane._lane import Cell, Lane
from onelane._proxy import Guarded, cell_of, kind_of, proxy
from onelane._stream import GuardedIterator
from onelane._terms import seconds
from onelane._wrap import lane_on


@_names.settings
def guard(
    obj_or_factory: Any,
    device: Any = None,
    methods: Iterable[str] | None = None,
    batch: Mapping[str, int] | None = None,
    *,
    exclusive: Iterable[str] | bool | None = None,
    context: Any = "first",
    factory: bool | None = None,
    isolation: _isolation.Setting = None,
    capacity: int = 1024,
    stall_after: float = 30.0,
) -> Any:
    """Return a proxy of an object that lives on a device's worker thread.

    ::

        st = onelane.guard(lambda: SentenceTransformer(path, device="mps"), "mps")
        st.encode("from any thread")

    obj_or_factory: a function, class or `functools.partial` that can be called without arguments
        is called on the worker, and its result guarded: load the model in it. Anything else is
        guarded as it is, a function that needs arguments, too. An `nn.Module` is moved to
        the device on the worker, and tensors given to it are too.
    device: as for `BatchQueue`; the object shares the device's one worker with everything else.
        Default: `mps` where there is one; elsewhere nothing needs a guard and the object itself is
        returned, unless `batch` is given. A device that is named is always guarded.
    methods: run only these on the worker; other attributes are read where the caller is.
    batch: methods whose calls are batched, with the most items in a batch: with
        `batch={"encode": 32}` many threads' `encode("a text")` become one `encode([...])`, when
        their other arguments are equal; what waits is sorted by length, and split where padding
        costs more than a second call. The first argument is one item, or several, as for the
        method itself: whether a list or tuple of texts is one pair or a batch is learnt from its
        calls, and one that has not been learnt runs by itself. `"__call__"` stands for calling the
        object itself.

    exclusive: methods whose streams have the object alone: while one is open, other calls of the
        object wait, but for those of the thread or task that reads the stream. Default: all
        generators, so that two streams never change one state in turns. `()` says that streams of
        this object are safe. `with onelane.session(proxy):` keeps several calls together.
    context: for batched methods; as for `BatchQueue`.
    factory: whether `obj_or_factory` makes the object, where that is in doubt.
    isolation: as for `BatchQueue`: the object lives in a child process. Its methods, attributes and
        streams work, with results that can be sent: tensors, arrays, plain values and containers
        of them. `obj_or_factory` may be `"package.module:name"`.
    capacity: the most calls that may wait for the worker, of batched methods for each; then calls
        wait for room, or raise `QueueFull` with `options(wait=False)`.
    stall_after: as for `BatchQueue`: of a call, and of a batch. With isolation, `hang_s` of the
        `Isolation` ends what hangs instead.

    `proxy.method.options(timeout=, deadline=, priority=, wait=)(...)` sets terms for a call, and
    `await proxy.method.acall(...)` makes one from an event loop. `with guard(...) as proxy:`, or
    `onelane.close(proxy)`, ends it: calls that wait are run, the object is dropped on the worker.

    Results: tensors as CPU copies, nested ones too; plain values, arrays and containers as they
    are; other objects, nested modules and methods for example, as further proxies. A generator is
    streamed item by item and closed on the worker when it is dropped. `x.to(...)`, or whatever else
    returns the object itself, returns the proxy.
    """
    isolated = _isolation.of(isolation, device)
    stall_after = seconds("stall_after", stall_after)
    if isolated is not None:
        obj_or_factory, factory = _isolation.named(obj_or_factory, factory)
    is_factory = _factory.is_factory_of_object(obj_or_factory, factory)
    if isolated is not None:
        if methods is not None:
            raise ValueError(
                "methods= says what runs on the worker while the rest is read in this process; "
                "with isolation= nothing of the object is in this process"
            )
        if isinstance(exclusive, str):
            raise TypeError(f"exclusive={exclusive!r}: give a tuple of names: ({exclusive!r},)")
        device = _isolation.default_device() if device is None else device
        settings = (batch, exclusive, context, is_factory)
        return _isolated_guard.guard(obj_or_factory, isolated, device, *settings)
    if device is None:
        device = _devices.default()
        if device != "mps" and not batch:
            return obj_or_factory() if is_factory else obj_or_factory
    home = device if isinstance(device, DeviceExecutor) else executor(device)
    if batch is not None and not isinstance(batch, Mapping):
        raise TypeError(
            f"batch={batch!r}: give the most items in a batch of each method: {{'encode': 32}}"
        )
    if isinstance(exclusive, str):
        raise TypeError(f"exclusive={exclusive!r}: give a tuple of names: ({exclusive!r},)")
    lane = lane_on(home, methods, exclusive)

    def build() -> Guarded:
        value = obj_or_factory
        if is_factory:
            with _devices.synchronous_loading():
                value = obj_or_factory()
        if _training.is_module(value):
            lane.moves_inputs = True
            lane.torch_device = _devices.torch_device(home.device)
            if lane.torch_device is not None:
                value = value.to(lane.torch_device)
        root = proxy(lane, value)
        lane.root, lane.root_id = weakref.ref(root), id(value)
        return root

    root = home.call(build)
    kind = kind_of(root)
    called = f"guard {kind.__module__}.{kind.__qualname__}"
    lane.calls = CallQueue(home, called, capacity, stall_after)
    names = {"methods": lane.methods, "exclusive": lane.exclusive}
    for setting, given in names.items():
        home.call(_check_names, cell_of(root), setting, given or ())
    # A queue must not keep the object alive: it looks it up through the cell.
    cell = cell_of(root)
    for name, size in (batch or {}).items():
        terms = {"context": context, "capacity": capacity, "stall_after": stall_after}
        lane.batched[name] = _batched(lane, cell, name, size, terms)
    return root


def _check_names(cell: Cell, setting: str, names: Iterable[str]) -> None:
    for name in names:
        if not hasattr(cell.value, name):
            said = _names.nearest(name, dir(cell.value))
            raise TypeError(f"{setting}: there is no method {name!r}{said}")


def _batched(lane: Lane, cell: Cell, name: str, size: int, terms: dict[str, Any]) -> Batching:
    home = lane.executor

    def method() -> Any:
        return cell.value if name == "__call__" else getattr(cell.value, name, None)

    def call(*args: Any, **kwargs: Any) -> Any:
        return method()(*args, **kwargs)

    def look() -> tuple[str | None, Rounding | None]:
        return first_parameter(), Rounding.of(cell.value, name, home.device)

    def first_parameter() -> str | None:
        if _training.is_module(cell.value):
            if name in ("forward", "__call__"):
                raise TypeError(
                    f"batch={{{name!r}: {size}}}: a {type(cell.value).__name__} takes tensors by "
                    f"rows, not a list of them: give the module itself to "
                    f"onelane.BatchQueue(model, {home.device!r}, max_batch_size={size}), and call "
                    f"queue(x)"
                )
            said = _training.warning(cell.value)
            if said is not None:
                warnings.warn(said, stacklevel=2)
        if not callable(method()):
            said = _names.nearest(name, dir(cell.value))
            raise TypeError(
                f"batch={{{name!r}: {size}}}: there is no method {name!r} to batch{said}"
            )
        try:
            first = next(iter(inspect.signature(method()).parameters.values()), None)
        except (TypeError, ValueError):
            return None
        named = first is not None and first.kind is first.POSITIONAL_OR_KEYWORD
        return first.name if first is not None and named else None

    first, rounding = home.call(look)
    elements = _onelane.Elements()
    grouping = Grouping(rounding, elements)
    queue = BatchQueue(
        call,
        home,
        Calls(lane, grouping, elements),
        max_batch_size=size,
        factory=False,
        name=name,
        **terms,
    )
    return Batching(queue, first, size, grouping.piece)


__all__ = ["Guarded", "GuardedIterator", "guard"]
