"""Signals, forks and the end of the interpreter; each case in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.timeout(90)

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


# A shell's background jobs ignore Ctrl-C, and so would the programs that they start.
CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def run(code, *, expect=0, send=None, env=None):
    """Run a program; `send` is a signal to send when it has printed "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", CTRL_C + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    head = ""
    if send is not None:
        assert process.stdout is not None
        while "ready" not in head:
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            head += line
        process.send_signal(send)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        out, err = process.communicate()
        pytest.fail(f"hung\n{out}\n{err}")
    assert process.returncode == expect, f"exit {process.returncode}\n{out}\n{err}"
    return head + out, err


@pytest.mark.parametrize("front", ["device.call(slow)", "queue(1)", "queue.submit(1).result()"])
def test_ctrl_c_ends_a_wait(front):
    out, _ = run(
        f"""
        import threading, onelane
        release = threading.Event()
        def slow(xs=None):
            print("ready", flush=True)
            release.wait(30)
            return xs
        device = onelane.DeviceExecutor("cpu")
        queue = onelane.BatchQueue(slow, device, requests=onelane.Items(), factory=False)
        try:
            {front}
        except KeyboardInterrupt:
            print("interrupted")
        release.set()
        print(queue(2) if "queue" in {front!r} else device.call(int))
        """,
        send=signal.SIGINT,
    )
    assert "interrupted" in out


def test_ctrl_c_cancels_the_request():
    out, _ = run(
        """
        import threading, onelane
        release, ran = threading.Event(), []
        device = onelane.DeviceExecutor("cpu")
        items = onelane.Items()
        queue = onelane.BatchQueue(lambda xs: ran.extend(xs) or xs, device, items)
        started = threading.Event()
        device.submit(lambda: (started.set(), release.wait(30)))
        started.wait(30)
        try:
            print("ready", flush=True)
            queue("interrupted")
        except KeyboardInterrupt:
            release.set()
        queue("later")
        # None was submitted if the signal came in `print`.
        print(ran, queue.stats().cancelled == queue.stats().submitted - 1)
        """,
        send=signal.SIGINT,
    )
    assert "['later'] True" in out


def test_exit_runs_what_was_submitted():
    out, err = run(
        """
        import onelane, threading
        device = onelane.executor("cpu")
        go = threading.Event()
        device.submit(go.wait, 30)
        future = device.submit(print, "the call has run")
        future.add_done_callback(lambda f: print("and its callback"))
        go.set()
        """
    )
    assert "the call has run\nand its callback" in out
    assert err == ""


def test_exit_with_requests_in_flight():
    out, err = run(
        """
        import onelane, threading
        queue = onelane.BatchQueue(lambda xs: xs, "cpu", requests=onelane.Items())
        for i in range(500):
            queue.submit(i).add_done_callback(lambda f, i=i: i == 499 and print(f.result()))
        """
    )
    assert out == "499\n"
    assert err == ""


def test_exit_with_daemon_threads_that_wait_and_submit():
    _, err = run(
        """
        import onelane, threading
        device = onelane.DeviceExecutor("cpu")
        queue = onelane.BatchQueue(lambda xs: xs, device, requests=onelane.Items())
        barrier = threading.Barrier(9)
        def spin():
            barrier.wait()
            while True:
                try:
                    queue(1), device.call(int), queue.submit(2).result()
                except RuntimeError:
                    return
        for _ in range(8):
            threading.Thread(target=spin, daemon=True).start()
        barrier.wait()
        for _ in range(50):
            queue(3)
        """
    )
    assert "Fatal" not in err


def test_exit_while_a_thread_pool_still_uses_the_queue():
    out, _ = run(
        """
        import onelane
        from concurrent.futures import ThreadPoolExecutor
        queue = onelane.BatchQueue(lambda xs: xs, "cpu", requests=onelane.Items())
        pool = ThreadPoolExecutor(4)
        futures = [pool.submit(queue, i) for i in range(200)]
        futures[-1].add_done_callback(lambda f: print(f.result()))
        """
    )
    assert out == "199\n"


def test_exit_by_an_exception_with_work_in_flight():
    out, err = run(
        """
        import onelane
        device = onelane.executor("cpu")
        device.submit(print, "ran")
        raise ValueError("the program's own")
        """,
        expect=1,
    )
    assert out == "ran\n"
    assert "the program's own" in err


@posix
def test_fork_gives_fresh_shared_executors_and_clear_errors():
    out, _ = run(
        """
        import gc, os, threading, onelane
        shared = onelane.executor("cpu")
        own = onelane.DeviceExecutor("cpu")
        queue = onelane.BatchQueue(lambda xs: xs, shared, requests=onelane.Items())
        hold, held = threading.Event(), threading.Event()
        own.submit(lambda: (held.set(), hold.wait(30)))
        held.wait(30)
        slow = onelane.BatchQueue(lambda xs: xs, shared, requests=onelane.Items())
        shared_hold = shared.submit(hold.wait, 30)
        pending = slow.submit(1)
        many = [threading.Thread(target=slow, args=(i,)) for i in range(4)]
        for thread in many: thread.start()
        pid = os.fork()
        if pid == 0:
            for use in (lambda: own.submit(int), lambda: own.call(int), lambda: queue(1),
                        lambda: queue.submit(1), lambda: shared.submit(int),
                        lambda: own.shutdown(), lambda: queue.close(), lambda: pending.result(),
                        lambda: queue.stats()):
                try:
                    use()
                except RuntimeError as error:
                    assert "belongs to the parent process" in str(error), error
                else:
                    raise SystemExit(3)
            assert not pending.cancel()
            fresh = onelane.executor("cpu")
            assert fresh is not shared
            assert fresh.call(os.getpid) == os.getpid()
            assert onelane.BatchQueue(lambda xs: xs, "cpu", requests=onelane.Items())("x") == "x"
            del own, queue, slow, pending, shared
            gc.collect()
            print("child fine", flush=True)
            raise SystemExit(7)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        hold.set()
        for thread in many: thread.join()
        print("parent fine", pending.result(), queue(5), own.call(int))
        """
    )
    assert "child fine" in out
    assert "parent fine 1 5 0" in out


@posix
def test_no_lock_is_found_taken_after_a_fork():
    """Threads submit as hard as they can while others fork; the child calls everything and ends."""
    out, _ = run(
        """
        import asyncio, gc, os, signal, threading, onelane
        shared = onelane.executor("cpu")
        own = onelane.DeviceExecutor("cpu")
        queues = [onelane.BatchQueue(lambda xs: xs, e, requests=onelane.Items(), capacity=4)
                  for e in (shared, own)]
        stop = threading.Event()
        kept = []
        def use(queue, device):
            while not stop.is_set():
                kept.extend(queue.submit_many([1, 2], timeout=5))
                kept.append(queue.submit(1))
                kept.append(device.submit(int))
                kept[-2].add_done_callback(lambda f: None)
                kept[-3].cancel()
                queue(1, timeout=5)
                onelane.executor("cpu").call(int)
                queue.stats(), device.health()
                onelane.DeviceExecutor("cpu").shutdown()
                del kept[:-30]
        def tasks(queue):
            async def go():
                while not stop.is_set():
                    await asyncio.gather(*(queue.infer(i, timeout=5) for i in range(8)))
            asyncio.run(go())
        threads = [threading.Thread(target=use, args=pair)
                   for pair in zip(queues * 2, (shared, own) * 2)]
        threads += [threading.Thread(target=tasks, args=(queue,)) for queue in queues]
        for thread in threads: thread.start()
        failed = []
        for round in range(25):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)  # A hang ends the child, by a signal.
                for queue, device in zip(queues, (shared, own)):
                    calls = [lambda: queue(1), lambda: queue.submit(1),
                             lambda: queue.submit_many([1]), lambda: asyncio.run(queue.infer(1)),
                             lambda: list(queue.map([1])), queue.stats, queue.health, queue.close,
                             queue.shutdown, lambda: device.submit(int), lambda: device.call(int),
                             lambda: asyncio.run(device.acall(int)), device.stats, device.health,
                             device.shutdown]
                    for call in calls:
                        try: call()
                        except onelane.ForkedProcess: pass
                        else: os._exit(3)
                for future in list(kept):
                    for look in (future.result, future.exception, future.cancel, future.done,
                                 future.running, future.cancelled):
                        try: look()
                        except BaseException: pass
                del future, look, call, calls
                kept.clear()
                queue = device = own = shared = None
                queues.clear()
                gc.collect()
                fresh = onelane.executor("cpu")
                again = onelane.BatchQueue(lambda xs: xs, fresh, requests=onelane.Items())
                if again(5) != 5: os._exit(4)
                # The timer's thread is a new one, too.
                begun, go_on = threading.Event(), threading.Event()
                fresh.submit(lambda: (begun.set(), go_on.wait(10)))
                begun.wait(10)
                try: again.submit(6, timeout=0.05).result(10)
                except onelane.DeadlineExceeded: pass
                else: os._exit(5)
                go_on.set()
                fresh.shutdown()
                os._exit(7)
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            if code != 7: failed.append(code)
        stop.set()
        for thread in threads: thread.join()
        print("failed", failed)
        """
    )
    assert "failed []" in out


def test_a_sub_interpreter_that_used_the_package_ends():
    out, _ = run(
        """
        try:
            import _interpreters as sub
        except ImportError:
            import _xxsubinterpreters as sub
        for outside in (False, True):
            if outside:
                import onelane
                onelane.executor("cpu").call(int)
            inside = sub.create()
            sub.run_string(inside, "if True:" + '''
                try:
                    import onelane
                    onelane.executor("cpu").call(int)
                    onelane.BatchQueue(lambda xs: xs, "cpu", requests=onelane.Items())(1)
                except ImportError:
                    pass  # Said at once is fine, too.
                ''')
            sub.destroy(inside)
        print("ended")
        """
    )
    assert "ended" in out


def test_a_sub_interpreter_that_nobody_ended_does_not_keep_the_process():
    """It ends inside of the main one's end, when no thread can wait for another any more."""
    out, _ = run(
        """
        try:
            import _interpreters as sub
        except ImportError:
            import _xxsubinterpreters as sub
        inside = sub.create()
        sub.run_string(inside, "if True:" + '''
            try:
                import onelane
                onelane.executor("cpu").call(int)
            except ImportError:
                pass  # Said at once is fine, too.
            ''')
        print("ended")
        """
    )
    assert "ended" in out


@posix
def test_multiprocessing_with_fork():
    out, _ = run(
        """
        import multiprocessing, onelane
        def work(x):
            return onelane.executor("cpu").call(pow, x, 2)
        work(1)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(5)))
        """
    )
    assert "[0, 1, 4, 9, 16]" in out


def test_the_package_imports_neither_torch_nor_the_native_module():
    out, _ = run(
        """
        import sys, onelane, onelane.patch035
        print("torch" in sys.modules, "onelane._onelane" in sys.modules, "numpy" in sys.modules)
        """
    )
    assert out == "False False False\n"


def test_lists_and_calls_need_no_torch():
    out, _ = run(
        """
        import sys
        sys.modules["torch"] = None
        import onelane
        queue = onelane.BatchQueue(lambda xs: [x * 2 for x in xs], "mlx", requests=onelane.Items())
        print(queue(21), onelane.executor("mlx").call(int))
        print(len(onelane.guard(dict, "mlx")))
        """
    )
    assert out == "42 0\n0\n"
