"""The exceptions of the simulated device. Every text says that it is simulated."""

from __future__ import annotations

from onelane.errors import OnelaneError

__all__ = [
    "AffinityViolation",
    "DeviceAborted",
    "DeviceHung",
    "NoStream",
    "SimError",
    "SimUnavailable",
    "UnsupportedOperator",
]


class SimError(OnelaneError, RuntimeError):
    """The simulated device could not do what it was asked."""


class DeviceAborted(SimError):
    """The simulated process was aborted; the text is that of the failed assertion.

    It stands for the death of a process: every later call on the device raises it again.
    """


class DeviceHung(SimError):
    """No simulated thread can go on; the text says who waits for what."""


class AffinityViolation(SimError):
    """A thread that does not own the simulated device acted on it, and the check asserts."""


class NoStream(SimError):
    """A simulated stream was used by a thread that did not make it (profile `mlx`)."""


class UnsupportedOperator(SimError, NotImplementedError):
    """The simulated device does not have this operator."""


class SimUnavailable(SimError):
    """The simulated device cannot be used here; the text says what to do."""
