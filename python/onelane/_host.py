"""The host of a guarded object in a child process: it has the object and its open streams there.

`HostRequests` is on both sides: the parent reads requests with it, and the child runs them.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from onelane import _devices, _isolation, _keys, _training, _tree
from onelane._calls import CallCollator
from onelane._collate import Collator, Defaults, Input, Target, place
from onelane._responses import leave

BATCH = "batch"
SPECIAL = ("__call__", "__len__", "__getitem__", "__setitem__", "__delitem__", "__contains__")


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
            if name.startswith("__") and name not in (*SPECIAL, "__iter__"):
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


@dataclass(frozen=True)
class HostRequests(Defaults):
    """What the requests of an isolated object are; see `_requests.Requests`.

    sizes: the batched methods, with the most items in a batch.
    """

    sizes: Mapping[str, int]

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
        if args[0] != BATCH:
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


__all__ = ["BATCH", "SPECIAL", "Host", "HostFactory", "HostRequests", "Lost", "Member", "StreamId"]
