"""Fast tokenizers get a lock each, on every device.

A fast tokenizer keeps padding and truncation as state, sets them for each call, and then encodes:
two threads that ask for different padding get each other's, without an exception.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from onelane._install.patches import Patches

# Whatever sets that state, or reads it. Those of one tokenizer call each other: the lock is entered
# again.
_METHODS = (
    "__call__", "encode", "encode_plus", "batch_encode_plus", "pad", "_encode_plus",
    "_batch_encode_plus", "set_truncation_and_padding", "apply_chat_template",
)  # fmt: skip


class Locks:
    """A lock for each tokenizer. It is not an attribute: a tokenizer is pickled and copied."""

    MODULES = (
        "transformers.tokenization_utils_tokenizers",
        "transformers.tokenization_utils_fast",
    )

    def __init__(self, patches: Patches) -> None:
        self._patches = patches
        self._mine = threading.Lock()
        # By address: a tokenizer may be compared by its content, and need not be hashable.
        self._locks: dict[int, threading.RLock] = {}

    def patch(self, module: ModuleType) -> None:
        """Patch what one of `MODULES` defines."""
        for name in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            kind = vars(module).get(name)
            if isinstance(kind, type) and kind.__module__ == module.__name__:
                for method in _METHODS:
                    self._patches.wrap(kind, method, self._locked)

    def of(self, tokenizer: Any) -> threading.RLock:
        """Return the lock of a tokenizer."""
        lock = self._locks.get(id(tokenizer))
        if lock is None:
            with self._mine:
                lock = self._locks.get(id(tokenizer))
                if lock is None:
                    lock = self._locks[id(tokenizer)] = threading.RLock()
                    weakref.finalize(tokenizer, self._locks.pop, id(tokenizer), None)
        return lock

    def _locked(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def locked(tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
            with self.of(tokenizer):
                return original(tokenizer, *args, **kwargs)

        return locked


__all__ = ["Locks"]
