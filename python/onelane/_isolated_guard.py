"""A guarded object in a child process, as its parent has it: a proxy, its methods, its streams.

Methods, attributes and streams of the object itself cross; its results are host values. What cannot
leave the child (a module, an object with a lock) is refused with what to do instead.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from onelane import _isolation, _names
from onelane._batching import Batching, aone, one
from onelane._caller import Caller
from onelane._exclusive import Exclusive, Hold
from onelane._host import BATCH, SPECIAL, HostFactory, HostRequests, Lost, Member, StreamId
from onelane._proxy import OWN, aclose, close
from onelane._terms import NORMAL, Options, Priority, Terms, options
from onelane.errors import EngineLost, QueueFull

if TYPE_CHECKING:
    from onelane._batch_queue import BatchQueue


class _Lent:
    """What the proxy, its methods and its streams share."""

    def __init__(self, queue: BatchQueue, exclusive: Any) -> None:
        self.queue = queue
        self.turns = Exclusive(lambda: False)
        self.exclusive = None if exclusive in (None, True) else frozenset(exclusive or ())
        self.name, self.members = queue("describe")
        self.batched: dict[str, Any] = {}
        # As of a `Lane`: what `onelane.close`, `stats` and `health` ask.
        self.calls, self.closed = queue, False
        self.root: Callable[[], Any] | None = None

    def close(self, timeout: float | None, _: Any) -> bool:
        """Refuse new calls, run those that wait, and end the worker."""
        self.closed = True
        return self.queue.shutdown(timeout=timeout)

    def hold_of(self, name: str, generator: bool) -> Hold | None:
        """Return what has the object alone while a stream of a method is open; None: nothing."""
        alone = generator if self.exclusive is None else name in self.exclusive
        return Hold(f"a stream of {name}()") if alone else None

    def turn(self, terms: Terms) -> Hold | None:
        """Wait until the object may be called."""
        return self.turns.wait(self._asked(terms), terms.deadline)

    async def aturn(self, terms: Terms) -> Hold | None:
        """Do what `turn` does, from an event loop."""
        return await self.turns.wait_async(self._asked(terms), terms.deadline)

    def _asked(self, terms: Terms) -> Any:
        if not terms.wait and self.turns.waiting():
            raise QueueFull("calls of the object wait already")
        return self.turns.share()

    def call(self, *request: Any, terms: Terms = NORMAL) -> Any:
        """Have the host do something, between the streams that have it alone."""
        hold = self.turn(terms)
        try:
            return one(self.queue, request, terms)
        finally:
            self.turns.leave(hold)

    async def acall(
        self, *request: Any, terms: Terms = NORMAL, caller: Caller | None = None
    ) -> Any:
        """Do what `call` does, from an event loop; caller: whose state was read at the call."""
        hold = await self.aturn(terms)
        try:
            return await aone(self.queue, request, terms, caller)
        finally:
            self.turns.leave(hold)


class _OneMethod:
    """The queue of one batched method, as `Batching` calls it."""

    def __init__(self, queue: BatchQueue, name: str) -> None:
        self._queue, self._name = queue, name
        self.shutdown, self.health, self.stats = queue.shutdown, queue.health, queue.stats

    def __call__(self, request: Any, **terms: Any) -> Any:
        return self._queue(BATCH, self._name, request, **terms)

    def submit(self, request: Any, **terms: Any) -> Future[Any]:
        return self._queue.submit(BATCH, self._name, request, **terms)

    def try_submit(self, request: Any, **terms: Any) -> Future[Any]:
        return self._queue.try_submit(BATCH, self._name, request, **terms)

    def infer(self, request: Any, **terms: Any) -> Any:
        return self._queue.infer(BATCH, self._name, request, **terms)


class IsolatedObject:
    """Stands for an object in an isolated worker. Made by `guard(..., isolation=...)`."""

    __slots__ = ("__weakref__", "_onelane_lane")

    _onelane_lane: _Lent
    _onelane_is_proxy = True
    _onelane_cell = None

    def __init__(self, lent: _Lent) -> None:
        object.__setattr__(self, "_onelane_lane", lent)

    def __getattr__(self, name: str) -> Any:
        lent = _lent(self)
        if name in lent.members:
            return IsolatedMethod(self, name)
        if name.startswith("__"):
            raise AttributeError(name)
        own = OWN.get(name)
        if own is not None:
            return functools.partial(own, self)
        return _result(lent, name, lent.call("get", name))

    def __setattr__(self, name: str, value: Any) -> None:
        _lent(self).call("set", name, value)

    def __delattr__(self, name: str) -> None:
        _lent(self).call("delete", name)

    def _onelane_aget(self, name: str) -> Coroutine[Any, Any, Any]:
        return self._onelane_got(name, _lent(self).queue.executor.caller())

    async def _onelane_got(self, name: str, caller: Caller) -> Any:
        lent = _lent(self)
        if name in lent.members or name in OWN:
            return getattr(self, name)
        return _result(lent, name, await lent.acall("get", name, caller=caller))

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        close(self)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *error: object) -> None:
        await aclose(self)

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
    members = {name: _special(name) for name in (*SPECIAL, "__iter__") if name in lent.members}
    kind = type("IsolatedObject", (IsolatedObject,), {"__slots__": (), **members})
    made: IsolatedObject = kind(lent)
    lent.root = weakref.ref(made)
    return made


class IsolatedMethod:
    """A method of an object in an isolated worker."""

    def __init__(self, proxy: IsolatedObject, name: str, options: Options | None = None) -> None:
        self._proxy, self._name, self._options = proxy, name, options
        self._member: Member = _lent(proxy).members[name]
        self.__name__, self.__doc__ = name, self._member.doc

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lent = _lent(self._proxy)
        if self._member.kind == "coroutine":
            return self.acall(*args, **kwargs)
        if self._member.kind.endswith("stream"):
            return self._stream(args, kwargs)
        terms = self._terms()
        batching = lent.batched.get(self._name)
        if batching is not None:
            alone = functools.partial(self._alone, terms)
            return batching.call(alone, args, kwargs, lent, terms)
        return self._alone(terms, *args, **kwargs)

    def options(
        self,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: Priority = "normal",
        wait: bool = True,
    ) -> IsolatedMethod:
        """Return the method with terms for its calls; as of a method of any guarded object."""
        return IsolatedMethod(self._proxy, self._name, options(timeout, deadline, priority, wait))

    def _terms(self) -> Terms:
        return NORMAL if self._options is None else self._options.begin()

    def _alone(self, terms: Terms, /, *args: Any, **kwargs: Any) -> Any:
        lent = _lent(self._proxy)
        result = lent.call("call", self._name, args, kwargs, terms=terms)
        return _result(lent, self._name, result, self._proxy)

    def acall(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call the method from an event loop; the caller's state is read here, at the call."""
        caller = _lent(self._proxy).queue.executor.caller()
        return self._acall(caller, self._terms(), args, kwargs)

    async def _acall(
        self, caller: Caller, terms: Terms, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        lent = _lent(self._proxy)
        if self._member.kind.endswith("stream"):
            return self._stream(args, kwargs)
        batching = lent.batched.get(self._name)
        alone = functools.partial(self._aalone, caller, terms)
        if batching is not None:
            return await batching.acall(alone, args, kwargs, lent, terms, caller)
        return await alone(*args, **kwargs)

    async def _aalone(self, caller: Caller, terms: Terms, /, *args: Any, **kwargs: Any) -> Any:
        lent = _lent(self._proxy)
        request = ("call", self._name, args, kwargs)
        result = await lent.acall(*request, terms=terms, caller=caller)
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

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        return self._anext(self._lent.queue.executor.caller())

    async def _anext(self, caller: Caller) -> Any:
        if self._over:
            raise StopAsyncIteration
        lent = self._lent
        ask: Callable[..., Awaitable[Any]]
        if self._hold is None:
            ask = functools.partial(lent.acall, caller=caller)
        else:
            if not self._held:
                self._held.append(await lent.turns.wait_async(lent.turns.take(self._hold)))
            ask = functools.partial(caller.read, lent.queue.infer)
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
    for name, size in sizes.items():
        lent.batched[name] = Batching(_OneMethod(queue, name), lent.members[name].first, size)
    return _proxy(lent)


__all__ = ["IsolatedMethod", "IsolatedObject", "IsolatedStream", "guard"]
