"""The model on its worker: built or moved there, called there, dropped there."""

from __future__ import annotations

import contextvars
import copy
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from onelane import _devices, _failure, _leave, _modes, _onelane, _shapes, _training, _worker_loop
from onelane._collate import Collator, Input
from onelane._each_collator import EachCollator
from onelane._graphs import CudaRecorder, Graphs
from onelane._staging import Staging
from onelane._tensor_collator import TensorCollator


class Payload(NamedTuple):
    """One request: its input, and what of the caller's thread goes with it."""

    input: Input
    modes: _modes.Modes
    context: contextvars.Context


class Runner:
    """Runs batches of one model on one worker."""

    def __init__(self, model: Any, build: Build) -> None:
        self._model, self._collator = model, build.collator
        self.device, self.to_cpu = build.device, build.to_cpu
        self.copy_outputs, self._costed = build.copy_outputs, build.costed
        self._wrap, self._elements = build.wrap, build.elements
        # Looks at what batches raise: an error may say that the whole device is lost.
        self._note = build.note
        self._collect = _devices.collector(build.device)
        self.torch_device = build.torch_device
        self.modes: _modes.Modes = None
        # Where each shape costs memory, they are counted.
        self._counts_shapes = build.device.partition(":")[0] == "mps"
        self._batches = build.batches and _training.is_module(model)
        # A module that was given has been looked at where it was.
        self._was_training = build.given_module and bool(getattr(model, "training", False))
        if self._batches and not build.given_module:
            self._warn_of_training()
        self.staging = None
        self.graphs = None
        if self.torch_device is not None and self.torch_device.type == "cuda":
            torch = sys.modules["torch"]
            self.staging = Staging(torch, self.torch_device)
            if build.cuda_graphs:
                self.graphs = Graphs(CudaRecorder(torch, self.torch_device), model)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model in the modes of the requests."""
        if self._counts_shapes:
            _shapes.note_inputs(self.device, id(self), (args, kwargs))
        if self.graphs is not None:
            return self.graphs(self.modes, args, kwargs)
        return _modes.call(self.modes, self._model, args, kwargs)

    def wrap(self, departure: _leave.Departure, value: Any) -> Any:
        """Let an object leave: a proxy of what can only live here, a host copy of others."""
        if not self.to_cpu:
            return value
        if self._wrap is not None and (_training.is_module(value) or isinstance(value, Iterator)):
            return self._wrap(departure, value)
        return _leave.host_copy(departure, value)

    def __call__(self, payloads: list[Payload]) -> tuple[list[Any], int]:
        """Run one batch; its requests agree about modes, and the first one's context is used."""
        collect = self._collect
        try:
            return self._run(payloads)
        except BaseException as error:
            if self._note is not None:
                self._note(error)
            # This frame goes with the exception.
            del self, payloads
            _failure.leave(error)
            raise
        finally:
            collect()

    def _check_training(self) -> None:
        """Warn of a module that has been put into training mode, each time that it is."""
        if self._model.training and not self._was_training:
            self._warn_of_training()
        self._was_training = self._model.training

    def _warn_of_training(self) -> None:
        said = _training.warning(self._model)
        if said is not None:
            warnings.warn(said, stacklevel=2)
        self._was_training = self._model.training

    def _run(self, payloads: list[Payload]) -> tuple[list[Any], int]:
        if self._batches:
            self._check_training()
        first = payloads[0]
        self.modes = first.modes
        inputs = [payload.input for payload in payloads]
        responses, padded = first.context.run(self._collator.run, self, inputs)
        if self._elements is not None:
            elements = sum(request.rows * request.length for request in inputs)
            self._elements.add(elements, padded * inputs[0].bucket)
        if self._costed:
            rows = sum(request.rows for request in inputs)
            cost = sum(request.cost for request in inputs)
            padded = cost * padded // rows if rows else cost
        return responses, padded

    def run_plain(
        self,
        tensors: list[Any],
        rows: list[int],
        modes: _modes.Modes,
        context: contextvars.Context | None,
    ) -> tuple[list[Any], int]:
        """Run one batch of plain tensors, which agree about modes."""
        collect = self._collect
        try:
            return self._run_plain(tensors, rows, modes, context)
        except BaseException as error:
            if self._note is not None:
                self._note(error)
            del self, tensors, rows, context
            _failure.leave(error)
            raise
        finally:
            collect()

    def _run_plain(
        self,
        tensors: list[Any],
        rows: list[int],
        modes: _modes.Modes,
        context: contextvars.Context | None,
    ) -> tuple[list[Any], int]:
        if self._batches:
            self._check_training()
        self.modes = modes
        context = contextvars.Context() if context is None else context
        assert isinstance(self._collator, TensorCollator)
        return context.run(self._collator.run_plain, self, tensors, rows)

    def prepared(
        self, tensor: Any, rows: int, modes: _modes.Modes, context: contextvars.Context | None
    ) -> Payload:
        """Make a payload of a plain tensor that shares a batch with other inputs."""
        context = contextvars.Context() if context is None else context
        return Payload(self._collator.prepare((tensor,), {})[0], modes, context)


class Build:
    """Makes the runners of a queue: called once on each worker."""

    def __init__(
        self,
        model: Any,
        *,
        factory: bool,
        device: str,
        collator: Collator,
        to_cpu: bool,
        copy_outputs: bool,
        cuda_graphs: bool,
        costed: bool = False,
        elements: _onelane.Elements | None = None,
        wrap: Callable[[_leave.Departure, Any], Any] | None = None,
        note: Callable[[BaseException], None] | None = None,
    ) -> None:
        if inspect.isasyncgenfunction(model):
            raise TypeError(
                f"{model.__name__} is an async generator, and a queue's model gives one answer: "
                f"guard() an object with such a method to stream from it"
            )
        self._model, self._factory = model, factory
        self.device, self.collator = device, collator
        self.to_cpu, self.copy_outputs, self.cuda_graphs = to_cpu, copy_outputs, cuda_graphs
        self.costed, self.wrap, self.elements = costed, wrap, elements
        self.note = note
        self.torch_device = _devices.torch_device(device)
        self.batches = not isinstance(collator, EachCollator)
        self.given_module = _training.is_module(model) and not factory
        self._used = False

    def __call__(self) -> Callable[[list[Payload]], tuple[list[Any], int]]:
        try:
            return self._runner()
        except BaseException as error:
            del self
            _failure.leave(error)
            raise

    def _runner(self) -> Runner:
        _devices.make_current(self.device)
        model = self._model
        if self._factory:
            with _devices.synchronous_loading():
                model = model()
            if not callable(model):
                raise TypeError(
                    f"the factory returned {type(model).__name__}, which cannot be called"
                )
            self.torch_device = _devices.torch_device(self.device)
        elif _training.is_module(model) and self._used:
            # Another worker has the module itself.
            model = copy.deepcopy(model)
        self._used = True
        if _training.is_module(model) and self.torch_device is not None:
            model = model.to(self.torch_device)
        if _worker_loop.is_async(model):
            model = _worker_loop.blocking(model)
        return Runner(model, self)
