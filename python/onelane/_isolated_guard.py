"""A guarded object in a child process: its proxy here, and the host that has it there.

Methods, attributes and streams of the object itself cross; its results are host values. What cannot
leave the child (a module, an object with a lock) is refused with what to do instead.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
import types
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from onelane import _devices, _isolation, _keys, _names, _training, _tree
from onelane._calls import CallCollator
from onelane._collate import Collator, Input, Target, place
from onelane._exclusive import Exclusive, Hold
from onelane._responses import leave
from onelane.errors import EngineLost

if TYPE_CHECKING:
    from onelane._batch_queue import BatchQueue

_BATCH = "batch"
_SPECIAL = ("__call__", "__len__", "__getitem__", "__setitem__", "__delitem__", "__contains__")


class StreamId(NamedTuple):
    """Names a stream of one child: in another there is no such stream."""

    child: str
    number: int


class Lost(NamedTuple):
    """Stands for the item of a stream whose child is gone."""


class Member(NamedTuple):
    """What a proxy knows of a method."""

    kind: str
    doc: str | None
    first: str | None


# --- In the child ---------------------------------------------------------------------------------


class Host:
    """Has the object, and its open streams."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._streams: dict[int, Any] = {}
        self._child = f"{os.getpid()}.{time.time_ns()}"
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, what: str, *args: Any) -> Any:
        """Do one thing of those below."""
        return getattr(self, f"do_{what}")(*args)

    def do_describe(self) -> tuple[str, dict[str, Member]]:
        """Return the name of the object's class, and its methods."""
        kind = type(self.value)
        members = {}
        for name in {*dir(kind), *getattr(self.value, "__dict__", {})}:
            static = inspect.getattr_static(self.value, name, None)
            if name.startswith("__") and name not in (*_SPECIAL, "__iter__"):
                continue
            if isinstance(static, property) or not callable(
                static.__func__ if isinstance(static, (classmethod, staticmethod)) else static
            ):
                continue
            if name == "__call__" and not any("__call__" in vars(base) for base in kind.__mro__):
                continue
            members[name] = Member(_kind(static), inspect.getdoc(static), _first(self.value, name))
        return f"{kind.__module__}.{kind.__qualname__}", members

    def do_call(self, name: str, args: Any, kwargs: Any) -> Any:
        """Call a method; a stream that it returns stays here."""
        if name == "__iter__":
            return self._kept(iter(self.value))
        method = self.value if name == "__call__" else getattr(self.value, name)
        return self._kept(method(*args, **kwargs))

    def do_batch(self, name: str, args: Any, kwargs: Any) -> Any:
        """Call a batched method."""
        method = self.value if name == "__call__" else getattr(self.value, name)
        return method(*args, **kwargs)

    def do_get(self, name: str) -> Any:
        """Read an attribute."""
        value = getattr(self.value, name)
        if isinstance(value, types.MethodType):
            raise TypeError(f"{name!r} is a method of an object that lives in an isolated worker")
        return self._kept(value)

    def do_set(self, name: str, value: Any) -> None:
        """Set an attribute."""
        setattr(self.value, name, value)

    def do_delete(self, name: str) -> None:
        """Delete an attribute."""
        delattr(self.value, name)

    def do_next(self, stream: StreamId) -> Any:
        """Return `(item,)`, or `()` at the end of a stream."""
        if stream.child != self._child:
            return Lost()
        present = self._streams.get(stream.number)
        if present is None:
            return ()
        try:
            if isinstance(present, types.AsyncGeneratorType):
                item = self._run(present.__anext__())
            else:
                item = next(present)
        except (StopIteration, StopAsyncIteration):
            self._streams.pop(stream.number, None)
            return ()
        except BaseException:
            self._streams.pop(stream.number, None)
            raise
        return (item,)

    def do_close(self, stream: StreamId) -> None:
        """Close a stream."""
        present = self._streams.pop(stream.number, None) if stream.child == self._child else None
        if isinstance(present, types.GeneratorType):
            present.close()
        elif isinstance(present, types.AsyncGeneratorType):
            self._run(present.aclose())

    def _kept(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            value = self._run(value)
        if isinstance(value, (Iterator, types.AsyncGeneratorType)):
            self._number += 1
            self._streams[self._number] = value
            return StreamId(self._child, self._number)
        return value

    def _run(self, awaitable: Any) -> Any:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(awaitable)


def _kind(static: Any) -> str:
    if inspect.isgeneratorfunction(static):
        return "stream"
    if inspect.isasyncgenfunction(static):
        return "async stream"
    return "coroutine" if inspect.iscoroutinefunction(static) else "plain"


def _first(value: Any, name: str) -> str | None:
    try:
        method = value if name == "__call__" else getattr(value, name)
        first = next(iter(inspect.signature(method).parameters.values()), None)
    except Exception:
        return None
    named = first is not None and first.kind is first.POSITIONAL_OR_KEYWORD
    return first.name if first is not None and named else None


class HostFactory:
    """Makes the host of an object, in the child."""

    def __init__(self, made: Any, is_factory: bool, device: str) -> None:
        self._made, self._is_factory, self._device = made, is_factory, device
        self.__name__ = getattr(made, "__name__", None) or type(made).__name__

    def __call__(self) -> Host:
        """Make it."""
        value = self._made
        if isinstance(value, _isolation.ByName):
            value = value.find()
        if self._is_factory:
            value = value()
        if _training.is_module(value):
            place = _devices.torch_device(self._device)
            value = value if place is None else value.to(place)
        return Host(value)


class _Lane:
    """How arguments enter and results leave in the child; what `CallCollator` asks of its lane."""

    def __init__(self, target: Target, moves_inputs: bool) -> None:
        self._target, self._moves = target, moves_inputs

    def enter(self, value: Any) -> Any:
        if self._moves:
            return _tree.map_tensors(value, lambda tensor: place(self._target, tensor))
        return value

    def leave(self, value: Any) -> Any:
        return value if type(value) in (StreamId, Lost) else leave(self._target, value)


def _chunks(inputs: list[Input], most: int) -> Iterator[list[Input]]:
    """Yield the requests in parts of so many items at most; one of more by itself."""
    chunk: list[Input] = []
    rows = 0
    for request in inputs:
        if chunk and rows + request.rows > most:
            yield chunk
            chunk, rows = [], 0
        chunk.append(request)
        rows += request.rows
    yield chunk


class _OfMethod:
    """A target whose model is one method of the object."""

    def __init__(self, target: Target, call: Callable[..., Any]) -> None:
        self._target, self.call = target, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


# --- On both sides --------------------------------------------------------------------------------


@dataclass(frozen=True)
class HostRequests:
    """What the requests of an isolated object are; see `_requests.Requests`.

    sizes: the batched methods, with the most items in a batch.
    """

    sizes: Mapping[str, int]
    output: Literal["cpu"] = "cpu"
    copy: bool = True
    cuda_graphs: bool = False
    pad: None = None
    cost: None = None
    shared: bool = True

    def collator(self) -> Collator:
        """See `_requests.Requests`."""
        return HostCollator(self.sizes)


class HostCollator:
    """A request is one thing that the host does, or a call of a batched method.

    sizes: the batched methods, with the most items in a batch.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Input, Any]:
        """See `Collator`."""
        if args[0] != _BATCH:
            return Input(args, kwargs), _keys.ALONE
        _, name, request = args
        prepared, key = CallCollator(None).prepare((request,), {})  # type: ignore[arg-type]
        prepared.names = [name]
        return prepared, (name, key)

    def run(self, target: Target, inputs: list[Input]) -> tuple[list[Any], int]:
        """See `Collator`."""
        host: Host = target._model  # type: ignore[attr-defined]
        lane = _Lane(target, _training.is_module(host.value))
        if not inputs[0].names:
            responses = []
            for request in inputs:
                what, *args = request.args
                responses.append(lane.leave(target.call(what, *lane.enter(tuple(args)))))
            return responses, len(inputs)
        name = inputs[0].names[0]

        def call(*args: Any, **kwargs: Any) -> Any:
            return target.call("batch", name, args, kwargs)

        collator = CallCollator(lane)  # type: ignore[arg-type]
        responses, computed = [], 0
        for chunk in _chunks(inputs, self.sizes[name]):
            some, cost = collator.run(_OfMethod(target, call), chunk)
            responses += some
            computed += cost
        return responses, computed


# --- In the parent --------------------------------------------------------------------------------


class _Lent:
    """What the proxy, its methods and its streams share."""

    def __init__(self, queue: BatchQueue, exclusive: Any) -> None:
        self.queue = queue
        self.turns = Exclusive(lambda: False)
        self.exclusive = None if exclusive in (None, True) else frozenset(exclusive or ())
        self.name, self.members = queue("describe")
        self.batched: dict[str, Any] = {}

    def hold_of(self, name: str, generator: bool) -> Hold | None:
        """Return what has the object alone while a stream of a method is open; None: nothing."""
        alone = generator if self.exclusive is None else name in self.exclusive
        return Hold(f"a stream of {name}()") if alone else None

    def call(self, *request: Any) -> Any:
        """Have the host do something, between the streams that have it alone."""
        hold = self.turns.wait(self.turns.share())
        try:
            return self.queue(*request)
        finally:
            self.turns.leave(hold)

    async def acall(self, *request: Any) -> Any:
        """Do what `call` does, from an event loop."""
        hold = await self.turns.wait_async(self.turns.share())
        try:
            return await self.queue.infer(*request)
        finally:
            self.turns.leave(hold)


class _OneMethod:
    """The queue of one batched method, as `_guard._Batching` calls it."""

    def __init__(self, queue: BatchQueue, name: str) -> None:
        self._queue, self._name = queue, name

    def __call__(self, request: Any) -> Any:
        return self._queue(_BATCH, self._name, request)

    async def infer(self, request: Any) -> Any:
        return await self._queue.infer(_BATCH, self._name, request)


class IsolatedObject:
    """Stands for an object in an isolated worker. Made by `guard(..., isolation=...)`."""

    __slots__ = ("__weakref__", "_onelane_lane")

    _onelane_lane: _Lent
    _onelane_is_proxy = True

    def __init__(self, lent: _Lent) -> None:
        object.__setattr__(self, "_onelane_lane", lent)

    def __getattr__(self, name: str) -> Any:
        lent = _lent(self)
        if name in lent.members:
            return IsolatedMethod(self, name)
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "session":
            import functools

            from onelane._session import session

            return functools.partial(session, self)
        return _result(lent, name, lent.call("get", name))

    def __setattr__(self, name: str, value: Any) -> None:
        _lent(self).call("set", name, value)

    def __delattr__(self, name: str) -> None:
        _lent(self).call("delete", name)

    def __repr__(self) -> str:
        lent = _lent(self)
        return f"<isolated {lent.name} on {lent.queue.executor.device!r}>"

    def __dir__(self) -> list[str]:
        return sorted(_lent(self).members)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a guarded object cannot be pickled: it belongs to a worker")


def _lent(proxy: IsolatedObject) -> _Lent:
    lent: _Lent = object.__getattribute__(proxy, "_onelane_lane")
    return lent


def _special(name: str) -> Any:
    def method(self: IsolatedObject, *args: Any, **kwargs: Any) -> Any:
        return IsolatedMethod(self, name)(*args, **kwargs)

    method.__name__ = method.__qualname__ = name
    return method


def _proxy(lent: _Lent) -> IsolatedObject:
    members = {name: _special(name) for name in (*_SPECIAL, "__iter__") if name in lent.members}
    kind = type("IsolatedObject", (IsolatedObject,), {"__slots__": (), **members})
    return kind(lent)  # type: ignore[no-any-return]


class IsolatedMethod:
    """A method of an object in an isolated worker."""

    def __init__(self, proxy: IsolatedObject, name: str) -> None:
        self._proxy, self._name = proxy, name
        self._member: Member = _lent(proxy).members[name]
        self.__name__, self.__doc__ = name, self._member.doc

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lent = _lent(self._proxy)
        if self._member.kind == "coroutine":
            return self.acall(*args, **kwargs)
        if self._member.kind.endswith("stream"):
            return self._stream(args, kwargs)
        batching = lent.batched.get(self._name)
        if batching is not None:
            return batching.call(self._alone, args, kwargs, lent.turns)
        return self._alone(*args, **kwargs)

    def _alone(self, *args: Any, **kwargs: Any) -> Any:
        lent = _lent(self._proxy)
        return _result(lent, self._name, lent.call("call", self._name, args, kwargs), self._proxy)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method from an event loop."""
        lent = _lent(self._proxy)
        if self._member.kind.endswith("stream"):
            return self._stream(args, kwargs)
        batching = lent.batched.get(self._name)
        if batching is not None:
            return await batching.acall(self._aalone, args, kwargs, lent.turns)
        return await self._aalone(*args, **kwargs)

    async def _aalone(self, *args: Any, **kwargs: Any) -> Any:
        lent = _lent(self._proxy)
        result = await lent.acall("call", self._name, args, kwargs)
        return _result(lent, self._name, result, self._proxy)

    def _stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> IsolatedStream:
        """Return the stream of a generator function: nothing of it runs before the first item."""
        lent = _lent(self._proxy)
        hold = lent.hold_of(self._name, generator=True)
        return IsolatedStream(lent, ("call", self._name, args, kwargs), None, hold, self._proxy)

    def __repr__(self) -> str:
        return f"<method {self._name!r} of {self._proxy!r}>"


def _result(lent: _Lent, name: str, result: Any, proxy: IsolatedObject | None = None) -> Any:
    if type(result) is not StreamId:
        return result
    return IsolatedStream(lent, None, result, lent.hold_of(name, generator=False), proxy)


class IsolatedStream(Iterator[Any], AsyncIterator[Any]):
    """A stream of an object in an isolated worker: each item is one visit there.

    It ends with its worker: if that is lost or replaced meanwhile, the next item raises
    `EngineLost`. `close()`, `await aclose()`, or the end of this, closes it.
    """

    def __init__(
        self,
        lent: _Lent,
        start: tuple[Any, ...] | None,
        stream: StreamId | None,
        hold: Hold | None,
        proxy: IsolatedObject | None,
    ) -> None:
        self._lent, self._start, self._stream, self._hold = lent, start, stream, hold
        # The object lives as long as its streams.
        self._proxy = proxy
        self._held: list[Hold | None] = []
        self._over = False
        weakref.finalize(self, _release, lent, self._held, box := [stream])
        self._box = box

    def __iter__(self) -> IsolatedStream:
        return self

    def __aiter__(self) -> IsolatedStream:
        return self

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        lent = self._lent
        if self._hold is None:
            take, ask = lent.call, lent.call
        else:
            if not self._held:
                self._held.append(lent.turns.wait(lent.turns.take(self._hold)))
            take = ask = lent.queue.__call__
        try:
            if self._stream is None:
                self._started(take(*self._begin()))
            item = ask("next", self._stream)
        except BaseException:
            self._end()
            raise
        found = self._item(item)
        if not found:
            raise StopIteration
        return found[0]

    async def __anext__(self) -> Any:
        if self._over:
            raise StopAsyncIteration
        lent = self._lent
        if self._hold is None:
            ask = lent.acall
        else:
            if not self._held:
                self._held.append(await lent.turns.wait_async(lent.turns.take(self._hold)))
            ask = lent.queue.infer
        try:
            if self._stream is None:
                self._started(await ask(*self._begin()))
            item = await ask("next", self._stream)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._end()
            raise
        found = self._item(item)
        if not found:
            raise StopAsyncIteration
        return found[0]

    def close(self) -> None:
        """Close the stream in its worker."""
        if not self._over and self._stream is not None:
            self._lent.queue("close", self._stream)
        self._end()

    async def aclose(self) -> None:
        """Close the stream in its worker, from an event loop."""
        if not self._over and self._stream is not None:
            await self._lent.queue.infer("close", self._stream)
        self._end()

    def _begin(self) -> tuple[Any, ...]:
        assert self._start is not None
        return self._start

    def _started(self, stream: Any) -> None:
        self._stream = self._box[0] = stream

    def _item(self, item: Any) -> Any:
        if isinstance(item, Lost):
            self._end()
            raise EngineLost("the isolated worker that had this stream was lost or replaced")
        if item == ():
            self._end()
        return item

    def _end(self) -> None:
        self._over, self._box[0] = True, None
        while self._held:
            self._lent.turns.leave(self._held.pop())


def _release(lent: _Lent, held: list[Hold | None], box: list[StreamId | None]) -> None:
    """Close a stream that was dropped."""
    while held:
        lent.turns.leave(held.pop())
    if box[0] is not None:
        try:
            lent.queue.submit("close", box[0])
        except Exception:
            # The queue is closed, and the stream with it.
            return


def guard(
    made: Any,
    isolated: _isolation.Isolation,
    device: Any,
    batch: Mapping[str, int] | None,
    exclusive: Any,
    context: Any,
    is_factory: bool,
) -> IsolatedObject:
    """Return a proxy of an object in an isolated worker; see `onelane.guard`."""
    from onelane._batch_queue import BatchQueue
    from onelane._executor import DeviceExecutor, executor
    from onelane._guard import _Batching

    sizes = dict(batch or {})
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"batch={{{name!r}: {size!r}}}: give the most items, at least 1")
    home = device if isinstance(device, DeviceExecutor) else executor(device)
    _isolation.check_module(made)
    queue = BatchQueue(
        HostFactory(made, is_factory, home.device),
        home,
        HostRequests(sizes),
        max_batch_size=max(sizes.values(), default=1),
        factory=True,
        context=context,
        isolation=isolated,
        name=getattr(made, "__name__", None) or type(made).__name__,
    )
    lent = _Lent(queue, exclusive)
    for setting, names in (("exclusive", lent.exclusive or ()), ("batch", sizes)):
        for name in names:
            if name not in lent.members:
                said = _names.nearest(name, lent.members)
                queue.close()
                raise TypeError(f"{setting}: there is no method {name!r}{said}")
    for name in sizes:
        one: Any = _OneMethod(queue, name)
        lent.batched[name] = _Batching(one, lent.members[name].first)
    return _proxy(lent)


__all__ = ["HostRequests", "IsolatedMethod", "IsolatedObject", "IsolatedStream", "guard"]
