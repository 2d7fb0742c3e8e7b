"""Models of tensors as `serve` knows them, whatever runs them."""

from __future__ import annotations

import codecs
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onelane import _names
from onelane._serve.arrays import DATATYPES
from onelane._training import is_module

Declared = Mapping[str, tuple[str, Sequence[int]]]


@dataclass
class Predictor:
    """A model of tensors for `serve`: any callable, over the Open Inference Protocol.

    ::

        def load():
            model = ...                                    # lives on the worker
            def run(x, scale):
                return model(x) * scale[:, None]
            return onelane.Predictor(
                run,
                inputs={"x": ("FP32", [-1, 4]), "scale": ("FP32", [-1])},
                outputs={"y": ("FP32", [-1, 4])},
            )

        onelane.serve({"mine": load}, device="mps")

    run: called on the worker with one array an input, by its name where its parameters have such
        names; one input alone may have another name. Returns an array, a tuple of them, or a dict
        by name. A callable that `serve` is given by itself is `Predictor(callable)`.
    inputs, outputs: what calls bring and get, by name: a type (`"BOOL"`, `"UINT8"` to `"UINT64"`,
        `"INT8"` to `"INT64"`, `"FP16"`, `"BF16"`, `"FP32"`, `"FP64"`, `"BYTES"`) and a shape, whose
        -1 is any number. Calls that bring something else are refused, and outputs become what is
        declared. None: not declared; any inputs are taken, and the outputs are called as in the
        dict, or `output-0`, `output-1` and so on.
    batch: whether the first dimension of each input and output counts rows, so that rows of many
        calls may run together: one call of `run` gets rows of several clients. False: `run` gets
        each call by itself. Undeclared inputs that have no number of rows in common are such a
        call, too.
    tensors: `"numpy"`, or `"torch"` for tensors on the device, in inference mode; default: what
        `run` takes, which for a PyTorch module is tensors.
    encoding: of BYTES, which are texts then, in arrays of objects; None leaves them `bytes`.
    """

    run: Callable[..., Any]
    inputs: Declared | None = None
    outputs: Declared | None = None
    batch: bool = True
    tensors: Literal["numpy", "torch"] | None = None
    encoding: str | None = "utf-8"

    def __post_init__(self) -> None:
        if not callable(self.run):
            raise TypeError(f"Predictor(run=...): a {type(self.run).__name__} cannot be called")
        if inspect.iscoroutinefunction(self.run):
            raise TypeError("Predictor(run=...): an async function: serve() needs a plain one")
        if not isinstance(self.batch, bool):
            raise TypeError(f"Predictor(batch={self.batch!r}): use True or False")
        if self.tensors not in (None, "numpy", "torch"):
            raise ValueError(f"Predictor(tensors={self.tensors!r}): use 'numpy' or 'torch'")
        if self.encoding is not None:
            codecs.lookup(self.encoding)
        for kind in ("inputs", "outputs"):
            _check(kind, getattr(self, kind))

    def facts(self) -> dict[str, Any]:
        """Return what the server has to know of it: plain values."""
        encoding = self.encoding
        return {
            "inputs": _listed(self.inputs),
            "outputs": _listed(self.outputs),
            "batch": self.batch,
            # What is no text is refused before it gets to the worker.
            "utf8": encoding is not None and codecs.lookup(encoding).name == "utf-8",
        }

    def wants_torch(self) -> bool:
        """Whether it is called with PyTorch's tensors."""
        return is_module(self.run) if self.tensors is None else self.tensors == "torch"


def _check(kind: str, declared: Any) -> None:
    if declared is None:
        return
    if not isinstance(declared, Mapping) or not declared:
        raise TypeError(
            f"Predictor({kind}={declared!r}): give a dict of types and shapes by name, like "
            f"{{'x': ('FP32', [-1, 4])}}, or None"
        )
    for name, given in declared.items():
        try:
            datatype, shape = given
            sizes = [*shape]
        except (TypeError, ValueError):
            datatype, sizes = None, [None]
        if not isinstance(datatype, str) or any(type(size) is not int for size in sizes):
            raise TypeError(
                f"Predictor({kind}={{{name!r}: {given!r}}}): give a type and a shape, like "
                f"('FP32', [-1, 4])"
            )
        if datatype not in DATATYPES:
            said = _names.nearest(datatype, DATATYPES) or f": use one of {', '.join(DATATYPES)}"
            raise ValueError(
                f"Predictor({kind}={{{name!r}: {given!r}}}): there is no type {datatype!r}{said}"
            )


def _listed(declared: Declared | None) -> list[tuple[str, str, list[int]]]:
    given = {} if declared is None else declared
    return [(str(name), datatype, [*shape]) for name, (datatype, shape) in given.items()]


__all__ = ["Declared", "Predictor"]
