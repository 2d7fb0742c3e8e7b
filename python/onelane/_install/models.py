"""transformers: loading, moving, generation and pipelines on the worker.

Calling a model itself, `model(**inputs)`, stays where the caller is: it may be training. Guard the
model, or use `generate`, a pipeline or sentence-transformers, to have it on the worker.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from onelane._install.patches import Patches
from onelane._install.place import Place
from onelane._install.release import Releaser
from onelane._install.sentences import patch_module_class


class Models:
    """Patches the classes of transformers as their modules are imported."""

    MODULES = (
        "transformers.modeling_utils",
        "transformers.generation.utils",
        "transformers.generation.continuous_batching.continuous_api",
        "transformers.pipelines.base",
        "transformers.tokenization_utils_base",
        "transformers.trainer",
    )

    def __init__(self, place: Place, patches: Patches, releaser: Releaser) -> None:
        self._place, self._patches, self._releaser = place, patches, releaser
        self._said: set[str] = set()

    def patch(self, module: ModuleType) -> None:
        """Patch what one of `MODULES` defines."""
        wrap = self._patches.wrap
        found = {
            name: kind
            for name, kind in vars(module).items()
            if isinstance(kind, type) and kind.__module__ == module.__name__
        }
        if "PreTrainedModel" in found:
            wrap(found["PreTrainedModel"], "from_pretrained", self._loaded)
            patch_module_class(found["PreTrainedModel"], self._place, self._patches, self._releaser)
        if "GenerationMixin" in found:
            wrap(found["GenerationMixin"], "generate", self._generate)
        if "ContinuousMixin" in found:
            for name in ("init_continuous_batching", "generate_batch"):
                wrap(found["ContinuousMixin"], name, self._refused)
        if "Pipeline" in found:
            wrap(found["Pipeline"], "__call__", self._pipeline)
        if "BatchEncoding" in found:
            wrap(found["BatchEncoding"], "to", self._moved)
        if "Trainer" in found:
            wrap(found["Trainer"], "train", self._trained)

    def _loaded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place = self._place

        def from_pretrained(kind: Any, *args: Any, **kwargs: Any) -> Any:
            named = kwargs.get("device_map")
            devices = named.values() if isinstance(named, Mapping) else [named]
            if (
                place.is_here
                or named is None
                or not (named == "auto" or any(place.means(device) for device in devices))
            ):
                # Onto the host, where any thread may.
                return original(kind, *args, **kwargs)
            return place.run(original, kind, *args, **kwargs)

        return from_pretrained

    def _generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place = self._place

        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            if not place.holds(model):
                return original(model, *args, **kwargs)
            return place.run_whole(on_worker, model, *args, **kwargs)

        def on_worker(model: Any, *args: Any, **kwargs: Any) -> Any:
            device = model.device
            args, kwargs = _moved_to(device, args), _moved_to(device, kwargs)
            # Called for each token: what waits for a batch goes by.
            processors = list(kwargs.pop("logits_processor", None) or ())
            kwargs["logits_processor"] = _processors([*processors, _LetBy(place)])
            return original(model, *args, **kwargs)

        return generate

    def _refused(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place = self._place

        def refused(model: Any, *args: Any, **kwargs: Any) -> Any:
            if place.holds(model):
                raise RuntimeError(
                    f"{original.__name__} starts a thread of its own that uses {place.name}, "
                    f"which belongs to onelane's worker: use generate(), or uninstall() first"
                )
            return original(model, *args, **kwargs)

        return refused

    def _pipeline(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place = self._place

        def __call__(pipeline: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            model = getattr(pipeline, "model", None)
            if not hasattr(model, "parameters") or not place.holds(model):
                return original(pipeline, inputs, *args, **kwargs)
            # A generator gives an iterator, which comes back as a stream of items.
            return place.run_whole(on_worker, pipeline, inputs, *args, **kwargs)

        def on_worker(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            made = original(pipeline, *args, **kwargs)
            # The library's iterator is not ready before it has been asked for by `iter`.
            return iter(made) if hasattr(type(made), "__next__") else made

        return __call__

    def _moved(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place, releaser, signature = self._place, self._releaser, inspect.signature(original)

        def to(encoding: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                device = signature.bind(encoding, *args, **kwargs).arguments.get("device")
            except TypeError:
                device = None
            if place.is_here or place.kind == "cpu" or not place.means(device):
                return original(encoding, *args, **kwargs)
            moved = place.run(original, encoding, *args, **kwargs)
            # Dropped anywhere, they are freed on the worker.
            releaser.take([value for value in moved.values() if hasattr(value, "device")])
            return moved

        return to

    def _trained(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place, said = self._place, self._said

        def train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            model = getattr(trainer, "model", None)
            if hasattr(model, "parameters") and place.holds(model) and "train" not in said:
                said.add("train")
                warnings.warn(
                    f"training runs on this thread, not on onelane's worker, and uses "
                    f"{place.name}: do not use other models there meanwhile",
                    stacklevel=2,
                )
            return original(trainer, *args, **kwargs)

        return train


class _LetBy:
    """A processor of logits that leaves them, and lets waiting batches run."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self._place.let_by()
        return scores


def _processors(processors: list[Any]) -> Any:
    from transformers import LogitsProcessorList

    return LogitsProcessorList(processors)


def _moved_to(device: Any, value: Any) -> Any:
    """Return arguments with their tensors on a device."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved_to(device, part) for part in value)
    if type(value) is dict:
        return {name: _moved_to(device, part) for name, part in value.items()}
    return value


__all__ = ["Models"]
