"""Modules that are there, without importing them."""

from __future__ import annotations

import sys
from typing import Any


def imported(name: str) -> Any:
    """Return the module, or None if it has not been imported to its end.

    While a thread imports a module, the others find it half made in `sys.modules`.
    """
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return None if getattr(spec, "_initializing", False) else module


__all__ = ["imported"]
