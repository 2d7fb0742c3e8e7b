"""The exceptions of onelane. What a model raises is never wrapped: it arrives as it was raised."""

from __future__ import annotations

__all__ = [
    "DeadlineExceeded",
    "EngineLost",
    "ForkedProcess",
    "NotBatchable",
    "OnelaneError",
    "QueueClosed",
    "QueueFull",
    "RequestCancelled",
    "RequestTooLarge",
    "WouldDeadlock",
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


class NotBatchable(OnelaneError, ValueError):
    """What the model returned cannot be split into one response for each request."""


class ForkedProcess(OnelaneError, RuntimeError):
    """The object belongs to the parent process; its worker does not exist after a fork."""


def is_engine_lost(error: BaseException) -> bool:
    """Whether an exception says that the model itself is gone; it is built again."""
    return isinstance(error, EngineLost) and not error._told


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device ran out of memory; such a batch is split.

    CUDA and its like raise ``torch.OutOfMemoryError``; MPS raises a plain ``RuntimeError`` whose
    text says "MPS backend out of memory".
    """
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error)
