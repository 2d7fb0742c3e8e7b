"""Models and objects for isolated workers, without PyTorch: such workers start quickly."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time


def misbehave(request):
    """What a request may ask for beside an answer."""
    if not isinstance(request, str):
        return
    if request == "segfault":
        ctypes.string_at(0)
    elif request == "abort":
        os.abort()
    elif request == "exit":
        os._exit(7)
    elif request == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif request == "hang":
        threading.Event().wait()
    elif request == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif request == "poison":
        raise RuntimeError("CUDA error: device-side assert triggered")
    elif request == "error":
        raise KeyError("bad request")
    elif request == "unpicklable":
        raise Unpicklable(threading.Lock())
    elif request == "memory":
        raise RuntimeError("MPS backend out of memory (simulated)")
    elif request == "log":
        logging.getLogger("isolated.models").warning("logged by %s", "the worker")
    elif request == "print":
        print("printed by the worker")


class Unpicklable(Exception):
    """An exception that cannot be made again elsewhere."""


def listed(items):
    """A list of requests: numbers are doubled, texts are what to do."""
    for item in items:
        misbehave(item)
    return [item * 2 for item in items]


def load():
    """A model that is loaded."""
    return listed


def identity(x):
    """Whatever it is given."""
    return x


def slow(items):
    """As `listed`; each batch takes a while."""
    time.sleep(0.02)
    return listed(items)


def where(items):
    """Which process it is, and whether it has PyTorch."""
    return [(os.getpid(), "torch" in sys.modules) for _ in items]


def environment(items):
    """What some variables are."""
    return [os.environ.get(item) for item in items]


_kept = []


def growing(items):
    """Keeps 16 MiB for each batch."""
    _kept.append(bytearray(os.urandom(1)) * (16 << 20))
    return listed(items)


def effects(items):
    """Writes each request into the file that it names, before it does what it says."""
    for path, what in items:
        with open(path, "a") as file:
            file.write(what + "\n")
        misbehave(what)
    return [what for _, what in items]


def burning(items):
    """Computes on one thread for a while."""
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    return items


def failing():
    """A factory that fails."""
    raise FileNotFoundError("no weights here")


def dying():
    """A factory that takes its process along."""
    os.abort()


def never():
    """A factory that never ends."""
    threading.Event().wait()


class Thing:
    """An object to be guarded."""

    def __init__(self):
        self.count = 0
        self.calls = []

    def add(self, number):
        """Add to the count."""
        misbehave(number)
        self.count += number
        return self.count

    def stream(self, count):
        with contextlib.suppress(GeneratorExit):
            yield from range(count)
            return
        self.calls.append("closed")

    async def astream(self, count):
        for number in range(count):
            yield number

    def encode(self, texts, suffix=""):
        self.calls.append(texts)
        if isinstance(texts, str):
            return texts.upper() + suffix
        return [text.upper() + suffix for text in texts]

    def rows(self):
        return iter([1, 2, 3])

    def lock(self):
        return threading.Lock()

    def __len__(self):
        return 3


class Poison(Exception):
    """What the model of the chaos raises; it names the request."""


# What some requests of the chaos do, by their numbers modulo 1009; one of 3001 hangs.
FAULTS = {101: "segfault", 301: "abort", 501: "exit", 701: "kill", 901: "poison"}


def fault(number):
    """What the request of that number does to its worker; None: nothing."""
    return "hang" if number % 3001 == 401 else FAULTS.get(number % 1009)


def chaos(items):
    """Numbers, some of which raise, take their worker along or make it grow; in arrays or not."""
    for item in items:
        number = int(item if isinstance(item, int) else item.flat[0])
        misbehave(fault(number))
        if number % 97 == 0:
            raise Poison(number)
        if number % 53 == 0:
            _kept.append(bytearray(b"x") * (8 << 20))
    return [item * 2 for item in items]


def add_in_place(items):
    """Write into what it is given, and return it."""
    for item in items:
        item[0] += 1
    return items


def all_the_same(items):
    """Return one object for all."""
    return [items[0]] * len(items)


def dying_encoder():
    """Make an encoder for `serve` whose process dies of a text."""
    import os

    import test_serve

    run = test_serve.Sums()

    def mortal(ids, mask, types):
        if (ids == test_serve.WORDS.index("bad")).any():
            os.kill(os.getpid(), 9)
        return run(ids, mask, types)

    return test_serve.encoder(mortal)


def dying_double(x):
    """Double numbers, in a process that aborts of -1."""
    if (x == -1).any():
        os.abort()
    return x * 2


def dying_predictor():
    """Make a predictor for `serve` that aborts of -1."""
    import onelane

    return onelane.Predictor(dying_double, {"x": ("INT64", [-1])})
