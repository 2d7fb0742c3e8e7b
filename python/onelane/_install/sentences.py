"""sentence-transformers: `encode` and `predict` become batches; the rest of a model's life is the
worker's.

Public methods are replaced, on the library's classes: `__init__`, `encode`, `predict`,
`preprocess`, `save`, `_apply` (what `to`, `half` and `cpu` go through), copying, and destruction.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import Any

from onelane import _keys
from onelane._install.batches import Batches, Run, is_text
from onelane._install.patches import Patches
from onelane._install.place import Place
from onelane._install.release import Releaser
from onelane._lengths import ROWS
from onelane._shaping import shaping

# Arguments that say how results are handed over, not what they are.
_HANDING_OVER = ("convert_to_numpy", "convert_to_tensor", "show_progress_bar", "chunk_size")
# Calibrated over all texts of one call.
_CALIBRATED = ("int8", "uint8")


class Sentences:
    """Patches the classes of sentence-transformers as their modules are imported."""

    MODULES = (
        "sentence_transformers.base.model",
        "sentence_transformers.sentence_transformer.model",
        "sentence_transformers.cross_encoder.model",
        "sentence_transformers.sparse_encoder.model",
        "sentence_transformers.multi_vector_encoder.model",
    )

    def __init__(self, place: Place, patches: Patches, releaser: Releaser) -> None:
        self._place, self._patches, self._releaser = place, patches, releaser
        self._lock = threading.Lock()
        self._batches: weakref.WeakKeyDictionary[Any, dict[str, Batches]] = (
            weakref.WeakKeyDictionary()
        )

    def patch(self, module: ModuleType) -> None:
        """Patch what one of `MODULES` defines."""
        wrap = self._patches.wrap
        for name, method, around in (
            ("SentenceTransformer", "encode", self._encode),
            ("CrossEncoder", "predict", self._predict),
            ("SparseEncoder", "encode", self._whole),
            ("MultiVectorEncoder", "encode", self._whole),
        ):
            kind = getattr(module, name, None)
            if kind is not None and kind.__module__ == module.__name__:
                wrap(kind, method, around)
        base = getattr(module, "BaseModel", None)
        if base is not None and base.__module__ == module.__name__:
            wrap(base, "__init__", self._made)
            wrap(base, "preprocess", self._preprocess)
            for name in ("save", "save_pretrained"):
                wrap(base, name, self._saved)
            patch_module_class(base, self._place, self._patches, self._releaser)

    def batches(self) -> list[Batches]:
        """Return the batches of all models that live."""
        with self._lock:
            return [one for of_model in self._batches.values() for one in of_model.values()]

    def _of(self, model: Any, method: str) -> Batches:
        with self._lock:
            of_model = self._batches.setdefault(model, {})
            if method not in of_model:
                of_model[method] = Batches(model, method, self._place)
            return of_model[method]

    # --- Methods ------------------------------------------------------------------------------

    def _made(self, original: Callable[..., None]) -> Callable[..., None]:
        place, signature = self._place, inspect.signature(original)

        def __init__(model: Any, *args: Any, **kwargs: Any) -> None:
            try:
                device = signature.bind(model, *args, **kwargs).arguments.get("device")
            except TypeError:
                device = None
            if place.is_here or (device is not None and not place.means(device)):
                original(model, *args, **kwargs)
            else:
                place.run(original, model, *args, **kwargs)

        return __init__

    def _saved(self, original: Callable[..., Any]) -> Callable[..., Any]:
        place = self._place

        def save(model: Any, *args: Any, **kwargs: Any) -> Any:
            if not place.holds(model):
                return original(model, *args, **kwargs)
            return place.run(original, model, *args, **kwargs)

        return save

    def _preprocess(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def preprocess(model: Any, *args: Any, **kwargs: Any) -> Any:
            features = original(model, *args, **kwargs)
            shape = shaping(model)
            return features if shape is None else shape.pad(features, model.tokenizer)

        return preprocess

    def _whole(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Calls whose results are sparse or ragged: each by itself, on the worker."""
        place, signature = self._place, inspect.signature(original)

        def encode(model: Any, *args: Any, **kwargs: Any) -> Any:
            call = _bound(signature, model, args, kwargs)
            if place.is_here or not place.holds(model) or _is_elsewhere(call):
                return original(model, *args, **kwargs)
            return place.run_whole(original, model, *args, **kwargs)

        return encode

    def _encode(self, original: Callable[..., Any]) -> Callable[..., Any]:
        return self._batched(original, "encode", _EncodeCall)

    def _predict(self, original: Callable[..., Any]) -> Callable[..., Any]:
        return self._batched(original, "predict", _PredictCall)

    def _batched(
        self, original: Callable[..., Any], method: str, kind: type[_Call]
    ) -> Callable[..., Any]:
        place, signature = self._place, inspect.signature(original)
        first = list(signature.parameters)[1]

        def batched(model: Any, *args: Any, **kwargs: Any) -> Any:
            if place.is_here or not place.holds(model):
                return original(model, *args, **kwargs)
            bound = _bound(signature, model, args, kwargs)
            if _is_elsewhere(bound):
                return original(model, *args, **kwargs)
            call = kind.read(model, first, bound)
            if call is not None:
                run = call.on_worker(original)
                results = self._of(model, method).call(call.items, call.key, call.most_rows, run)
                if results is not None:
                    return call.finish(results)
            return place.run_whole(original, model, *args, **kwargs)

        return batched


def patch_module_class(kind: Any, place: Place, patches: Patches, releaser: Releaser) -> None:
    """Have modules of a class moved, copied and freed on the worker."""

    def applied(original: Callable[..., Any]) -> Callable[..., Any]:
        def _apply(module: Any, *args: Any, **kwargs: Any) -> Any:
            if place.is_here:
                return original(module, *args, **kwargs)
            # The weights that are replaced are freed there, too.
            return place.run(original, module, *args, **kwargs)

        return _apply

    patches.wrap(kind, "_apply", applied)
    if "__deepcopy__" not in vars(kind):
        patches.add(kind, "__deepcopy__", _deepcopy(place))
    if "__del__" not in vars(kind):
        patches.add(kind, "__del__", releaser.destructor())


def _deepcopy(place: Place) -> Callable[[Any, Any], Any]:
    import copy

    def copied(module: Any, memo: Any) -> Any:
        # What `copy.deepcopy` does for a class without a method for it.
        make, args, state = module.__reduce_ex__(4)[:3]
        made = make(*args)
        memo[id(module)] = made
        state = copy.deepcopy(state, memo)
        if hasattr(made, "__setstate__"):
            made.__setstate__(state)
        else:
            made.__dict__.update(state)
        return made

    def __deepcopy__(module: Any, memo: Any) -> Any:
        if place.is_here or not place.holds(module):
            return copied(module, memo)
        return place.run(copied, module, memo)

    return __deepcopy__


def _bound(
    signature: inspect.Signature, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    """Return a call's arguments by name, defaults included; None: the library will refuse it."""
    try:
        bound = signature.bind(model, *args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return bound.arguments


def _is_elsewhere(bound: dict[str, Any] | None) -> bool:
    """Whether a call goes to processes of the library's own."""
    if bound is None:
        return False
    return bound.get("pool") is not None or isinstance(bound.get("device"), (list, tuple))


class _Call:
    """A call that can share a batch: its texts, what must be equal, how results are handed over."""

    items: list[Any]
    key: Hashable
    most_rows: int

    def __init__(self, first: str, bound: dict[str, Any], items: list[Any], single: bool) -> None:
        self.items, self.single = items, single
        self._as_tensor = bool(bound.get("convert_to_tensor"))
        self._as_numpy = bool(bound.get("convert_to_numpy")) and not self._as_tensor
        rest = {
            name: value
            for name, value in list(bound.items())[1:]
            if name not in (first, *_HANDING_OVER, "device", "pool")
        }
        # The library's `**kwargs`, flat.
        self._more = rest.pop("kwargs", {})
        self._rest = rest
        self.most_rows = max(1, min(int(bound.get("batch_size", ROWS[-1])), ROWS[-1]))

    @classmethod
    def read(cls, model: Any, first: str, bound: dict[str, Any] | None) -> _Call | None:
        """Return the call; None: it has to be made by itself."""
        if bound is None or bound.get("show_progress_bar") or bound.get("device") is not None:
            return None
        batch_size = bound.get("batch_size", 1)
        if not isinstance(batch_size, int) or batch_size < 1:
            return None
        value = bound[first]
        single = bool(model.is_singular_input(value))
        items = [value] if single else list(value)
        if not items or not all(map(is_text, items)):
            return None
        call = cls(first, bound, items, single)
        try:
            call.key = call._key(model)
            hash(call.key)
        except TypeError:
            # An argument that cannot be compared.
            return None
        return call

    def _key(self, model: Any) -> Hashable:
        return (
            _keys.of_value(self._rest),
            _keys.of_value(self._more),
            getattr(model, "default_prompt_name", None),
            getattr(model, "max_seq_length", None),
        )

    def on_worker(self, original: Callable[..., Any]) -> Run:
        """Return what runs a batch of such calls."""
        # The call itself is not kept: it has the texts.
        named = {**self._rest, **self._more}

        def run(model: Any, items: list[Any]) -> Any:
            made = original(model, items, show_progress_bar=False, convert_to_tensor=True, **named)
            return made.detach().cpu()

        return run

    def finish(self, results: list[Any]) -> Any:
        """Return what the caller asked for."""
        import torch

        if self._as_tensor:
            return results[0] if self.single else torch.stack(results)
        if self._as_numpy:
            rows = torch.stack(results)
            # NumPy has no bfloat16.
            array = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
            return array[0] if self.single else array
        return results[0] if self.single else results


class _EncodeCall(_Call):
    @classmethod
    def read(cls, model: Any, first: str, bound: dict[str, Any] | None) -> _Call | None:
        if bound is not None and (
            bound.get("output_value", "sentence_embedding") != "sentence_embedding"
            or bound.get("precision") in _CALIBRATED
        ):
            return None
        return super().read(model, first, bound)

    def _key(self, model: Any) -> Hashable:
        # Set with the call, so that callers with another one share no batch.
        if "truncate_dim" in self._rest and self._rest["truncate_dim"] is None:
            self._rest["truncate_dim"] = model.truncate_dim
        return super()._key(model)


class _PredictCall(_Call):
    def finish(self, results: list[Any]) -> Any:
        if self._as_numpy:
            results = [result.float() for result in results]
        return super().finish(results)


__all__ = ["Sentences", "patch_module_class"]
