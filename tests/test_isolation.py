"""Models in child processes: what a request does to its worker costs that request, and no other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

import isolated_models
import onelane
from isolated_models import listed

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="isolated workers are for Unix")

TESTS = os.path.dirname(__file__)


def queue(model=listed, **settings):
    isolation = settings.pop("isolation", onelane.Isolation())
    given = {"requests": onelane.Items(), "factory": False, **settings}
    return onelane.BatchQueue(model, "cpu", isolation=isolation, **given)


def within(seconds, condition, what):
    """Wait for what another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        threading.Event().wait(0.01)


def is_alive(pid):
    """Whether a thread of it runs: only when the last one has ended are its files closed."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] not in "ZX":
                    return True
    except (FileNotFoundError, ProcessLookupError):
        return os.path.isdir(f"/proc/{pid}") and is_alive(pid)
    return False


def run_script(script, **env):
    done = subprocess.run(
        [sys.executable, "-"],
        input=textwrap.dedent(script),
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": TESTS, **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- Requests and responses -----------------------------------------------------------------------


def test_every_kind_of_request_is_answered():
    with queue() as q:
        assert q(3) == 6
        assert q.submit(4).result(30) == 8
        assert [f.result(30) for f in q.submit_many([1, 2, 3])] == [2, 4, 6]
        assert list(q.map(range(50))) == [2 * i for i in range(50)]

        async def tasks():
            return await asyncio.gather(*[q.infer(i, priority="bulk") for i in range(20)])

        assert asyncio.run(tasks()) == [2 * i for i in range(20)]
        array = np.arange(12.0).reshape(3, 4)
        response = q(array, timeout=30, priority="interactive")
        np.testing.assert_array_equal(response, array * 2)
        response[0] = 1
        assert q.health().ok
        assert q.stats().isolation.starts == 1


def test_the_model_runs_in_another_process_that_has_loaded_nothing_more():
    with queue(isolated_models.where) as q:
        pid, has_torch = q(0)
        assert pid != os.getpid()
        assert pid in q.stats().isolation.pids
        assert not has_torch


def test_a_parent_without_pytorch_stays_without_it():
    script = """
        import sys
        import numpy as np
        import onelane

        with onelane.BatchQueue("isolated_models:load", "cpu", onelane.Items(),
                                isolation="process") as q:
            assert q(np.ones(3)).tolist() == [2, 2, 2]
        with onelane.BatchQueue("isolated_models:identity", "cpu", onelane.Each(), factory=False,
                                isolation="process") as q:
            assert q(np.ones(3)).tolist() == [1, 1, 1]
        assert "torch" not in sys.modules
    """
    run_script(script)


def test_requests_of_batch_false_keep_their_form():
    with queue(isolated_models.identity, requests=onelane.Each(unpack=False)) as q:
        given = {"a": np.arange(3), "b": (1, "two", [None])}
        back = q(given)
        np.testing.assert_array_equal(back["a"], given["a"])
        assert back["b"] == given["b"]


def test_no_request_or_response_shares_memory_with_another():
    pair = {"max_batch_size": 2, "max_wait": 30.0}
    given = np.zeros(4)
    with queue(isolated_models.add_in_place, **pair) as q:
        for item, first in ((given, lambda x: x[0]), ([given[:1]], lambda x: x[0][0])):
            # One batch of twice the same.
            responses = [future.result(30) for future in q.submit_many([item, item])]
            assert [first(response) for response in responses] == [1, 1]
        assert given.tolist() == [0] * 4
    with queue(isolated_models.all_the_same, **pair) as q:
        for items in ([given, given], [[given], [given]], [given, 1.0]):
            one, two = (future.result(30) for future in q.submit_many(items))
            array = one[0] if type(one) is list else one
            array += 5
            np.testing.assert_array_equal(two[0] if type(two) is list else two, np.zeros(4))


def test_a_deadline_passes_while_the_worker_is_busy():
    with queue(isolated_models.slow, max_batch_size=1) as q:
        futures = [q.submit(1) for _ in range(10)]
        with pytest.raises(onelane.DeadlineExceeded):
            q(2, timeout=0.01)
        assert [f.result(30) for f in futures] == [2] * 10


def test_an_input_that_cannot_be_sent_fails_alone():
    for idempotent in (True, False):
        with queue(idempotent=idempotent) as q:
            futures = q.submit_many([1, threading.Lock(), 3])
            assert futures[0].result(30) == 2
            assert futures[2].result(30) == 6
            with pytest.raises(TypeError, match="cannot be sent to the isolated worker"):
                futures[1].result(30)
            assert q.stats().isolation.losses == 0


# --- What makes the model -------------------------------------------------------------------------


def test_a_factory_by_its_import_path():
    with queue("isolated_models:load", factory=None) as q:
        assert q(2) == 4


def test_closures_and_lambdas_go_by_cloudpickle():
    pytest.importorskip("cloudpickle")
    factor = 3
    with queue(lambda items: [item * factor for item in items]) as q:
        assert q(2) == 6


def test_without_cloudpickle_a_closure_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(TypeError, match="'package.module:name', or install cloudpickle"):
        queue(lambda items: items)


def test_a_script_without_a_guard_runs_once(tmp_path):
    script = """
        import os
        import onelane

        with open(os.environ["RUNS"], "a") as file:
            file.write("run\\n")
        factor = 5

        class Mine(Exception):
            pass

        def model(items):
            if items[0] == 0:
                raise Mine("as it was")
            return [item * factor for item in items]

        with onelane.BatchQueue(model, "cpu", onelane.Items(), isolation="process") as q:
            assert q(2) == 10
            try:
                q(0)
            except Mine as error:
                assert str(error) == "as it was"
            else:
                raise AssertionError
    """
    runs = tmp_path / "runs"
    run_script(script, RUNS=str(runs))
    assert runs.read_text() == "run\n"


def test_a_module_that_makes_its_queue_when_imported_is_told_so(tmp_path):
    (tmp_path / "careless.py").write_text(
        "import onelane\n"
        "def model(items):\n"
        "    return items\n"
        "queue = onelane.BatchQueue('careless:model', 'cpu', onelane.Items(), factory=False,\n"
        "                           isolation='process')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import careless"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        ("isolated_models:failing", FileNotFoundError, "no weights here"),
        ("isolated_models:nothing", AttributeError, "nothing"),
        ("no_such_module:load", ModuleNotFoundError, "no_such_module"),
        ("isolated_models:dying", onelane.EngineCrashed, "SIGABRT"),
    ],
)
def test_what_a_factory_raises_comes_out(model, error, text):
    with pytest.raises(error, match=text):
        queue(model, factory=None)


def test_a_factory_that_never_ends_is_killed():
    with pytest.raises(onelane.EngineHung, match="while it built its engine"):
        queue(
            isolated_models.never,
            factory=True,
            isolation=onelane.Isolation(start_s=3.0),
        )


def test_settings_are_checked():
    for settings in (
        {"hang_s": 0},
        {"start_s": None},
        {"max_memory": "4 quarks"},
        {"max_memory": 0},
        {"recycle_batches": 0},
        {"retries": -1},
    ):
        with pytest.raises(ValueError, match=f"Isolation\\({next(iter(settings))}"):
            onelane.Isolation(**settings)
    assert onelane.Isolation(max_memory="1.5GiB")._settings()["max_memory"] == 3 << 29
    with pytest.raises(ValueError, match="Did you mean 'process'"):
        queue(isolation="proces")
    with pytest.raises(ValueError, match="in another process"):
        queue(requests=onelane.Items(output="device"))
    with pytest.raises(ValueError, match="no import path"):
        queue("isolated_models.load")


def test_env_reaches_the_worker():
    isolation = onelane.Isolation(env={"ONELANE_TEST_SETTING": "on"})
    with queue(isolated_models.environment, isolation=isolation) as q:
        assert q("ONELANE_TEST_SETTING") == "on"


# --- What a worker's loss costs -------------------------------------------------------------------

CULPRITS = {
    "segfault": (onelane.EngineCrashed, "SIGSEGV"),
    "abort": (onelane.EngineCrashed, "SIGABRT"),
    "exit": (onelane.EngineCrashed, "exit status: 7"),
    "kill": (onelane.EngineCrashed, "SIGKILL"),
    "hang": (onelane.EngineHung, "no answer after"),
    "poison": (onelane.EngineLost, "device-side assert"),
}


@pytest.mark.parametrize("culprit", CULPRITS)
def test_one_of_64_takes_its_worker_along(culprit):
    kind, text = CULPRITS[culprit]
    isolation = onelane.Isolation(hang_s=2.0)
    with queue(isolated_models.slow, isolation=isolation) as q, ThreadPoolExecutor(16) as pool:
        requests = [*range(40), culprit, *range(40, 63)]
        futures = [pool.submit(q, request) for request in requests]
        assert not wait(futures, timeout=100).not_done
        for request, future in zip(requests, futures, strict=True):
            if request == culprit:
                with pytest.raises(kind, match=text) as caught:
                    future.result()
            else:
                assert future.result() == 2 * request
        # The batch, the request alone, its retry.
        assert q.stats().isolation.losses <= 3
        assert q.stats().isolation.starts <= 4
        within(30, lambda: q.health().ok, q.health())
        assert q(1) == 2
    if culprit == "segfault":
        assert caught.value.signal == signal.SIGSEGV
        assert "in misbehave" in caught.value.stderr
    elif culprit == "exit":
        assert caught.value.exit_status == 7
    elif culprit == "hang":
        assert "in misbehave" in caught.value.stderr
    elif culprit == "poison":
        assert type(caught.value) is onelane.EngineLost
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_is_not_idempotent_is_never_run_twice(tmp_path):
    path = str(tmp_path / "effects")
    with queue(isolated_models.effects, idempotent=False) as q:
        futures = q.submit_many([(path, "one"), (path, "abort"), (path, "two")])
        assert not wait(futures, timeout=60).not_done
        errors = [future.exception() for future in futures]
        assert all(isinstance(error, onelane.EngineCrashed) for error in errors)
        assert len({id(error) for error in errors}) == 3
        with open(path) as file:
            assert file.read().split() == ["one", "abort"]
        within(30, lambda: q.health().ok, q.health())
        assert q((path, "more")) == "more"


def test_a_retried_request_may_be_told_not_to_be():
    with queue(isolation=onelane.Isolation(retries=0)) as q:
        with pytest.raises(onelane.EngineCrashed):
            q("abort")
        assert q.stats().isolation.losses == 1
        assert q.stats().isolation.retries == 0


def test_killed_from_outside_under_load_not_one_request_fails():
    stop = threading.Event()
    with queue(isolated_models.slow) as q:

        def client(seed):
            done = 0
            while not stop.is_set():
                assert q(seed + done) == 2 * (seed + done)
                done += 1
            return done

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, seed * 1000) for seed in range(8)]
            try:
                for kills in range(4):
                    losses = q.stats().isolation.losses
                    within(30, lambda: q.stats().isolation.pids, "a worker")
                    with contextlib.suppress(ProcessLookupError, IndexError):
                        os.kill(q.stats().isolation.pids[0], signal.SIGKILL)
                    within(30, lambda n=losses: q.stats().isolation.losses > n, kills)
                    completed = q.stats().completed
                    within(30, lambda n=completed: q.stats().completed > n, "answers")
            finally:
                stop.set()
            assert sum(client.result(60) for client in clients) > 0
        assert q.stats().failed == 0
        assert q.stats().isolation.crashes >= 4


def test_one_that_dies_while_it_waits_is_not_noticed():
    with queue(idempotent=False) as q:
        assert q(1) == 2
        (pid,) = q.stats().isolation.pids
        os.kill(pid, signal.SIGKILL)
        within(10, lambda: not is_alive(pid) or sys.platform != "linux", "its end")
        assert q(2) == 4
        assert q.stats().failed == 0


def test_its_memory_is_bounded_and_no_request_fails():
    isolation = onelane.Isolation(max_memory="200MiB")
    with queue(isolated_models.growing, max_batch_size=1, isolation=isolation) as q:
        assert [q(i) for i in range(40)] == [2 * i for i in range(40)]
        found = q.stats().isolation
        assert found.recycled_for_memory >= 2
        assert found.losses == 0
        assert found.max_footprint < 260 << 20


def test_it_is_replaced_after_so_many_batches_by_a_spare():
    isolation = onelane.Isolation(recycle_batches=5, spare=True)
    with queue(isolated_models.where, max_batch_size=1, isolation=isolation) as q:
        seen = set()

        def replaced():
            seen.add(q(0)[0])
            return q.stats().isolation.recycled_for_batches >= 2

        within(60, replaced, q.stats().isolation)
        assert len(seen) >= 2
        assert q.stats().failed == 0


def test_out_of_memory_in_the_worker_splits_the_batch():
    def most_four(items):
        if len(items) > 4:
            raise RuntimeError("CUDA out of memory (simulated)")
        return items

    pytest.importorskip("cloudpickle")
    with queue(most_four, max_batch_size=16) as q:
        futures = q.submit_many(range(16))
        assert [future.result(60) for future in futures] == list(range(16))
        assert q.stats().memory_splits > 0
        assert q.stats().isolation.losses == 0


# --- Errors, logs and output ----------------------------------------------------------------------


def test_what_a_model_raises_arrives_as_it_was_raised():
    with queue() as q:
        with pytest.raises(KeyError, match="bad request") as caught:
            q("error")
        assert "in misbehave" in str(caught.value.__cause__)
        futures = q.submit_many([1, "error", 3])
        assert futures[0].result(30) == 2
        assert futures[2].result(30) == 6
        assert isinstance(futures[1].exception(30), KeyError)
        assert q.stats().isolation.starts == 1


def test_an_exception_that_cannot_be_made_again_is_stood_in_for():
    with queue() as q, pytest.raises(onelane.ModelError, match="isolated_models.Unpicklable") as e:
        q("unpicklable")
    assert e.value.type_name == "isolated_models.Unpicklable"
    assert "in misbehave" in str(e.value.__cause__)


def test_log_records_and_output_reach_the_parent(caplog, capfd):
    with caplog.at_level(logging.WARNING), queue() as q:
        q("log")
        q("print")
        within(10, lambda: caplog.records and "printed" in capfd_text(capfd), "both")
    (record,) = [one for one in caplog.records if one.name == "isolated.models"]
    assert record.getMessage() == "logged by the worker"
    assert record.levelno == logging.WARNING
    assert record.pathname.endswith("isolated_models.py")


_seen = {}


def capfd_text(capfd):
    _seen[capfd] = _seen.get(capfd, "") + capfd.readouterr().err
    return _seen[capfd]


# --- Several workers, executors -------------------------------------------------------------------


def test_each_worker_has_a_process_of_its_own():
    with onelane.DeviceExecutor("cpu", workers=2, isolation="process") as home:
        q = onelane.BatchQueue(
            isolated_models.burning, home, onelane.Items(), max_batch_size=1, factory=False
        )
        assert len(q.stats().isolation.pids) == 2
        assert [future.result(60) for future in q.submit_many(range(40))] == list(range(40))


def test_functions_of_an_isolated_executor_run_in_a_child():
    with onelane.DeviceExecutor("cpu", isolation="process") as home:
        pid = home.submit(os.getpid).result(30)
        assert pid != os.getpid()
        assert home.call(os.getpid) == pid
        assert list(home.map(abs, [-1, -2])) == [1, 2]

        async def tasks():
            return await asyncio.gather(home.acall(abs, -3), home.acall(os.getpid))

        assert asyncio.run(tasks()) == [3, pid]
        np.testing.assert_array_equal(home.call(np.add, np.ones(3), 1), np.full(3, 2.0))
        with pytest.raises(ZeroDivisionError):
            home.call(divmod, 1, 0)
        with pytest.raises(onelane.EngineCrashed, match="SIGABRT"):
            home.call(os.abort)
        assert home.call(os.getpid) != pid
        with pytest.raises(ValueError, match="isolated"):
            home.hold()
        q = onelane.BatchQueue(listed, home, onelane.Items(), factory=False)
        assert q(1) == 2
        assert q.stats().isolation.starts == 1


def test_an_executor_is_isolated_or_not():
    with onelane.executor("cpu") as home:
        with pytest.raises(ValueError, match="already has an executor for 'cpu'"):
            onelane.executor("cpu", isolation="process")
        assert onelane.executor("cpu") is home
