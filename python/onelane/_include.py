"""Where the headers for C and C++ are."""

from __future__ import annotations

from pathlib import Path


def get_include() -> str:
    """Return the folder of the C and C++ headers: what a compiler is given with `-I`.

    docs/cpp.md says how an extension takes its functions from this package.
    """
    return str(Path(__file__).resolve().parent / "include")
