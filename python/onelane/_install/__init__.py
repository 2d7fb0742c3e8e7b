"""`onelane.install`: known libraries use a device through its worker, without a changed line.

Their classes are patched as they are imported, so `isinstance`, subclasses and pickling stay as
they are; `uninstall` takes everything back.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onelane import _devices, _names
from onelane._executor import DeviceExecutor, executor
from onelane._hygiene import Hygiene
from onelane._install.models import Models
from onelane._install.patches import OnImport, Patches
from onelane._install.place import Place
from onelane._install.release import Releaser
from onelane._install.sentences import Sentences
from onelane._install.tokenizers import Locks
from onelane._install.ultralytics import Ultralytics
from onelane._install.versions import FAMILIES, Family, UnknownVersion, check
from onelane._install.whisper import Whisper
from onelane._stats import QueueStats

# What an application may have set itself: then it stays.
_ENVIRONMENT = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}


@dataclass(frozen=True)
class Installed:
    """What `install` has done. `families`: the versions that it knows of what is here."""

    device: str
    families: tuple[Family, ...]
    _sentences: Sentences
    _releaser: Releaser
    hygiene: Hygiene | None

    def stats(self) -> list[QueueStats]:
        """Return the statistics of the queues of batched methods, of all models that live."""
        return [stats for batches in self._sentences.batches() for stats in batches.stats()]

    @property
    def unreleased(self) -> int:
        """Tensors of dropped models that others still hold."""
        return self._releaser.pending


class _Installation:
    """All that has to be taken back."""

    def __init__(
        self, home: DeviceExecutor, families: list[Family], idle_s: float | None, mark: int | None
    ) -> None:
        self.patches, self.imports = Patches(), OnImport()
        place = Place(home)
        releaser = Releaser(place)
        self._environment = {
            name: os.environ.get(name) for name in _ENVIRONMENT if name not in os.environ
        }
        for name in self._environment:
            os.environ[name] = _ENVIRONMENT[name]
        known = {family.library for family in families}
        sentences = Sentences(place, self.patches, releaser)
        if "transformers" in known:
            for patched in (Locks(self.patches), Models(place, self.patches, releaser)):
                for name in patched.MODULES:
                    self.imports.when(name, patched.patch)
        if "sentence-transformers" in known:
            for name in Sentences.MODULES:
                self.imports.when(name, sentences.patch)
        if "openai-whisper" in known:
            whisper = Whisper(place, self.patches, releaser)
            for name in Whisper.MODULES:
                self.imports.when(name, whisper.patch)
        if "ultralytics" in known:
            yolo = Ultralytics(place, self.patches, releaser)
            for name in Ultralytics.MODULES:
                self.imports.when(name, yolo.patch)
        cleaner = None
        if idle_s is not None and place.kind in ("mps", "cuda"):
            cleaner = Hygiene(home, idle_s, mark)
        self.said = Installed(place.name, tuple(families), sentences, releaser, cleaner)

    def undo(self) -> None:
        self.imports.stop()
        self.patches.undo()
        if self.said.hygiene is not None:
            self.said.hygiene.stop()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)


_switching = threading.Lock()
_present: _Installation | None = None


@_names.settings
def install(
    device: Any = None,
    *,
    skip: Iterable[str] = (),
    idle_s: float | None = 30.0,
    watermark: int | None = None,
) -> Installed:
    """Have known libraries use a device through its worker; no other line is changed.

    ::

        import onelane
        onelane.install("mps")                  # first, or: python -m onelane run app.py
        model = SentenceTransformer(path)       # as before, from here on
        model.encode("from any thread")

    device: a name or a `DeviceExecutor`. Default: `mps` where there is one, else `cuda`, else
        `cpu`.
    skip: libraries to leave alone, by their names on PyPI.
    idle_s, watermark: as for `hygiene`; `idle_s=None` leaves the allocator's caches alone.

    Models of sentence-transformers, transformers, openai-whisper and ultralytics that are on the
    device are made, moved, used and freed on its worker; concurrent `encode` and `predict` calls
    become batches, of a bounded set of shapes; results are host values. Fast tokenizers get a lock
    each, on every device. Training and plain calls of a model stay on the caller's thread.

    Called again for the same device it does nothing more. Raises `UnknownVersion` for a version of
    a library that it does not know, and `RuntimeError` if it is in force for another device.
    """
    global _present
    with _switching:
        home = device if isinstance(device, DeviceExecutor) else None
        name = home.device if home else _devices.canonical(device or _devices.default())
        if _present is not None:
            if _present.said.device == name:
                return _present.said
            raise RuntimeError(
                f"install({name!r}): it is in force for {_present.said.device!r}: call "
                f"uninstall() first"
            )
        if isinstance(skip, str):
            raise TypeError(f"skip={skip!r}: give a tuple of names: ({skip!r},)")
        left_out = set(skip)
        unknown = left_out - {family.library for family in FAMILIES}
        if unknown:
            libraries = [family.library for family in FAMILIES]
            first = sorted(unknown)[0]
            raise ValueError(
                f"skip: install() knows no library {first!r}{_names.nearest(first, libraries)}"
            )
        families = check(tuple(f for f in FAMILIES if f.library not in left_out))
        if not families:
            warnings.warn(
                "install() found none of the libraries that it knows: "
                + ", ".join(map(str, FAMILIES)),
                stacklevel=2,
            )
        _present = _Installation(home or executor(name), families, idle_s, watermark)
        return _present.said


def uninstall() -> None:
    """Take `install` back: the libraries' classes are as they were. Models stay where they are."""
    global _present
    with _switching:
        if _present is not None:
            _present.undo()
            _present = None


def installed() -> Installed | None:
    """Return what `install` has done, or None if it is not in force."""
    return None if _present is None else _present.said


__all__ = ["Installed", "UnknownVersion", "install", "installed", "uninstall"]
