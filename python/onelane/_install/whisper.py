"""openai-whisper: loading, transcribing and decoding on the worker.

A transcription is one call there: it holds the worker until it is done.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from onelane._install.patches import Patches
from onelane._install.place import Place
from onelane._install.release import Releaser
from onelane._install.sentences import patch_module_class

_METHODS = ("transcribe", "decode", "detect_language")


class Whisper:
    """Patches whisper as its modules are imported."""

    MODULES = ("whisper", "whisper.model")

    def __init__(self, place: Place, patches: Patches, releaser: Releaser) -> None:
        self._place, self._patches, self._releaser = place, patches, releaser

    def patch(self, module: ModuleType) -> None:
        """Patch what one of `MODULES` defines."""
        kind = getattr(module, "Whisper", None)
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            for name in _METHODS:
                self._patches.wrap(kind, name, self._called)
            patch_module_class(kind, self._place, self._patches, self._releaser)
        if "load_model" in vars(module):
            # The same functions, called with the model.
            for name in _METHODS:
                if name in vars(module):
                    self._patches.wrap(module, name, self._called)
            self._patches.wrap(module, "load_model", self._loaded)

    def _loaded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place, signature = self._place, inspect.signature(original)

        def load_model(*args: Any, **kwargs: Any) -> Any:
            try:
                device = signature.bind(*args, **kwargs).arguments.get("device")
            except TypeError:
                device = None
            # Without a device it is the library's choice: CUDA or the host.
            means = place.kind == "cuda" if device is None else place.means(device)
            if place.is_here or not means:
                return original(*args, **kwargs)
            return place.run(original, *args, **kwargs)

        return load_model

    def _called(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place = self._place

        def called(model: Any, *args: Any, **kwargs: Any) -> Any:
            if place.is_here or not place.holds(model):
                return original(model, *args, **kwargs)
            return place.run_whole(original, model, *args, **kwargs)

        return called


__all__ = ["Whisper"]
