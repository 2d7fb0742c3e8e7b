"""What can go wrong when patch 035 is applied, reverted or enabled."""

from __future__ import annotations


class Patch035Error(Exception):
    """Any refusal or failure of patch 035; nothing was changed."""


class TorchNotFoundError(Patch035Error):
    """There is no PyTorch where one was looked for."""


class UnsupportedTorchError(Patch035Error):
    """This PyTorch is not one that patch 035 was made for and tested with."""


class WriteError(Patch035Error):
    """The file could not be written; it is as it was."""
