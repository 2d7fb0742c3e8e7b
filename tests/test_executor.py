"""What `concurrent.futures` promises of an executor with one worker, and what onelane adds."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib
import subprocess
import sys
import textwrap
import threading
import traceback
import unittest
import weakref
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures import TimeoutError as FutureTimeout  # its own class before 3.11

import pytest

import onelane
from common import Hold, cancel_storm

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def device():
    with onelane.DeviceExecutor("test-device", custom=True) as executor:
        yield executor


def raise_(error):
    raise error


# submit


def test_it_is_an_executor(device):
    assert isinstance(device, Executor)
    future = device.submit(pow, 2, 8)
    assert isinstance(future, Future)
    assert future.result() == 256
    assert device.submit(lambda *, a, self, fn: (a, self, fn), a=1, self=2, fn=3).result() == (
        1,
        2,
        3,
    )


def test_calls_run_in_order_on_one_thread_that_is_not_the_callers(device):
    seen = []
    futures = [
        device.submit(lambda i=i: seen.append((i, threading.get_ident()))) for i in range(99)
    ]
    wait(futures)
    assert [i for i, _ in seen] == list(range(99))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] != threading.get_ident()


def test_thread_locals_of_the_worker_last(device):
    local = threading.local()
    device.call(setattr, local, "value", 7)
    gc.collect()
    assert device.call(getattr, local, "value") == 7
    assert not hasattr(local, "value")


@pytest.mark.parametrize(
    "error",
    [ValueError("text"), StopIteration(3), KeyboardInterrupt(), SystemExit(2), GeneratorExit()],
)
def test_exceptions_keep_type_text_and_traceback_and_spare_the_worker(device, error):
    future = device.submit(raise_, error)
    assert future.exception() is error
    with pytest.raises(type(error)) as caught:
        device.call(raise_, error)
    assert caught.value is error
    assert "raise_" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert device.call(int) == 0


def test_done_callbacks_run_whether_before_or_after_completion(device):
    seen, done = [], threading.Event()
    with Hold(device) as hold:
        hold.future.add_done_callback(lambda f: seen.append(f.result()))
        hold.future.add_done_callback(lambda f: raise_(ValueError("in a callback")))
        hold.future.add_done_callback(lambda f: done.set())
    assert done.wait(30)
    hold.future.add_done_callback(lambda f: seen.append("late"))
    assert seen == ["held", "late"]


# map


def test_map_keeps_order_and_raises_in_its_place(device):
    assert list(device.map(pow, range(9), range(9))) == [i**i for i in range(9)]
    results = device.map(divmod, [1, 1, 1], [2, 0, 4])
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_submits_at_once_and_its_timeout_counts_from_the_call(device):
    ran = threading.Event()
    device.map(lambda _: ran.set(), [0])
    assert ran.wait(30)
    with Hold(device) as hold:
        results = device.map(lambda e: e.wait(30), [hold.release, hold.release], timeout=0.01)
        with pytest.raises(FutureTimeout):
            next(results)


def test_closing_a_map_cancels_what_has_not_started(device):
    ran = []
    with Hold(device):
        results = device.map(ran.append, range(5), timeout=0)
        with pytest.raises(FutureTimeout):
            next(results)
    device.call(int)
    assert ran == []


# cancel


def test_a_waiting_call_can_be_cancelled_and_a_running_one_cannot(device):
    ran = []
    with Hold(device) as hold:
        waiting = device.submit(ran.append, 1)
        assert hold.future.running()
        assert not waiting.running()
        assert not hold.future.cancel()
        assert waiting.cancel()
        assert waiting.cancelled()
        with pytest.raises(CancelledError):
            waiting.result(0)
    assert hold.future.result() == "held"
    assert not hold.future.cancel()
    device.call(int)
    assert ran == []
    # Whoever waits in `wait` hears of a cancelled future when its turn has come.
    assert wait([waiting], timeout=30).not_done == set()


def test_a_cancel_storm_hangs_nobody(device):
    cancel_storm(lambda i: device.submit(int, i))


# wait and as_completed


def test_wait_and_as_completed(device):
    with Hold(device) as hold:
        quick = Future()
        quick.set_result(1)
        assert wait([hold.future, quick], return_when=FIRST_COMPLETED).done == {quick}
        assert wait([hold.future, quick], timeout=0.01).not_done == {hold.future}
        with pytest.raises(FutureTimeout):
            list(as_completed([hold.future], timeout=0.01))
    failing = device.submit(raise_, ValueError())
    after = device.submit(int)
    assert failing in wait([failing, after], return_when=FIRST_EXCEPTION).done
    futures = [hold.future, failing, after]
    assert wait(futures, return_when=ALL_COMPLETED, timeout=30).done == set(futures)
    assert set(as_completed(futures, timeout=30)) == set(futures)
    assert len(list(as_completed([after] * 3, timeout=30))) == 1


# shutdown


def test_submit_after_shutdown_raises(device):
    device.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        device.submit(int)
    with pytest.raises(RuntimeError, match="after shutdown"):
        device.call(int)
    device.shutdown()


def test_shutdown_runs_what_was_submitted():
    device = onelane.DeviceExecutor("test-device", custom=True)
    futures = [device.submit(pow, i, 2) for i in range(100)]
    device.shutdown()
    assert [f.result(0) for f in futures] == [i * i for i in range(100)]


def test_shutdown_without_wait_returns_and_the_rest_still_runs():
    device = onelane.DeviceExecutor("test-device", custom=True)
    with Hold(device):
        later = device.submit(int, 5)
        device.shutdown(wait=False)
        assert not later.done()
        with pytest.raises(RuntimeError):
            device.submit(int)
    assert later.result(30) == 5


def test_shutdown_can_cancel_what_waits():
    device = onelane.DeviceExecutor("test-device", custom=True)
    with Hold(device) as hold:
        waiting = [device.submit(int) for _ in range(50)]
        already = waiting[7]
        assert already.cancel()
        device.shutdown(wait=False, cancel_futures=True)
        assert all(f.cancelled() for f in waiting)
        assert wait(waiting, timeout=30).not_done == set()
    assert hold.future.result(30) == "held"
    device.shutdown()


def test_shutdown_on_the_worker_does_not_wait_for_itself(device):
    device.call(device.shutdown)
    with pytest.raises(RuntimeError):
        device.submit(int)


def test_a_dropped_executor_finishes_its_work():
    device = onelane.DeviceExecutor("test-device", custom=True)
    ref = weakref.ref(device)
    with Hold(device):
        future = device.submit(int, 3)
        del device
        gc.collect()
        assert ref() is None
    assert future.result(30) == 3


def test_nothing_of_a_finished_call_is_kept(device):
    class Thing:
        def method(self):
            raise ValueError

    thing = Thing()
    ref = weakref.ref(thing)
    gc.disable()
    try:
        future = device.submit(thing.method)
        del thing
        assert isinstance(future.exception(30), ValueError)
        del future
        device.call(int)
        assert ref() is None
    finally:
        gc.enable()


# What onelane adds


def test_calls_on_the_worker_run_inline(device):
    def nested():
        inner = device.submit(threading.get_ident)
        assert inner.done()
        return inner.result(), device.call(threading.get_ident), threading.get_ident()

    assert len(set(device.call(nested))) == 1


def test_context_variables_come_along_and_do_not_leak_back(device):
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("callers")
    assert device.call(variable.get) == "callers"
    device.call(variable.set, "workers")
    assert variable.get() == "callers"
    assert contextvars.Context().run(device.call, variable.get) == "unset"


def test_shared_executors_are_one_per_device_and_can_be_had_anew():
    first = onelane.executor("shared-test", custom=True)
    assert onelane.executor("shared-test:0", custom=True) is first
    with pytest.raises(ValueError, match="1 worker") as caught:
        onelane.executor("shared-test", workers=2, custom=True)
    assert "DeviceExecutor('shared-test', workers=2)" in str(caught.value)
    first.shutdown()
    second = onelane.executor("shared-test", workers=2, custom=True)
    assert second is not first
    assert second.workers == 2
    second.shutdown()


def test_two_workers_are_two_threads():
    with onelane.DeviceExecutor("test-device", workers=2, custom=True) as device:
        both = threading.Barrier(2)
        futures = [device.submit(both.wait, 30) for _ in range(2)]
        assert sorted(f.result(30) for f in futures) == [0, 1]


@pytest.mark.parametrize(("device", "workers"), [("", 1), ("x", 0), ("x", 65)])
def test_bad_settings_are_named(device, workers):
    with pytest.raises(ValueError, match="device|workers"):
        onelane.DeviceExecutor(device, workers=workers)


def test_asyncio(device):
    async def main():
        loop = asyncio.get_running_loop()
        by_loop = await loop.run_in_executor(device, pow, 2, 5)
        results = await asyncio.gather(*(device.acall(pow, i, 2) for i in range(200)))
        with pytest.raises(ZeroDivisionError):
            await device.acall(divmod, 1, 0)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await device.acall(raise_, StopIteration())
        return by_loop, results

    assert asyncio.run(main()) == (32, [i * i for i in range(200)])


def test_cancelling_a_task_cancels_its_call(device):
    ran = []

    async def main():
        with Hold(device):
            task = asyncio.create_task(device.acall(ran.append, 1))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    device.call(int)
    assert ran == []


def test_a_loop_that_has_been_closed_harms_nobody(device):
    async def main(hold):
        task = asyncio.create_task(device.acall(int))
        await asyncio.sleep(0)
        del task

    hold = Hold(device)
    with hold:
        asyncio.run(main(hold))
    assert device.call(int) == 0


def test_many_threads_at_once(device):
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda i: device.call(pow, i, 2), range(1000))) == [
            i * i for i in range(1000)
        ]
    assert device.stats().completed >= 1000
    assert device.health().ok


def test_modes_of_the_caller_are_applied(device):
    torch = pytest.importorskip("torch")

    def modes():
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        )

    assert device.call(modes) == (True, False, False)
    with torch.no_grad():
        assert device.call(modes) == (False, False, False)
        assert device.submit(modes).result() == (False, False, False)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert device.call(modes) == (False, True, True)
    device.call(torch.set_grad_enabled, False)
    assert device.call(modes) == (True, False, False)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mixin", ["ExecutorTest", "WaitTests", "AsCompletedTests"])
def test_cpythons_own_tests_of_executors(mixin):
    """Run what CPython asks of an executor, where its test package is installed."""
    try:
        import test.test_concurrent_futures as cpython

        if not hasattr(cpython, mixin):  # a package since 3.12
            module = {"ExecutorTest": "executor", "WaitTests": "test_wait"}
            name = module.get(mixin, "test_as_completed")
            cpython = importlib.import_module(f"test.test_concurrent_futures.{name}")
        tests = getattr(cpython, mixin)
    except (ImportError, AttributeError) as error:
        pytest.skip(f"CPython's tests are not installed: {error}")

    class Ours(tests, unittest.TestCase):
        worker_count = 1

        def setUp(self):
            self.executor = onelane.DeviceExecutor("test-device", custom=True)

        def tearDown(self):
            self.executor.shutdown()
            self.executor = None

        # It is about an argument of ThreadPoolExecutor.
        test_max_workers_negative = None

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Ours).run(result)
    assert result.testsRun >= 4
    assert not result.errors + result.failures, "\n".join(
        text for _, text in result.errors + result.failures
    )


# One registry


def test_a_worker_that_asks_for_its_device_after_a_shutdown_is_refused():
    device = onelane.executor("registry-a", custom=True)

    def ask():
        device.shutdown()
        return onelane.executor("registry-a")

    with pytest.raises(onelane.QueueClosed, match="registry-a"):
        device.call(ask)
    # Elsewhere it waits until the old owner has ended.
    fresh = onelane.executor("registry-a")
    assert fresh is not device
    assert device.health().state == "closed"
    fresh.shutdown()


def test_threads_that_ask_at_once_get_one_executor():
    for _ in range(20):
        barrier = threading.Barrier(8)

        def ask(barrier=barrier):
            barrier.wait(30)
            return onelane.executor("registry-b", custom=True)

        with ThreadPoolExecutor(8) as pool:
            found = [f.result(30) for f in [pool.submit(ask) for _ in range(8)]]
        assert len(set(map(id, found))) == 1
        assert len({e.call(threading.get_ident) for e in found}) == 1
        found[0].shutdown()


def test_executor_may_be_called_in_the_middle_of_itself():
    """As a signal handler, a destructor or a profiler does: wherever it is, it gets the same."""
    found = []

    def trace(frame, event, _):
        # At each line of this package that the call below runs.
        if frame.f_globals.get("__name__") == "onelane._executor":
            sys.settrace(None)
            found.append(onelane.executor("registry-c", custom=True))
            sys.settrace(trace)
        return trace

    sys.settrace(trace)
    try:
        device = onelane.executor("registry-c", custom=True)
    finally:
        sys.settrace(None)
    assert len(found) > 10
    assert all(one is device for one in found)
    device.shutdown()


# Stacks


def test_a_call_may_recurse_as_deep_as_in_a_thread():
    code = """
        import sys, threading, onelane
        sys.setrecursionlimit(1_000_000)
        def deep(n):
            # Through C: each level takes stack of the thread.
            return 0 if n == 0 else max([n - 1], key=deep)
        thread = threading.Thread(target=deep, args=(6000,))
        thread.start()
        thread.join()
        print(onelane.executor("cpu").call(deep, 6000))
        threading.stack_size(256 << 20)
        print(onelane.DeviceExecutor("cpu").call(deep, 60_000))
        threading.stack_size(0)
        print(onelane.DeviceExecutor("cpu", stack_size=256 << 20).call(deep, 60_000))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["5999", "59999", "59999"]


def test_a_stack_that_is_too_small_is_named():
    with pytest.raises(ValueError, match="stack_size"):
        onelane.DeviceExecutor("cpu", stack_size=1000)
