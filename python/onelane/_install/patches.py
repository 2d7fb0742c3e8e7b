"""What was replaced in classes of other libraries, and how it is put back.

Classes are changed, never objects: `isinstance`, pickling and subclasses see nothing of it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from onelane._modules import imported

_ABSENT = object()
# Marks what takes an original's place.
_MARK = "__onelane_original__"


class Patches:
    """Replacements that are in force, in the order in which they were made."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def wrap(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Any]) -> bool:
        """Replace a method by `make(original)`; says whether the class has such a method.

        An inherited method is replaced on this class alone. Class methods stay class methods.
        """
        present = vars(owner).get(name, _ABSENT)
        found = present if present is not _ABSENT else _inherited(owner, name)
        if found is None:
            return False
        kind = type(found) if isinstance(found, (classmethod, staticmethod)) else None
        original = found.__func__ if kind else found
        made = make(original)
        functools.update_wrapper(made, original)
        setattr(made, _MARK, original)
        self._undo.append((owner, name, present))
        setattr(owner, name, kind(made) if kind else made)
        return True

    def add(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        """Give a class a method; one that it has already is the caller's to call."""
        self._undo.append((owner, name, vars(owner).get(name, _ABSENT)))
        setattr(owner, name, method)

    def undo(self) -> None:
        """Put everything back, the last first."""
        while self._undo:
            owner, name, present = self._undo.pop()
            if present is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, present)


def _inherited(owner: type, name: str) -> Any:
    for base in owner.__mro__[1:]:
        if name in vars(base):
            return vars(base)[name]
    return None


class OnImport(importlib.abc.MetaPathFinder):
    """Calls functions when modules are imported; at once for those that are loaded already."""

    def __init__(self) -> None:
        self._wanted: dict[str, Callable[[ModuleType], object]] = {}
        # Modules that are being looked for now: the other finders are asked, not this one again.
        self._asking: set[str] = set()

    def when(self, name: str, function: Callable[[ModuleType], object]) -> None:
        """Have `function(module)` called when a module has been imported."""
        module = imported(name)
        if module is not None:
            function(module)
            return
        self._wanted[name] = function
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Forget what was wanted."""
        self._wanted.clear()
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib`."""
        if name not in self._wanted or name in self._asking:
            return None
        self._asking.add(name)
        try:
            for finder in sys.meta_path:
                find = getattr(finder, "find_spec", None)
                if find is None or finder is self:
                    continue
                spec: importlib.machinery.ModuleSpec | None = find(name, path, target)
                if spec is not None and spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._wanted.pop(name))
                    return spec
        finally:
            self._asking.discard(name)
        return None


class _Loader(importlib.abc.Loader):
    """Loads a module as its own loader does, then calls a function with it."""

    def __init__(self, loader: Any, then: Callable[[ModuleType], object]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module looks as if nobody had been in between.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then(module)


__all__ = ["OnImport", "Patches"]
