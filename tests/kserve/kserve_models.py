"""Models of the tests of KServe. A gate is a FIFO: who reads it waits until it is written to."""

import os


def texts(items):
    """Answer each text with its length and the size of its batch; "poison" kills the process."""
    if "poison" in items:
        os.abort()
    return [{"length": len(item), "batch": len(items)} for item in items]


def gated(items):
    """Answer each number with its double and the size of its batch; a negative one waits."""
    for item in items:
        if item[0] < 0:
            with open(os.environ["GATE"]) as gate:
                gate.read()
    return [[2 * item[0], len(items)] for item in items]


def picky(items):
    """Fail on a negative number, alone."""
    if any(item[0] < 0 for item in items):
        raise ArithmeticError("no negative numbers")
    return [item * 2 for item in items]


def loading():
    """Load until the gate is opened."""
    with open(os.environ["GATE"]) as gate:
        gate.read()
    return picky


def broken():
    """Fail to load."""
    raise OSError("the weights are not there")


def tensors(x):
    """Answer a batch of rows with their doubles, and how many rows it had."""
    return {"double": 2 * x, "rows": x.new_full((len(x),), len(x))}


def named(*, left, right):
    """Take two inputs by name."""
    return left - right
