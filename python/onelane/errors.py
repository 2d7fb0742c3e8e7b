"""The exceptions of onelane. What a model raises is never wrapped: it arrives as it was raised."""

from __future__ import annotations

__all__ = [
    "DeadlineExceeded",
    "EngineCrashed",
    "EngineHung",
    "EngineLost",
    "ForkedProcess",
    "ModelError",
    "NotBatchable",
    "OnelaneError",
    "QueueClosed",
    "QueueFull",
    "RequestCancelled",
    "RequestTooLarge",
    "WouldDeadlock",
    "is_device_poisoned",
    "is_engine_lost",
    "is_out_of_memory",
]


class OnelaneError(Exception):
    """The base of all exceptions of this package."""


class QueueFull(OnelaneError, RuntimeError):
    """There was no room in the queue for as long as the call was ready to wait."""


class QueueClosed(OnelaneError, RuntimeError):
    """The queue or its executor has been shut down."""


class DeadlineExceeded(OnelaneError, TimeoutError):
    """The timeout or deadline of the request passed before there was a response."""


class RequestCancelled(OnelaneError, RuntimeError):
    """The request was cancelled before it started."""


class RequestTooLarge(OnelaneError, ValueError):
    """The request, or the group of requests, is more than the queue may ever take."""


class WouldDeadlock(OnelaneError, RuntimeError):
    """Waiting here, on the worker, for the worker's own next batch would never end."""


class EngineLost(OnelaneError, RuntimeError):
    """The worker could not run the request, for a reason that is not the request's.

    A model raises it to say that it is gone and has to be built again. The requests of its batch
    then run one by one; one that loses the model alone gets the exception.
    """

    # It has been a caller's already: to a model that gets it, it says nothing of that model.
    _told = False


class EngineCrashed(EngineLost):
    """The isolated worker's process ended while it ran the request, which took it along.

    The text says how it ended, what it was doing, and the last that it wrote: Python's stacks, if
    it was a signal.

    signal: the number of the signal that ended it, or None. exit_status: what it exited with, or
    None. stderr: the last of what it wrote, at most 8 KiB.
    """

    signal: int | None = None
    exit_status: int | None = None
    stderr = ""


class EngineHung(EngineLost):
    """The isolated worker did not answer the request within `hang_s` and was killed.

    stderr: the last of what it wrote, at most 8 KiB: Python's stacks.
    """

    stderr = ""


class ModelError(OnelaneError, RuntimeError):
    """What a model raised in an isolated worker, where its own type cannot be made here.

    type_name: the name of that type, with its module.
    """

    type_name = ""


class NotBatchable(OnelaneError, ValueError):
    """What the model returned cannot be split into one response for each request."""


class ForkedProcess(OnelaneError, RuntimeError):
    """The object belongs to the parent process; its worker does not exist after a fork."""


def is_engine_lost(error: BaseException) -> bool:
    """Whether an exception says that the model itself is gone; it is built again."""
    return isinstance(error, EngineLost) and not error._told


def is_device_poisoned(error: BaseException) -> bool:
    """Whether an exception says that the device answers nothing but errors from now on.

    CUDA after a device-side assert or an illegal access, MPS after a fault of a command buffer:
    only a new process can use the device again. The texts are in one table, `sticky.rs` of
    onelane-isolate.
    """
    if isinstance(error, (OnelaneError, OSError, ValueError, TypeError, LookupError)):
        return False
    from onelane import _onelane

    return _onelane.is_sticky_error(str(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device ran out of memory; such a batch is split.

    CUDA and its like raise ``torch.OutOfMemoryError``; MPS raises a plain ``RuntimeError`` whose
    text says "MPS backend out of memory".
    """
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error)
