"""Signals at many moments: the process ends, soon, as it should, whatever it was doing.

Each moment is a process of its own. Moments are lines of the package that the main thread runs, or
seeded times while it waits. `ONELANE_SIGNAL_MOMENTS` says how many there are of each kind; 20 by
default.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals"),
]

MOMENTS = int(os.environ.get("ONELANE_SIGNAL_MOMENTS", "20"))
# A process that has been told to end, on a busy machine; a drain takes 30 s by default.
SOON_S = 20

HEAD = """
import asyncio, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import onelane

class Model:
    def encode(self, texts): return [text + "!" for text in texts]
    def note(self, x): return x
    def stream(self, n): yield from range(n)
    async def generate(self, x): return x

def items(model, device, **settings):
    return onelane.BatchQueue(model, device, requests=onelane.Items(), factory=False, **settings)
"""

EVERYTHING = """
def everything():
    with onelane.DeviceExecutor("cpu") as device, items(lambda xs: xs, device) as queue:
        device.call(int), device.submit(int).result()
        queue(1), queue.submit(2).result(), [f.result() for f in queue.submit_many([1, 2])]
        list(queue.map([1, 2, 3]))
        with onelane.guard(Model, device, batch={"encode": 4}) as guarded:
            guarded.encode(["a", "b", "c"]), guarded.encode("a"), guarded.note(1)
            guarded.encode(["a"] * 9), list(guarded.stream(3))
            guarded.note.options(timeout=30)(1)
            async def main():
                await queue.infer(1), await device.acall(int), await guarded.note.acall(1)
                await guarded.generate(1)
                return [i async for i in guarded.stream(2)]
            asyncio.run(main())
        left = [queue.submit(i) for i in range(20)]
"""


def start(code, *args, drain=None):
    env = {**os.environ, **({} if drain is None else {"ONELANE_DRAIN_S": str(drain)})}
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", HEAD + textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def ended(process, within=60):
    """What a process has printed; it has ended of its own accord, in time, and not by an abort."""
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        out, err = process.communicate()
        pytest.fail(f"it did not end in {within} s\n{out}\n{err}")
    for bad in ("Fatal Python error", "terminate called", "panicked", "FATAL", "Aborted"):
        assert bad not in err, err
    assert process.returncode >= 0 or process.returncode == -signal.SIGINT, (
        f"ended by signal {-process.returncode}\n{out}\n{err}"
    )
    return out, err


def until_ready(process):
    line = process.stdout.readline()
    assert line == "ready\n", (line, process.stderr.read())


BY_LINE = (
    EVERYTHING
    + """
moment, root, count = int(sys.argv[1]), os.path.dirname(onelane.__file__), 0
def trace(frame, event, arg):
    global count
    if not frame.f_code.co_filename.startswith(root):
        return None
    count += event == "line"
    if count == moment and event == "line":
        sys.settrace(None)
        signal.raise_signal(signal.SIGINT)
    return trace
sys.settrace(trace)
try:
    everything()
    sys.settrace(None)
    print("ran", count)
except KeyboardInterrupt:
    print("interrupted")
"""
)


def test_ctrl_c_at_any_line():
    out, err = ended(start(BY_LINE, 0))
    lines = int(out.split()[1])
    assert lines > 500, err
    moments = random.Random(1).sample(range(1, lines), MOMENTS)

    def one(moment):
        out, err = ended(start(BY_LINE, moment))
        # The count differs a little from run to run; a destructor keeps what is raised in it.
        assert out == "interrupted\n" or "Exception ignored" in err or moment > 0.9 * lines, (
            f"moment {moment} of {lines}\n{out}\n{err}"
        )
        return out

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(one, moments))
    assert ends.count("interrupted\n") > MOMENTS / 2


WAITS = """
device = onelane.DeviceExecutor("cpu")
# Busy for as long as it is asked, a little at a time.
queue = items(lambda xs: (time.sleep(0.002), xs)[1], device, capacity=4, max_batch_size=1)
guarded = onelane.guard(Model, device)
how = sys.argv[1]
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
def feed():
    while True:
        try: queue(0)
        except RuntimeError: return
threads = [threading.Thread(target=feed, daemon=True) for _ in range(4)]
for thread in threads: thread.start()
async def tasks():
    while True:
        await asyncio.gather(*(queue.infer(i) for i in range(8)))
print("ready", flush=True)
try:
    while True:
        if how == "call": queue(1)
        elif how == "submit": queue.submit(1).result()
        elif how == "with":
            with items(lambda xs: xs, device) as other: other.submit(1), queue(1)
        elif how == "guard": guarded.note(1), list(guarded.stream(3))
        elif how == "infer": asyncio.run(tasks())
        elif how == "exit":
            for i in range(10_000): device.submit(time.sleep, 0.002)
            break
finally:
    print("left", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_it_waits(name):
    number = getattr(signal, name)
    seeded = random.Random(name)
    hows = ("call", "submit", "with", "guard", "infer", "exit")
    moments = [(hows[i % len(hows)], seeded.uniform(0, 0.1)) for i in range(MOMENTS)]

    def one(moment):
        how, delay = moment
        process = start(WAITS, how, *([name] if name == "SIGTERM" else []), drain=5)
        until_ready(process)
        # Not to make order: it is the moment that is drawn.
        time.sleep(delay)
        process.send_signal(number)
        if how == "exit":
            # It may have been draining already, or not: this one ends it.
            time.sleep(delay)
            if process.poll() is None:
                process.send_signal(number)
        ended(process, within=5 + SOON_S)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, moments))


HANGS = {
    "in a call": "threading.Event().wait()",
    "in steps": "while True: time.sleep(0.001)",
    "by itself": "while True: pass",
}


@pytest.mark.parametrize("front", ["device.submit(hang)", "queue.submit(1)", "daemon"])
@pytest.mark.parametrize("how", HANGS)
def test_a_driver_that_hangs_bounds_the_exit(how, front):
    process = start(
        f"""
        started = threading.Event()
        def hang(xs=None):
            started.set()
            {HANGS[how]}
        device = onelane.executor("cpu")
        queue = items(hang, device)
        if {front!r} == "daemon":
            for _ in range(3): threading.Thread(target=queue, args=(1,), daemon=True).start()
        else:
            {front if front != "daemon" else "pass"}
        for _ in range(5): device.submit(print, "it was given up")
        started.wait(30)
        sys.exit(3)
        """,
        drain=0.3,
    )
    out, _ = ended(process, within=SOON_S)
    assert process.returncode == 3
    assert "given up" not in out


@pytest.mark.parametrize("first", ["call", "with"])
def test_a_second_ctrl_c_gives_up_at_once(first):
    """The first ends the program, which begins to drain; the model hangs."""
    process = start(
        f"""
        started = threading.Event()
        def hang(xs):
            started.set()
            threading.Event().wait()
        device = onelane.executor("cpu")
        queue = items(hang, device)
        def say(*_):
            # Within the interpreter's end, or the end of the block.
            print("draining", flush=True)
        try:
            if {first!r} == "call":
                future = queue.submit(1)
                started.wait(30)
                print("ready", flush=True)
                future.result()
            else:
                with queue:
                    queue.submit(1)
                    started.wait(30)
                    print("ready", flush=True)
                    threading.Event().wait()
        finally:
            say()
        """,
        drain=300,
    )
    until_ready(process)
    process.send_signal(signal.SIGINT)
    if first == "call":
        assert process.stdout.readline() == "draining\n"
    else:
        time.sleep(0.3)  # Closing the queue, or on the way there.
    # What comes too early for the drain ends nothing more than the first did: so again.
    until = time.monotonic() + SOON_S
    while process.poll() is None and time.monotonic() < until:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            continue
    ended(process, within=SOON_S)


def test_sys_exit_in_a_thread_and_in_a_model():
    process = start(
        """
        device = onelane.executor("cpu")
        queue = items(lambda xs: sys.exit(5), device)
        def body():
            try: queue(1)
            except SystemExit as error: print("exit", error.code)
            device.submit(int)
            sys.exit(4)
        thread = threading.Thread(target=body)
        thread.start(); thread.join()
        print(device.call(int))
        """
    )
    out, _ = ended(process)
    assert (out, process.returncode) == ("exit 5\n0\n", 0)


def test_a_loop_that_is_closed_with_work_under_way():
    process = start(
        """
        device = onelane.executor("cpu")
        gate, began = threading.Event(), threading.Event()
        queue = items(lambda xs: (began.set(), gate.wait(30), xs)[2], device, capacity=1,
                      max_batch_size=1)
        guarded = onelane.guard(Model, device)
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(queue.infer(i)) for i in range(4)]
        tasks += [loop.create_task(device.acall(int)), loop.create_task(guarded.note.acall(1))]
        async def once(): await asyncio.sleep(0)
        loop.run_until_complete(once())
        began.wait(30)
        loop.close()
        gate.set()
        print(queue("after"), guarded.note("after"))
        """
    )
    out, _ = ended(process)
    assert out == "after after\n"
    assert process.returncode == 0


IMPORTS = """
moment, seen, told = int(sys.argv[1]), 0, []
def handler(*_):
    queue = items(lambda xs: xs, "cpu")
    told.append((queue(5), onelane.executor("cpu").call(int), onelane.guard(dict, "cpu") == {}))
signal.signal(signal.SIGUSR1, handler)
def hook(event, args):
    global seen
    if event == "import" and args[0].startswith("onelane."):
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGUSR1)
sys.addaudithook(hook)
print(onelane.executor("cpu").call(int), onelane.BatchQueue.__name__)
print(seen, told)
"""


def test_a_signal_handler_may_use_the_package_in_the_middle_of_its_first_import():
    out, _ = ended(start(IMPORTS, 0))
    imports = int(out.splitlines()[1].split()[0])
    assert imports > 20
    moments = random.Random(3).sample(range(1, imports), min(MOMENTS // 2, imports - 1))

    def one(moment):
        process = start(IMPORTS, moment)
        out, err = ended(process)
        assert process.returncode == 0, err
        assert "[(5, 0, True)]" in out, (moment, out, err)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, moments))
