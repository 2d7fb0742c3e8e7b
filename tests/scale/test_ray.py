"""onelane behind a real Ray Serve: nothing is lost but the request at fault."""

import asyncio
import os
import signal
import threading

import pytest

pytest.importorskip("ray")

import onelane
import onelane.ray
from onelane import EngineCrashed

pytestmark = pytest.mark.timeout(300)
MODEL = "scale_models:worker"


def run(cluster, **changes):
    given = {
        "requests": onelane.Items(),
        "device": "cpu",
        "per_call": 8,
        "isolation": "process",
        "factory": False,
    }
    options = {"num_replicas": 2, **changes.pop("options", {})}
    app = onelane.ray.application(MODEL, options=options, **{**given, **changes})
    return cluster.run(app, name="app", route_prefix=None)


def ask(handle, requests, **how):
    return asyncio.run(onelane.ray.infer_many(handle, requests, per_call=8, **how))


class Load:
    """Asks all the time, from some threads; everything has to be answered right."""

    def __init__(self, handle, threads=4):
        self.handle, self.wrong, self.count = handle, [], 0
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._crew = [threading.Thread(target=self._ask, args=(n,)) for n in range(threads)]

    def __enter__(self):
        for member in self._crew:
            member.start()
        self.more(50)
        return self

    def more(self, requests):
        """Wait until so many more have been answered."""
        until = self.count + requests
        while self.count < until and not self.wrong:
            threading.Event().wait(0.02)
        assert not self.wrong, self.wrong[:3]

    def __exit__(self, *_):
        self._stop.set()
        for member in self._crew:
            member.join()

    def _ask(self, number):
        start = number * 1_000_000
        while not self._stop.is_set():
            requests = list(range(start, start + 16))
            try:
                wrong = [
                    (a, b) for a, b in zip(requests, ask(self.handle, requests), strict=True)
                    if b != 2 * a
                ]  # fmt: skip
            except Exception as error:
                wrong = [repr(error)]
            with self._lock:
                self.wrong += wrong
                self.count += len(requests)
            start += 16


def pids(handle):
    """Processes of the replicas: (child, replica)."""
    found = set()
    for _ in range(200):
        found.add(tuple(ask(handle, ["pids"])[0]))
        if len(found) == 2:
            return sorted(found)
    raise AssertionError(f"two replicas were asked for: {found}")


def test_two_replicas_answer_lists_in_order(cluster):
    handle = run(cluster)
    assert ask(handle, list(range(100))) == [2 * i for i in range(100)]
    assert handle.remote(21).result() == 42
    assert len(pids(handle)) == 2


def test_a_poisoned_request_fails_alone(cluster):
    handle = run(cluster)
    requests = [*range(30), "poison", *range(30)]
    responses = ask(handle, requests)
    assert isinstance(responses[30], EngineCrashed)
    assert responses[30].signal == signal.SIGABRT
    assert responses[:30] + responses[31:] == [2 * i for i in range(30)] * 2


def test_a_refused_request_stands_in_the_list_as_its_error(cluster):
    handle = run(cluster)
    one, two = ask(handle, [1, 2], timeout=0.0)
    assert isinstance(one, onelane.DeadlineExceeded)
    assert isinstance(two, onelane.DeadlineExceeded)
    with pytest.raises(Exception, match="deadline"):
        handle.remote(1, timeout=0.0).result()


def test_a_killed_child_costs_nothing(cluster):
    handle = run(cluster, options={"num_replicas": 2})
    children = pids(handle)
    with Load(handle) as load:
        for child, _ in children:
            os.kill(child, signal.SIGKILL)
        load.more(200)
    assert not load.wrong


def test_a_killed_replica_costs_nothing(cluster):
    handle = run(cluster)
    (_, replica), _ = pids(handle)
    with Load(handle) as load:
        os.kill(replica, signal.SIGKILL)
        load.more(300)
    assert not load.wrong


def test_a_rolling_update_costs_nothing(cluster):
    handle = run(cluster)
    before = pids(handle)
    with Load(handle) as load:
        run(cluster, max_batch_size=16)
        load.more(200)
    assert not load.wrong
    assert not {replica for _, replica in pids(handle)} & {replica for _, replica in before}


def test_what_ray_asks_of_a_replica():
    class Queue:
        def __init__(self, health):
            self._health = health

        def health(self):
            return self._health

    replica = object.__new__(onelane.ray.Replica)
    for state, is_well in (
        ("ready", True), ("rebuilding", True), ("stalled", False), ("failed", False),
        ("closed", False),
    ):  # fmt: skip
        replica.queue = Queue(onelane.Health(state, "why"))
        if is_well:
            replica.check_health()
        else:
            with pytest.raises(RuntimeError, match=state):
                replica.check_health()
    del replica.queue


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="per_call=2048 is more than"):
        onelane.ray.application(MODEL, per_call=2048)
    with pytest.raises(ValueError, match="per_call=0"):
        onelane.ray.application(MODEL, per_call=0)


@pytest.mark.parametrize(
    ("per_call", "settings", "calls"),
    [
        (1, {}, 96),
        (32, {}, 3),
        (8, {"max_batch_size": 4}, 2),
        (1, {"capacity": 10}, 10),
        (256, {}, 2),
        (1024, {}, 1),
    ],
)
def test_calls_at_once_come_from_the_batch_and_the_capacity(per_call, settings, calls):
    app = onelane.ray.application(MODEL, per_call=per_call, **settings)
    assert app._bound_deployment._deployment_config.max_ongoing_requests == calls
