"""A proxy: an object that lives on the worker, usable from every thread."""

from __future__ import annotations

import enum
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from onelane import _collate, _devices, _model, _tree
from onelane._batch_queue import BatchQueue
from onelane._calls import AS_IT_IS, ITEM, UNKNOWN, CallCollator, Forms
from onelane._executor import DeviceExecutor, executor
from onelane.errors import ForkedProcess, QueueClosed

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, bytearray, range, slice,
    enum.Enum, type, PurePath, types.ModuleType, BaseException,
)  # fmt: skip

_END = object()


class _Cell:
    """Holds an object of the worker's. Made, read and emptied on the worker alone."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Any) -> None:
        self.value = value

    def empty(self) -> None:
        """Drop the object, here, on the worker; a generator is closed first."""
        value, self.value = self.value, None
        if isinstance(value, types.GeneratorType):
            value.close()


class _Lane:
    """What all proxies of one guarded object share."""

    def __init__(self, device: DeviceExecutor, methods: Iterable[str] | None) -> None:
        self.executor = device
        self.methods = None if methods is None else frozenset(methods)
        self.batched: dict[str, _Batching] = {}
        self.root: weakref.ref[Guarded] | None = None
        self.root_id = 0
        self.moves_inputs = False
        # What `_collate.leave` asks of its target.
        self.device, self.to_cpu, self.copy_outputs = device.device, True, True
        self.torch_device: Any = None
        self.graphs = None

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function` on the worker; what it returns comes back as it may leave the worker."""
        return self.executor.call(lambda: self.leave(function(*args)))

    def batching(self, proxy: Guarded, name: str) -> _Batching | None:
        """Return how calls of a method are batched; those of the guarded object itself alone."""
        batching = self.batched.get(name)
        if batching is None or self.root is None or self.root() is not proxy:
            return None
        return batching

    # On the worker.

    def leave(self, value: Any) -> Any:
        """Return host values as they are, tensors as host copies, other objects as proxies."""
        if id(value) == self.root_id and self.root is not None:
            root = self.root()
            if root is not None and _cell(root).value is value:
                return root
        if (
            value is _END
            or isinstance(value, _PLAIN)
            or _tree.is_array(value)
            or _is_torch_constant(value)
        ):
            return value
        if _tree.is_tensor(value):
            return _collate.leave(self, value)
        if isinstance(value, (tuple, list)):
            return _tree.rebuild_sequence(type(value), [self.leave(part) for part in value])
        if isinstance(value, (set, frozenset)):
            return type(value)(self.leave(part) for part in value)
        if type(value) is dict:
            return {key: self.leave(part) for key, part in value.items()}
        if isinstance(value, Mapping) or _tree.is_dataclass(value):
            return _collate.leave(self, value)
        numpy_scalar = type(value).__module__ == "numpy" and hasattr(value, "dtype")
        if numpy_scalar:
            return value
        if isinstance(value, Iterator):
            return GuardedIterator(self, value)
        return Guarded(self, value)

    def enter(self, value: Any) -> Any:
        """Return an argument as the object expects it: proxies as what they stand for."""
        if isinstance(value, Guarded):
            return _cell(value).value
        if type(value) in (tuple, list):
            return type(value)([self.enter(part) for part in value])
        if type(value) is dict:
            return {key: self.enter(part) for key, part in value.items()}
        if self.moves_inputs and _tree.is_tensor(value):
            return _collate.place(self, value)
        return value

    def invoke(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call `function` with arguments as they came from another thread."""
        return function(*(self.enter(a) for a in args), **self.enter(kwargs))


def _is_torch_constant(value: Any) -> bool:
    # torch.dtype, torch.device, torch.layout, torch.memory_format
    return type(value).__module__ == "torch" and type(value).__name__ in (
        "dtype", "device", "layout", "memory_format",
    )  # fmt: skip


def _release(device: DeviceExecutor, cell: _Cell) -> None:
    """Drop a proxy's object on the worker."""
    try:
        device.submit(cell.empty)
    except QueueClosed:
        # The worker has ended; there is no better place left.
        cell.empty()
    except ForkedProcess:
        # The object is the parent's: it may not even be freed here.
        _parents.append(cell.value)


_parents: list[Any] = []


class Guarded:
    """Stands for an object on the worker. Made by `guard`.

    Reading an attribute, calling, indexing, iterating and so on happen on the worker. Plain values
    come back as they are, tensors as host copies, everything else as another such proxy. The object
    is dropped on the worker when its proxy goes.
    """

    __slots__ = ("__weakref__", "_onelane_cell", "_onelane_kind", "_onelane_lane")

    _onelane_cell: _Cell
    _onelane_lane: _Lane
    _onelane_kind: type

    def __init__(self, lane: _Lane, value: Any) -> None:
        cell = _Cell(value)
        object.__setattr__(self, "_onelane_cell", cell)
        object.__setattr__(self, "_onelane_lane", lane)
        object.__setattr__(self, "_onelane_kind", type(value))
        weakref.finalize(self, _release, lane.executor, cell)

    def __getattr__(self, name: str) -> Any:
        lane, cell = _lane(self), _cell(self)
        batching = lane.batching(self, name)
        if batching is not None:
            return _BatchedMethod(self, name, batching)
        if lane.methods is not None and name not in lane.methods:
            return getattr(cell.value, name)
        static = inspect.getattr_static(_kind(self), name, None)
        if isinstance(static, (types.FunctionType, functools.partialmethod)):
            return _Method(self, name)
        return lane.call(lambda: getattr(cell.value, name))

    def __setattr__(self, name: str, value: Any) -> None:
        lane, cell = _lane(self), _cell(self)
        lane.call(lambda: setattr(cell.value, name, lane.enter(value)))

    def __delattr__(self, name: str) -> None:
        cell = _cell(self)
        _lane(self).call(lambda: delattr(cell.value, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lane, cell = _lane(self), _cell(self)
        batching = lane.batching(self, "__call__")
        if batching is not None:
            return _BatchedMethod(self, "__call__", batching)(*args, **kwargs)
        return lane.call(lambda: lane.invoke(cell.value, args, kwargs))

    def __len__(self) -> int:
        return int(self._onelane_apply(len))

    def __bool__(self) -> bool:
        return bool(self._onelane_apply(bool))

    def __iter__(self) -> Iterator[Any]:
        iterator: Iterator[Any] = self._onelane_apply(iter)
        return iterator

    def __next__(self) -> Any:
        cell = _cell(self)
        item = _lane(self).call(lambda: next(cell.value, _END))
        if item is _END:
            raise StopIteration
        return item

    def __getitem__(self, key: Any) -> Any:
        lane = _lane(self)
        return self._onelane_apply(lambda value: value[lane.enter(key)])

    def __setitem__(self, key: Any, item: Any) -> None:
        lane = _lane(self)
        self._onelane_apply(lambda value: value.__setitem__(lane.enter(key), lane.enter(item)))

    def __delitem__(self, key: Any) -> None:
        self._onelane_apply(lambda value: value.__delitem__(key))

    def __contains__(self, item: Any) -> bool:
        lane = _lane(self)
        return bool(self._onelane_apply(lambda value: lane.enter(item) in value))

    def __enter__(self) -> Any:
        return self._onelane_apply(lambda value: value.__enter__())

    def __exit__(self, *error: Any) -> Any:
        return self._onelane_apply(lambda value: value.__exit__(*error))

    def __str__(self) -> str:
        return str(self._onelane_apply(str))

    def __repr__(self) -> str:
        kind = _kind(self)
        device = _lane(self).executor.device
        return f"<guarded {kind.__module__}.{kind.__qualname__} on {device!r}>"

    def __reduce__(self) -> Any:
        raise TypeError("a guarded object cannot be pickled: it belongs to a worker thread")

    def __dir__(self) -> list[str]:
        return list(self._onelane_apply(dir))

    def _onelane_apply(self, function: Callable[[Any], Any]) -> Any:
        cell = _cell(self)
        return _lane(self).call(lambda: function(cell.value))


def _cell(proxy: Guarded) -> _Cell:
    cell: _Cell = object.__getattribute__(proxy, "_onelane_cell")
    return cell


def _lane(proxy: Guarded) -> _Lane:
    lane: _Lane = object.__getattribute__(proxy, "_onelane_lane")
    return lane


def _kind(proxy: Guarded) -> type:
    kind: type = object.__getattribute__(proxy, "_onelane_kind")
    return kind


class GuardedIterator(Guarded):
    """An iterator or generator on the worker: each item is one visit there.

    `close()`, or the end of this proxy, closes a generator on the worker. Also an asynchronous
    iterator.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return self

    def close(self) -> None:
        """Close the generator on the worker."""
        _lane(self).executor.call(_cell(self).empty)

    def __next__(self) -> Any:
        item = _lane(self).call(self._onelane_step)
        if item is _END:
            raise StopIteration
        return item

    def __aiter__(self) -> GuardedIterator:
        return self

    async def __anext__(self) -> Any:
        lane = _lane(self)
        item = await lane.executor.acall(lambda: lane.leave(self._onelane_step()))
        if item is _END:
            raise StopAsyncIteration
        return item

    def _onelane_step(self) -> Any:
        iterator = _cell(self).value
        return _END if iterator is None else next(iterator, _END)


class _Method:
    """A method of a guarded object: looked up and called in one visit to the worker."""

    __slots__ = ("__name__", "_name", "_proxy")

    def __init__(self, proxy: Guarded, name: str) -> None:
        self._proxy, self._name = proxy, name
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lane, cell, name = _lane(self._proxy), _cell(self._proxy), self._name
        return lane.call(lambda: lane.invoke(getattr(cell.value, name), args, kwargs))

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method from an event loop."""
        lane, cell, name = _lane(self._proxy), _cell(self._proxy), self._name
        return await lane.executor.acall(
            lambda: lane.leave(lane.invoke(getattr(cell.value, name), args, kwargs))
        )

    def __repr__(self) -> str:
        return f"<method {self._name!r} of {self._proxy!r}>"


class _BatchedMethod(_Method):
    """A method whose calls from many threads become one call."""

    __slots__ = ("_batching",)

    def __init__(self, proxy: Guarded, name: str, batching: _Batching) -> None:
        super().__init__(proxy, name)
        self._batching = batching

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = super().__call__
        args, kwargs, form = self._batching.read(args, kwargs)
        forms, queue = self._batching.forms, self._batching.queue
        if form == AS_IT_IS:
            return call(*args, **kwargs)
        if form != UNKNOWN:
            result = queue(CallCollator.request(args, kwargs, form))
            if form == ITEM:
                forms.note_item(args[0])
            return result
        try:
            result = call(*args, **kwargs)
        except Exception as error:
            if not isinstance(args[0], tuple):
                raise
            result = _or_raise(error, lambda: queue(CallCollator.request(args, kwargs, ITEM)))
            forms.note_refused(args[0])
            return result
        forms.note_call(args[0], result)
        return result

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method from an event loop."""
        call = super().acall
        args, kwargs, form = self._batching.read(args, kwargs)
        forms, queue = self._batching.forms, self._batching.queue
        if form == AS_IT_IS:
            return await call(*args, **kwargs)
        if form != UNKNOWN:
            result = await queue.infer(CallCollator.request(args, kwargs, form))
            if form == ITEM:
                forms.note_item(args[0])
            return result
        try:
            result = await call(*args, **kwargs)
        except Exception as error:
            if not isinstance(args[0], tuple):
                raise
            try:
                result = await queue.infer(CallCollator.request(args, kwargs, ITEM))
            except Exception:
                raise error from None
            forms.note_refused(args[0])
            return result
        forms.note_call(args[0], result)
        return result


def _or_raise(error: Exception, function: Callable[[], Any]) -> Any:
    """Return what `function` returns; if it fails too, `error` is what went wrong."""
    try:
        return function()
    except Exception:
        raise error from None


class _Batching:
    """The queue of a batched method, and how its calls are read."""

    def __init__(self, queue: BatchQueue, first: str | None) -> None:
        self.queue, self.forms, self._first = queue, Forms(), first

    def read(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], str]:
        """Return the arguments, the first one by position, and what that is."""
        if not args and self._first in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop(self._first),)
        if not CallCollator.can_batch(args, kwargs):
            return args, kwargs, AS_IT_IS
        return args, kwargs, self.forms.of(args[0])


def guard(
    obj_or_factory: Any,
    device: Any = None,
    methods: Iterable[str] | None = None,
    batch: Mapping[str, int] | None = None,
) -> Any:
    """Return a proxy of an object that lives on a device's worker thread.

    ::

        st = onelane.guard(lambda: SentenceTransformer(path, device="mps"), "mps")
        st.encode("from any thread")

    obj_or_factory: a function, class or `functools.partial` is called on the worker and its result
        guarded: load the model in it. Anything else is guarded as it is. An `nn.Module` is moved to
        the device on the worker, and tensors given to it are too.
    device: as for `BatchQueue`; the object shares the device's one worker with everything else.
        Default: `mps` where there is one; elsewhere nothing needs a guard and the object itself is
        returned, unless `batch` is given. A device that is named is always guarded.
    methods: run only these on the worker; other attributes are read where the caller is.
    batch: methods whose calls are batched, with the most items in a batch: with
        `batch={"encode": 32}` many threads' `encode("a text")` become one `encode([...])`, when
        their other arguments are equal. The first argument is one item, or several, as for the
        method itself: whether a list or tuple of texts is one pair or a batch is learnt from its
        calls, and one that has not been learnt runs by itself. `"__call__"` stands for calling the
        object itself.

    Results: tensors as CPU copies, nested ones too; plain values, arrays and containers as they
    are; other objects, nested modules and methods for example, as further proxies. A generator is
    streamed item by item and closed on the worker when it is dropped. `x.to(...)`, or whatever else
    returns the object itself, returns the proxy.
    """
    is_factory = isinstance(
        obj_or_factory, (types.FunctionType, types.MethodType, type, functools.partial)
    )
    if device is None:
        device = _devices.default()
        if device != "mps" and not batch:
            return obj_or_factory() if is_factory else obj_or_factory
    home = device if isinstance(device, DeviceExecutor) else executor(device)
    lane = _Lane(home, methods)

    def build() -> Guarded:
        value = obj_or_factory
        if is_factory:
            with _devices.synchronous_loading():
                value = obj_or_factory()
        if _model.is_module(value):
            lane.moves_inputs = True
            lane.torch_device = _devices.torch_device(home.device)
            if lane.torch_device is not None:
                value = value.to(lane.torch_device)
        root = Guarded(lane, value)
        lane.root, lane.root_id = weakref.ref(root), id(value)
        return root

    root = home.call(build)
    # A queue must not keep the object alive: it looks it up through the cell.
    cell = _cell(root)
    for name, size in (batch or {}).items():
        lane.batched[name] = _batched(home, cell, name, size)
    return root


def _batched(home: DeviceExecutor, cell: _Cell, name: str, size: int) -> _Batching:
    def method() -> Any:
        return cell.value if name == "__call__" else getattr(cell.value, name, None)

    def call(*args: Any, **kwargs: Any) -> Any:
        return method()(*args, **kwargs)

    def first_parameter() -> str | None:
        if not callable(method()):
            raise TypeError(f"batch={{{name!r}: {size}}}: there is no method {name!r} to batch")
        try:
            first = next(iter(inspect.signature(method()).parameters.values()), None)
        except (TypeError, ValueError):
            return None
        named = first is not None and first.kind is first.POSITIONAL_OR_KEYWORD
        return first.name if first is not None and named else None

    first = home.call(first_parameter)
    queue = BatchQueue(
        call, home, max_batch_size=size, collate=CallCollator(), factory=False, name=name
    )
    return _Batching(queue, first)


__all__ = ["Guarded", "GuardedIterator", "guard"]
