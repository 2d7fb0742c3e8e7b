"""A bad request fails alone, with its own exception, and the worker goes on."""

from __future__ import annotations

import threading
import traceback

import pytest

import onelane
from common import Hold

torch = pytest.importorskip("torch")
pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


def test_a_bad_request_fails_alone_with_its_own_exception(device):
    class Poison(Exception):
        pass

    def model(x):
        if (x < 0).any():
            raise Poison("negative")
        return x

    queue = onelane.BatchQueue(model, device)
    with Hold(device):
        futures = [queue.submit(torch.full((1, 1), -1.0 if i == 5 else i)) for i in range(16)]
    for i, future in enumerate(futures):
        if i == 5:
            error = future.exception(30)
            assert type(error) is Poison
            assert str(error) == "negative"
            assert "model" in [f.name for f in traceback.extract_tb(error.__traceback__)]
        else:
            assert future.result(30).item() == i
    with pytest.raises(Poison) as caught:
        queue(torch.full((1, 1), -1.0))
    names = [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    assert names[0].startswith("test_a_bad_request")
    assert names[-1] == "model"


def test_what_must_not_run_twice_does_not(device):
    calls = []

    def model(xs):
        calls.append(list(xs))
        raise ValueError

    queue = onelane.BatchQueue(model, device, requests=onelane.Items(), idempotent=False)
    with Hold(device):
        futures = queue.submit_many([1, 2, 3])
    assert all(isinstance(f.exception(30), ValueError) for f in futures)
    assert calls == [[1, 2, 3]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_no_exception_kills_the_worker(device, error):
    def model(xs):
        if xs[0]:
            raise error
        return xs

    queue = onelane.BatchQueue(model, device, requests=onelane.Items())
    with pytest.raises(error):
        queue(True)
    assert isinstance(queue.submit(True).exception(30), error)
    assert queue(False) is False


def test_out_of_memory_splits_the_batch_and_remembers_the_ceiling(device):
    sizes = []

    def model(x):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    queue = onelane.BatchQueue(model, device, max_batch_size=8)
    for _ in range(2):
        with Hold(device):
            futures = [queue.submit(torch.ones(1, 1)) for _ in range(8)]
        for future in futures:
            future.result(30)
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]
    assert onelane.errors.is_out_of_memory(RuntimeError("MPS backend out of memory (...)"))
    assert not onelane.errors.is_out_of_memory(RuntimeError("other"))


def test_an_exception_storm(device):
    def model(xs):
        if any(x % 3 == 0 for x in xs):
            raise ValueError(xs)
        return xs

    queue = onelane.BatchQueue(model, device, requests=onelane.Items())
    futures = [queue.submit(i) for i in range(900)]
    for i, future in enumerate(futures):
        if i % 3 == 0:
            assert future.exception(60).args == ([i],)
        else:
            assert future.result(60) == i


def test_a_factory_that_fails(device):
    def factory():
        raise FileNotFoundError("no weights")

    with pytest.raises(FileNotFoundError, match="no weights"):
        onelane.BatchQueue(factory, device)
    with pytest.raises(TypeError, match="cannot be called"):
        onelane.BatchQueue(lambda: 5, device)
    with pytest.raises(TypeError, match="cannot be called"):
        onelane.BatchQueue(5, device)


def test_a_lost_model_is_built_again_and_its_batch_runs_one_by_one(device):
    built, ran = [], []

    class Model:
        def __init__(self):
            built.append(1)

        def __call__(self, xs):
            ran.append(list(xs))
            if "poison" in xs:
                raise onelane.EngineLost("the context is gone") from OSError(5, "EIO")
            return xs

    queue = onelane.BatchQueue(Model, device, requests=onelane.Items(), factory=True)
    with Hold(device):
        futures = queue.submit_many(["a", "poison", "b"])
    assert [futures[0].result(30), futures[2].result(30)] == ["a", "b"]
    error = futures[1].exception(30)
    assert type(error) is onelane.EngineLost
    assert str(error) == "the context is gone"
    assert isinstance(error.__cause__, OSError)
    # Three, two: of all of them, and of the one alone.
    assert ran == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]
    assert len(built) == 3
    assert queue.stats().engine_losses == 2
    assert queue.health().ok


def test_a_model_that_loses_another_is_not_lost_itself(device):
    built = []

    def lose(xs):
        raise onelane.EngineLost("gone")

    inner = onelane.BatchQueue(lose, device, requests=onelane.Items())

    class Outer:
        def __init__(self):
            built.append(1)

        def __call__(self, xs):
            return [inner(x) for x in xs]

    outer = onelane.BatchQueue(Outer, device, requests=onelane.Items(), factory=True)
    with pytest.raises(onelane.EngineLost, match="gone"):
        outer(1)
    assert built == [1]
    assert outer.stats().engine_losses == 0
    assert inner.stats().engine_losses > 0


def test_health_says_that_a_model_is_being_rebuilt_and_that_a_queue_is_closed(device):
    again, told = threading.Event(), threading.Event()
    built = []

    class Model:
        def __init__(self):
            built.append(1)
            if len(built) > 1:
                told.set()
                again.wait(30)

        def __call__(self, xs):
            raise onelane.EngineLost("gone")

    queue = onelane.BatchQueue(Model, device, requests=onelane.Items(), factory=True)
    with pytest.raises(onelane.EngineLost):
        queue(1)
    assert told.wait(30)
    assert queue.health().state == "rebuilding"
    assert not queue.health().ok
    again.set()
    queue.close()
    assert queue.health().state == "closed"
