"""Patch 035 for PyTorch: no strided copy of the packed attention projection on MPS.

Two ways to have it:

* on disk, for every process of an environment: ``python -m onelane.patch035 apply``
  (and ``status``, ``revert``); see :mod:`onelane.patch035.installed`;
* at run time, for this process only and without touching a file::

      from onelane import patch035

      with patch035.enabled():
          y = model(x)

  see :mod:`onelane.patch035.runtime`.

Both apply one and the same patch file, which lies in this package. Nothing here
imports torch before :func:`enable` is called, and nothing imports the rest of
onelane. Patch 035 is for programs that run MPS from several threads on several
streams; behind a onelane executor it is not needed.
"""

from onelane.patch035.errors import (
    Patch035Error,
    TorchNotFoundError,
    UnsupportedTorchError,
    WriteError,
)
from onelane.patch035.installed import InstalledTorch
from onelane.patch035.runtime import disable, enable, enabled, is_enabled
from onelane.patch035.target import State

__all__ = [
    "InstalledTorch",
    "Patch035Error",
    "State",
    "TorchNotFoundError",
    "UnsupportedTorchError",
    "WriteError",
    "disable",
    "enable",
    "enabled",
    "is_enabled",
]
