"""Versions of the libraries that `install` knows, and what becomes of others."""

from __future__ import annotations

import importlib.util
import re
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from onelane.errors import OnelaneError


class UnknownVersion(OnelaneError, RuntimeError):
    """A library has a version that `install` does not know; its classes were left alone."""


@dataclass(frozen=True)
class Family:
    """Versions of a library that look alike to `install`.

    oldest, newest: first and last version, by their first two numbers, that are taken. tested: what
    the tests ran with; others are warned of. files: of the library, without which nothing could be
    patched. module: what is imported, if it is not called like the library.
    """

    library: str
    oldest: tuple[int, int]
    newest: tuple[int, int]
    tested: str
    files: tuple[str, ...] = ()
    module: str = ""

    def __str__(self) -> str:
        low, high = (".".join(map(str, v)) for v in (self.oldest, self.newest))
        return f"{self.library} {low} to {high} (tested with {self.tested})"


FAMILIES = (
    Family(
        "sentence-transformers",
        (5, 7),
        (6, 2),
        "6.2.0",
        ("base/model.py", "sentence_transformer/model.py", "cross_encoder/model.py"),
    ),
    Family(
        "transformers",
        (5, 0),
        (5, 24),
        "5.24.0",
        ("modeling_utils.py", "tokenization_utils_tokenizers.py", "pipelines/base.py"),
    ),
    # Its versions are dates.
    Family(
        "openai-whisper", (20231117, 0), (20250625, 0), "20250625", ("model.py",), module="whisper"
    ),
    Family("ultralytics", (8, 3), (8, 4), "8.4.190", ("engine/model.py",)),
)
# Libraries that reach the device and that `install` leaves alone.
NOT_COVERED = ("diffusers", "spacy", "mlx")


def version(library: str) -> str | None:
    """Return the version of a library that is installed, without importing it."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _missing(family: Family) -> str | None:
    """Return a file that a library lacks; does not import it."""
    spec = importlib.util.find_spec(family.module or family.library.replace("-", "_"))
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    for name in family.files:
        if not any((Path(root) / name).is_file() for root in roots):
            return name
    return None


def numbers(text: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    found = re.match(r"(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def check(known: tuple[Family, ...] = FAMILIES) -> list[Family]:
    """Return the families of what is installed.

    Raises `UnknownVersion` for one that is older than what is taken, or of a later major version.
    Another one than was tested is warned of, and refused if it lacks what would be patched.
    """
    present = []
    for family in known:
        found = version(family.library)
        if found is None:
            continue
        at = numbers(found)
        if at < family.oldest or at[0] > family.newest[0]:
            raise UnknownVersion(
                f"{family.library} {found} is installed, and onelane.install() knows {family}. "
                f"Install one of these, or leave {family.library} out with "
                f"install(skip=({family.library!r},)) and use onelane.guard()"
            )
        if at != numbers(family.tested):
            missing = _missing(family)
            if missing:
                raise UnknownVersion(
                    f"{family.library} {found} has no {missing}, which onelane.install() patches: "
                    f"it knows {family}"
                )
            warnings.warn(
                f"{family.library} {found} is not what onelane.install() was tested with: {family}",
                stacklevel=4,
            )
        present.append(family)
    return present


__all__ = ["FAMILIES", "NOT_COVERED", "Family", "UnknownVersion", "check", "numbers", "version"]
