"""Where a served model comes from: an object, what makes it, a directory, or a guarded object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from onelane import _factory, _isolation
from onelane._executor import DeviceExecutor
from onelane._proxy import Guarded, cell_of, lane_of
from onelane._serve.bridge import Loaded
from onelane._serve.encoder import Encoder
from onelane._serve.families import model_of
from onelane._serve.predictor import Predictor
from onelane._serve.tensors import LoadedPredictor
from onelane._training import is_module

_MODELS = (Encoder, Predictor)
_NEITHER = "is neither a directory nor an import path like 'package.module:load'"


class Source:
    """Loads one model, on its worker or in a child."""

    def __init__(self, given: Any, device: str) -> None:
        self.given, self.device = given, device
        # What was loaded to be described, for the first engine.
        self._kept: Encoder | Predictor | None = None

    @property
    def __name__(self) -> str:
        given = self.given
        return getattr(given, "__name__", None) or type(given).__name__

    def __call__(self) -> Loaded | LoadedPredictor:
        """Return the model as a queue has it."""
        kept, self._kept = self._kept, None
        model = self._load() if kept is None else kept
        if isinstance(model, Predictor):
            return LoadedPredictor(model, self.device)
        return Loaded(model)

    def describe(self) -> dict[str, Any]:
        """Return what the server has to know, and keep what was loaded."""
        self._kept = self._load()
        return self._kept.facts()

    def forget(self) -> None:
        """Drop what was kept; on the worker."""
        self._kept = None

    def _load(self) -> Encoder | Predictor:
        given = self.given
        if isinstance(given, Guarded):
            given = cell_of(given).get()
        elif isinstance(given, Path):
            given = _from_directory(given, self.device)
        elif isinstance(given, _isolation.ByName):
            given = given.find()
            given = given() if _is_named_factory(given) else given
        elif _is_factory(given):
            given = given()
        return model_of(given, self.device)


class Describing:
    """Describes a source where it would be loaded: the model of a queue that is asked once."""

    def __init__(self, source: Source) -> None:
        self._source = source

    __name__ = "a served model"

    def __call__(self) -> Any:
        return lambda _: self._source.describe()


def source_of(given: Any, device: str) -> tuple[Source, DeviceExecutor | None]:
    """Return the source of what `serve` was given, and its executor if it brings one."""
    if isinstance(given, Guarded):
        home = lane_of(given).executor
        assert isinstance(home, DeviceExecutor)
        return Source(given, home.device), home
    if isinstance(given, os.PathLike) or (isinstance(given, str) and Path(given).is_dir()):
        if not Path(given).is_dir():
            raise ValueError(f"{os.fspath(given)!r} {_NEITHER}")
        return Source(Path(given).absolute(), device), None
    if isinstance(given, str):
        if ":" not in given:
            raise ValueError(f"{given!r} {_NEITHER}")
        given = _isolation.ByName(given)
    return Source(given, device), None


def _is_factory(given: Any) -> bool:
    return not isinstance(given, _MODELS) and _factory.is_factory_of_object(given, None)


def _is_named_factory(found: Any) -> bool:
    """Whether what an import path names makes the model: it may be an object that does."""
    if isinstance(found, _MODELS) or is_module(found) or not callable(found):
        return False
    return _is_factory(found) or _factory.takes_nothing(found)


def _from_directory(path: Path, device: str) -> Any:
    """Load a directory: a cross-encoder if its model classifies, else an embedding model."""
    import json

    import sentence_transformers

    try:
        config = json.loads((path / "config.json").read_text())
    except FileNotFoundError:
        config = {}
    names = config.get("architectures") or ()
    if any(str(name).endswith("ForSequenceClassification") for name in names):
        return sentence_transformers.CrossEncoder(str(path), device=device)
    return sentence_transformers.SentenceTransformer(str(path), device=device)


__all__ = ["Describing", "Source", "source_of"]
