"""ultralytics: predicting, tracking and embedding on the worker; results are on the host.

A model has one predictor for all threads, so its calls are one after the other on every device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from onelane._install.patches import Patches
from onelane._install.place import Place
from onelane._install.release import Releaser
from onelane._install.sentences import patch_module_class
from onelane.errors import ForkedProcess, QueueClosed

_END = object()


class Ultralytics:
    """Patches ultralytics' models as their module is imported."""

    MODULES = ("ultralytics.engine.model",)

    def __init__(self, place: Place, patches: Patches, releaser: Releaser) -> None:
        self._place, self._patches, self._releaser = place, patches, releaser

    def patch(self, module: ModuleType) -> None:
        """Patch what one of `MODULES` defines."""
        kind = getattr(module, "Model", None)
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            for name in ("predict", "track", "embed"):
                self._patches.wrap(kind, name, self._called)
            patch_module_class(kind, self._place, self._patches, self._releaser)

    def _called(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place = self._place

        def called(model: Any, *args: Any, **kwargs: Any) -> Any:
            if place.is_here or not _uses(place, model, kwargs):
                return original(model, *args, **kwargs)
            results, is_stream = place.run(on_worker, model, *args, **kwargs)
            return _Stream(place, results) if is_stream else results

        def on_worker(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
            results = original(model, *args, **kwargs)
            if hasattr(type(results), "__next__"):
                return map(_on_host, results), True
            is_list = isinstance(results, (list, tuple))
            return list(map(_on_host, results)) if is_list else _on_host(results), False

        return called


def _uses(place: Place, model: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call uses the device: by its argument, the model's settings, or its weights."""
    device = kwargs.get("device")
    if device is None:
        device = getattr(model, "overrides", {}).get("device")
    return place.holds(model) if device is None else place.means(device)


def _on_host(result: Any) -> Any:
    """Return one image's results, or an embedding, with their tensors on the host."""
    return result.cpu() if callable(getattr(result, "cpu", None)) else result


class _Stream(Iterator[Any]):
    """The results of `stream=True`: each is made on the worker, when it is asked for."""

    def __init__(self, place: Place, results: Iterator[Any]) -> None:
        self._place, self._box = place, [results]

    def __next__(self) -> Any:
        if not self._box:
            raise StopIteration
        result = self._place.run(next, self._box[0], _END)
        if result is _END:
            self.close()
            raise StopIteration
        return result

    def close(self) -> None:
        """Drop what makes them, on the worker."""
        if self._box:
            self._place.run(self._box.clear)

    def __del__(self) -> None:
        # Without a worker the process or the device ends.
        with contextlib.suppress(QueueClosed, ForkedProcess, RuntimeError):
            if self._box:
                self._place.home.submit(self._box.clear)


__all__ = ["Ultralytics"]
