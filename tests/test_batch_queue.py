"""The batch queue on real PyTorch: numbers, batching, errors, deadlines, cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import traceback
import weakref
from collections import namedtuple
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass

import pytest

import onelane

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def device():
    with onelane.DeviceExecutor("cpu") as executor:
        yield executor


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)
    ).eval()


class Hold:
    """Occupies the worker, so that what is submitted meanwhile waits together."""

    def __init__(self, device):
        self.started, self.release = threading.Event(), threading.Event()
        self.future = device.submit(self._hold)
        assert self.started.wait(30)

    def _hold(self):
        self.started.set()
        assert self.release.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release.set()


def close(a, b):
    torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-5)


# Numbers


@pytest.mark.parametrize("threads", [8, 16])
def test_many_threads_get_their_own_answers(device, mlp, threads):
    queue = onelane.BatchQueue(mlp, device)
    inputs = [torch.randn(i % 5 + 1, 64) for i in range(300)]
    with ThreadPoolExecutor(threads) as pool:
        for x, y in zip(inputs, pool.map(queue, inputs), strict=True):
            close(y, mlp(x))
    stats = queue.stats()
    assert stats.submitted == stats.completed == 300
    assert stats.cost == sum(len(x) for x in inputs)
    assert stats.batches < 300


def test_requests_that_wait_together_run_as_one_batch(device):
    sizes = []

    def model(x):
        sizes.append(len(x))
        return x * 2

    queue = onelane.BatchQueue(model, device, max_batch_size=8)
    inputs = [torch.full((i % 3 + 1, 2), float(i)) for i in range(8)]
    with Hold(device):
        futures = [queue.submit(x) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        assert torch.equal(future.result(30), x * 2)
    assert sum(sizes) == 15
    assert max(sizes) <= 8
    assert len(sizes) <= 3


def test_a_request_with_more_rows_than_a_batch_runs_alone_and_whole(device):
    sizes = []
    queue = onelane.BatchQueue(lambda x: sizes.append(len(x)) or x, device, max_batch_size=4)
    with Hold(device):
        futures = [queue.submit(torch.ones(n, 1)) for n in (2, 9, 2)]
    assert [len(f.result(30)) for f in futures] == [2, 9, 2]
    assert 9 in sizes


def test_only_agreeing_requests_share_a_batch(device):
    seen = []

    def model(x, scale):
        seen.append((x.dtype, tuple(x.shape), scale))
        return x * scale

    queue = onelane.BatchQueue(model, device)
    with Hold(device):
        futures = [
            queue.submit(torch.ones(1, width, dtype=dtype), scale)
            for _ in range(2)
            for width in (2, 3)
            for dtype in (torch.float32, torch.float64)
            for scale in (1, 1.0, True)
        ]
    for future in futures:
        future.result(30)
    assert len(seen) == 12
    assert {shape[0] for _, shape, _ in seen} == {2}


def test_dicts_tuples_and_keywords(device):
    def model(a, b=None, *, flag="x"):
        return {"sum": a + b, "flag": flag}

    queue = onelane.BatchQueue(model, device)
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    for result in (
        queue({"a": a, "b": b, "flag": "x"}),
        queue((a, b)),
        queue(a, b),
        queue(a, b=b, flag="x"),
        queue.submit(a=a, b=b).result(30),
    ):
        assert torch.equal(result["sum"], a + b)
        assert result["flag"] == "x"
    whole = onelane.BatchQueue(lambda d: d["a"] + d["b"][0], device, unpack=False)
    assert torch.equal(whole({"a": a, "b": [b]}), a + b)


Pair = namedtuple("Pair", "left right")


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None = None
    cache: None = None


def test_outputs_of_any_nesting_are_split_by_rows(device):
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    def model(x):
        return (
            Pair(x, [x + 1, {"n": x.numpy() + 2}]),
            Output(x * 3, (x * 4, x * 5)),
            BaseModelOutputWithPooling(last_hidden_state=x[:, None], pooler_output=x),
            [str(float(row[0])) for row in x],
        )

    queue = onelane.BatchQueue(model, device)
    inputs = [torch.full((n, 2), float(n)) for n in (1, 2, 3)]
    with Hold(device):
        futures = [queue.submit(x) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        pair, output, hf, texts = future.result(30)
        assert type(pair) is Pair
        assert torch.equal(pair.left, x)
        assert torch.equal(pair.right[0], x + 1)
        assert (pair.right[1]["n"] == x.numpy() + 2).all()
        assert type(output) is Output
        assert torch.equal(output.hidden[1], x * 5)
        assert type(hf) is BaseModelOutputWithPooling
        assert torch.equal(hf.last_hidden_state, x[:, None])
        assert torch.equal(hf[1], x)
        assert texts == [str(float(len(x)))] * len(x)
    assert queue.stats().batches == 1


def test_numpy_in_numpy_out(device, mlp):
    queue = onelane.BatchQueue(mlp, device)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    x.setflags(write=False)
    with Hold(device):
        array, tensor = queue.submit(x[:, ::-1]), queue.submit(torch.ones(1, 64))
    assert isinstance(array.result(30), np.ndarray)
    assert isinstance(tensor.result(30), torch.Tensor)
    expected = mlp(torch.tensor(x[:, ::-1].copy()))
    np.testing.assert_allclose(array.result(), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert array.result().flags.owndata or array.result().base is not None
    with pytest.raises(TypeError, match="dtype"):
        queue(np.array([["a"]]))


def test_results_share_memory_with_nobody(device):
    buffer = torch.zeros(8, 2)

    def model(x):
        # What a CUDA graph does: the same output buffer each time.
        buffer[: len(x)] = x
        return buffer[: len(x)]

    queue = onelane.BatchQueue(model, device)
    alone = queue(torch.ones(8, 2))
    with Hold(device):
        futures = [queue.submit(torch.full((1, 2), float(i))) for i in range(4)]
    parts = [future.result(30) for future in futures]
    assert torch.equal(alone, torch.ones(8, 2))
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 4
    assert all(part.untyped_storage().nbytes() == 8 for part in parts)
    parts[0].fill_(9)
    assert torch.equal(parts[1], torch.ones(1, 2))


def test_an_empty_request(device, mlp):
    queue = onelane.BatchQueue(mlp, device)
    assert queue(torch.empty(0, 64)).shape == (0, 8)


# Padding


def test_padding_gives_what_a_request_gives_alone(device):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    shapes = set()

    def model(x, mask):
        shapes.add(tuple(x.shape))
        return {"hidden": layer(x, src_key_padding_mask=mask == 0), "pooled": x.sum(1)}

    pad = onelane.Pad(dim=1, buckets=(4, 8), mask="mask", trim=("hidden",), rows=(1, 2, 4, 8))
    queue = onelane.BatchQueue(model, device, pad=pad, max_batch_size=8)
    inputs = [torch.randn(1, n, 16) for n in (1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 3)]
    with torch.no_grad(), Hold(device):
        futures = [queue.submit(x) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        result = future.result(30)
        assert result["hidden"].shape == x.shape
        close(result["hidden"], layer(x))
        close(result["pooled"], x.sum(1))
    assert {shape[0] for shape in shapes} <= {1, 2, 4, 8}
    assert {shape[1] for shape in shapes} == {4, 8}
    with pytest.raises(ValueError, match="largest bucket is 8"):
        queue(torch.zeros(1, 9, 16))


def test_padding_of_named_inputs_with_a_given_mask(device):
    pad = onelane.Pad(
        buckets=(4,), value={"ids": 7}, names=("ids", "mask"), mask="mask", side="left", trim=True
    )
    seen = []

    def model(ids, mask, features):
        seen.append((ids, mask))
        return ids * mask

    queue = onelane.BatchQueue(model, device, pad=pad)
    ids, mask = torch.tensor([[1, 2]]), torch.tensor([[0, 1]])
    result = queue(ids=ids, mask=mask, features=torch.zeros(1, 5))
    assert seen[0][0].tolist() == [[7, 7, 1, 2]]
    assert seen[0][1].tolist() == [[0, 0, 0, 1]]
    assert result.tolist() == [[0, 2]]


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 0},
        {"buckets": ()},
        {"buckets": (4, 2)},
        {"side": "top"},
        {"trim": "x"},
        {"rows": (0,)},
    ],
)
def test_bad_padding_is_named(settings):
    with pytest.raises(ValueError, match=rf"Pad\({next(iter(settings))}"):
        onelane.Pad(**settings)


# Other collations


def test_lists(device):
    sizes = []
    queue = onelane.BatchQueue(
        lambda texts: sizes.append(len(texts)) or [t.upper() for t in texts], device, collate="list"
    )
    with Hold(device):
        futures = queue.submit_many(["a", "b", "c"])
    assert [f.result(30) for f in futures] == ["A", "B", "C"]
    assert sizes == [3]
    rows = onelane.BatchQueue(lambda xs: torch.tensor(xs)[:, None], device, collate="list")
    assert rows(5).tolist() == [5]
    short = onelane.BatchQueue(lambda xs: [], device, collate="list")
    with pytest.raises(onelane.NotBatchable, match="0 results for 1 inputs"):
        short(1)


def test_a_collate_function(device):
    queue = onelane.BatchQueue(
        lambda batch: {"y": batch["x"] * 2},
        device,
        collate=lambda xs: {"x": torch.stack(xs)},
    )
    with Hold(device):
        futures = [queue.submit(torch.full((3,), float(i))) for i in range(4)]
    for i, future in enumerate(futures):
        assert future.result(30)["y"].tolist() == [2.0 * i] * 3
    assert queue.stats().batches == 1


def test_a_model_that_cannot_be_batched_is_told_apart_and_told_what_to_do(device):
    for model in (torch.sum, lambda x: x[0], lambda x: (x, 1.5), lambda x: object()):
        with pytest.raises(onelane.NotBatchable, match="batch=False"):
            onelane.BatchQueue(model, device, factory=False)(torch.ones(2, 3))
    queue = onelane.BatchQueue(torch.sum, device, batch=False)
    assert queue(torch.ones(2, 2)).item() == 4
    assert queue(torch.tensor(3.0)).item() == 3
    assert queue(np.ones(3)).item() == 3


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (lambda: (torch.ones(2, 3), torch.ones(4)), ValueError, r"\(2, 3\) torch.float32.*\(4,\)"),
        (lambda: torch.tensor(1.0), ValueError, "batch=False"),
        (lambda: "text", TypeError, "collate='list'"),
        (lambda: {"x": torch.ones(1), "y": {1, 2}}, TypeError, "'y' is of type set"),
    ],
)
def test_a_wrong_input_is_refused_where_it_is_given(device, mlp, bad, error, text):
    queue = onelane.BatchQueue(mlp, device)
    with pytest.raises(error, match=text):
        queue(bad())
    assert queue.stats().submitted == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_size": 0},
        {"capacity": 0},
        {"collate": "rows"},
        {"output": "gpu"},
        {"pad": onelane.Pad(), "batch": False},
        {"max_wait_ms": -1},
    ],
)
def test_bad_settings_are_named(device, mlp, settings):
    with pytest.raises(ValueError, match="|".join(settings)):
        onelane.BatchQueue(mlp, device, **settings)


def test_bad_priorities_are_named(device, mlp):
    with pytest.raises(ValueError, match="interactive"):
        onelane.BatchQueue(mlp, device)(torch.ones(1, 64), priority="high")


# Failures


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

    queue = onelane.BatchQueue(model, device, collate="list", idempotent=False)
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

    queue = onelane.BatchQueue(model, device, collate="list")
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

    queue = onelane.BatchQueue(model, device, collate="list")
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


# One owner


def test_a_factorys_model_lives_and_dies_on_the_worker(device):
    where = []

    class Model:
        def __init__(self):
            where.append(threading.get_ident())

        def __call__(self, x):
            where.append(threading.get_ident())
            return x

        def __del__(self):
            where.append(threading.get_ident())

    queue = onelane.BatchQueue.from_factory(Model, device)
    queue(torch.ones(1))
    queue.close()
    worker = device.call(threading.get_ident)
    assert where == [worker] * 3


def test_inputs_are_dropped_when_their_request_is_answered(device):
    class Thing:
        pass

    queue = onelane.BatchQueue(lambda xs: [1] * len(xs), device, collate="list")
    thing = Thing()
    ref = weakref.ref(thing)
    future = queue.submit(thing)
    del thing
    assert future.result(30) == 1
    device.call(int)
    gc.collect()
    assert ref() is None


def test_modules_for_two_workers_are_two():
    seen = set()
    both = threading.Barrier(2)

    class Model(torch.nn.Module):
        def forward(self, x):
            both.wait(30)
            seen.add(id(self))
            return x

    with onelane.DeviceExecutor("cpu", workers=2) as device:
        queue = onelane.BatchQueue(Model(), device, batch=False)
        wait([queue.submit(torch.ones(1)) for _ in range(2)], timeout=30)
    assert len(seen) == 2


def test_modes_and_context_of_the_caller(device):
    variable = contextvars.ContextVar("variable")

    def model(x):
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return x, [(*modes, torch.is_autocast_enabled("cpu"), variable.get(None))] * len(x)

    queue = onelane.BatchQueue(model, device)
    x = torch.ones(1, 1, requires_grad=True)
    variable.set("here")
    y, seen = queue(x)
    assert seen == [(True, False, False, "here")]
    assert not y.requires_grad
    futures = []
    with Hold(device):
        futures.append(queue.submit(x))
        with torch.no_grad():
            futures.append(queue.submit(x))
        with torch.inference_mode(), torch.autocast("cpu"):
            futures.append(queue.submit(x))
    seen = [future.result(30)[1][0][:3] for future in futures]
    assert seen == [(True, False, False), (False, False, False), (False, True, True)]
    assert not futures[2].result()[0].is_inference()


# Futures


def test_submit_gives_a_real_future(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, collate="list")
    futures = [queue.submit(i) for i in range(50)]
    assert all(isinstance(f, Future) for f in futures)
    assert {f.result() for f in as_completed(futures, timeout=30)} == set(range(50))


def test_a_cancelled_future_leaves_the_queue(device):
    ran = []
    queue = onelane.BatchQueue(lambda xs: ran.extend(xs) or xs, device, collate="list")
    with Hold(device):
        first, second = queue.submit(1), queue.submit(2)
        assert second.cancel()
        assert second.cancel()
        assert second.cancelled()
        assert wait([second], timeout=30).done == {second}
        assert queue.stats().waiting == 1
    assert first.result(30) == 1
    assert not first.cancel()
    with pytest.raises(CancelledError):
        second.result(0)
    assert ran == [1]
    assert queue.stats().cancelled == 1


def test_a_running_request_cannot_be_cancelled(device):
    started, release = threading.Event(), threading.Event()

    def model(xs):
        started.set()
        release.wait(30)
        return xs

    queue = onelane.BatchQueue(model, device, collate="list")
    future = queue.submit(1)
    assert started.wait(30)
    assert future.running()
    assert not future.cancel()
    release.set()
    assert future.result(30) == 1


def test_a_forgotten_future_still_runs(device):
    ran = threading.Event()
    queue = onelane.BatchQueue(lambda xs: [ran.set()], device, collate="list")
    with Hold(device):
        queue.submit(1)
        gc.collect()
    assert ran.wait(30)


def test_a_cancel_storm(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, collate="list")
    futures, stop = [], threading.Event()

    def cancel():
        while not stop.is_set():
            for future in futures[-30:]:
                future.cancel()

    threads = [threading.Thread(target=cancel) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(2000):
        futures.append(queue.submit(i))
    done = wait(futures, timeout=60)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not done.not_done
    for i, future in enumerate(futures):
        assert future.cancelled() or future.result() == i
    assert queue(5) == 5
    stats = queue.stats()
    assert stats.submitted == stats.completed + stats.cancelled == 2001


# Limits


def test_deadlines(device):
    ran = []
    queue = onelane.BatchQueue(lambda xs: ran.extend(xs) or xs, device, collate="list")
    with Hold(device):
        late = queue.submit("late", timeout=0.0)
        with pytest.raises(onelane.DeadlineExceeded):
            queue("call", timeout=0.02)
        with pytest.raises(TimeoutError):
            queue("instant", deadline=time.monotonic() - 1)
    assert isinstance(late.exception(30), onelane.DeadlineExceeded)
    assert queue("ok", timeout=30) == "ok"
    assert ran == ["ok"]
    assert queue.stats().expired == 3


def test_a_call_does_not_wait_longer_than_its_timeout_for_a_batch_that_runs(device):
    release = threading.Event()
    queue = onelane.BatchQueue(lambda xs: [release.wait(30)], device, collate="list")
    with pytest.raises(onelane.DeadlineExceeded, match="running"):
        queue(1, timeout=0.05)
    release.set()
    assert queue(2) is True


def test_priorities(device):
    order = []
    queue = onelane.BatchQueue(lambda xs: order.extend(xs) or xs, device, 1, collate="list")
    with Hold(device):
        futures = [queue.submit(p, priority=p) for p in ("bulk", "normal", "interactive")]
    wait(futures, timeout=30)
    assert order == ["interactive", "normal", "bulk"]


def test_a_full_queue_makes_callers_wait_and_refuses_at_the_deadline(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, capacity=2, collate="list")
    with ThreadPoolExecutor(4) as pool:
        with Hold(device):
            futures = [queue.submit(i) for i in range(2)]
            with pytest.raises(onelane.QueueFull):
                queue.submit(9, timeout=0.02)
            waiting = [pool.submit(queue, i) for i in range(2, 6)]
            with pytest.raises(onelane.RequestTooLarge, match="capacity"):
                queue.submit_many(range(3))
        assert [f.result(30) for f in futures + waiting] == list(range(6))


def test_groups_are_accepted_whole(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, capacity=3, collate="list")
    assert queue.submit_many([]) == []
    with Hold(device):
        queue.submit(0)
        with pytest.raises(onelane.QueueFull):
            queue.submit_many(range(3), timeout=0.02)
        assert queue.stats().waiting == 1
    assert [f.result(30) for f in queue.submit_many(range(3))] == [0, 1, 2]


def test_map_keeps_order_and_does_not_read_ahead_of_its_window(device):
    read = []

    def source():
        for i in range(1000):
            read.append(i)
            yield torch.full((1, 1), float(i))

    queue = onelane.BatchQueue(lambda x: x + 1, device, max_batch_size=4)
    results = queue.map(source())
    assert [next(results).item() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert len(read) < 50
    results.close()
    assert [y.item() for y in queue.map(torch.zeros(3, 1, 1))] == [1, 1, 1]


# Shutdown


def test_close_runs_what_was_accepted_and_refuses_the_rest(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, collate="list")
    with Hold(device):
        futures = [queue.submit(i) for i in range(20)]
        assert not queue.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="closed"):
            queue(1)
    queue.close()
    assert [f.result(0) for f in futures] == list(range(20))
    for use in (lambda: queue(1), lambda: queue.submit(1), lambda: queue.submit_many([1])):
        with pytest.raises(onelane.QueueClosed):
            use()
    assert not queue.health().ok


def test_giving_up_what_waits(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, collate="list")
    with ThreadPoolExecutor(1) as pool, Hold(device):
        futures = [queue.submit(i) for i in range(20)]
        blocked = pool.submit(queue, 1)
        while queue.stats().waiting < 21:
            pass
        queue.shutdown(wait=False, cancel_futures=True)
        for future in [*futures, blocked]:
            assert isinstance(future.exception(30), onelane.QueueClosed)
    with onelane.BatchQueue(lambda xs: xs, device, collate="list") as other:
        assert other(1) == 1


def test_a_dropped_queue_runs_what_was_accepted(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, collate="list")
    with Hold(device):
        futures = [queue.submit(i) for i in range(20)]
        del queue
        gc.collect()
    assert [f.result(30) for f in futures] == list(range(20))


def test_shutting_the_executor_down_closes_its_queues():
    device = onelane.DeviceExecutor("cpu")
    queue = onelane.BatchQueue(lambda xs: xs, device, collate="list")
    device.shutdown()
    with pytest.raises(onelane.QueueClosed):
        queue(1)


# On the worker


def test_a_queue_used_from_a_model_of_the_same_device_runs_inline(device):
    inner = onelane.BatchQueue(lambda xs: [x + 1 for x in xs], device, collate="list")
    outer = onelane.BatchQueue(
        lambda xs: [inner(x) + inner.submit(x).result(5) for x in xs], device, collate="list"
    )
    assert outer(1) == 4
    assert device.call(inner, 5) == 6


def test_a_model_that_waits_for_itself_is_told_at_once(device):
    queue = None

    def model(xs):
        return [queue(x - 1) if x else 0 for x in xs]

    queue = onelane.BatchQueue(model, device, collate="list")
    with pytest.raises(onelane.WouldDeadlock):
        queue(1)

    def submitting(xs):
        return [again.submit(x - 1).result(5) if x else 0 for x in xs]

    again = onelane.BatchQueue(submitting, device, collate="list")
    with pytest.raises(onelane.WouldDeadlock):
        again(1)


# asyncio


def test_two_hundred_concurrent_infers(device, mlp):
    queue = onelane.BatchQueue(mlp, device)
    inputs = [torch.randn(i % 4 + 1, 64) for i in range(200)]

    async def main():
        return await asyncio.gather(*(queue.infer(x) for x in inputs))

    for x, y in zip(inputs, asyncio.run(main()), strict=True):
        close(y, mlp(x))


def test_infer_waits_for_room_without_blocking_the_loop(device):
    queue = onelane.BatchQueue(lambda xs: xs, device, capacity=3, max_batch_size=2, collate="list")

    async def main():
        hold = Hold(device)
        tasks = [asyncio.create_task(queue.infer(i)) for i in range(200)]
        await asyncio.sleep(0)
        alive = await asyncio.sleep(0, "the loop lives")
        tasks[150].cancel()
        hold.release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return alive, results

    alive, results = asyncio.run(main())
    assert alive == "the loop lives"
    assert isinstance(results.pop(150), asyncio.CancelledError)
    assert results == [*range(150), *range(151, 200)]
    assert queue.stats().refused == 0


def test_infer_errors_deadlines_and_cancellation(device):
    ran = []

    def model(xs):
        ran.extend(xs)
        return [1 / x for x in xs]

    queue = onelane.BatchQueue(model, device, collate="list")

    async def main():
        with pytest.raises(ZeroDivisionError):
            await queue.infer(0)
        with Hold(device):
            with pytest.raises(onelane.DeadlineExceeded):
                await queue.infer(3, timeout=0.02)
            task = asyncio.create_task(queue.infer(4))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(queue.infer(5), 0.02)
            assert queue.stats().waiting == 0
        return await queue.infer(2, timeout=30)

    assert asyncio.run(main()) == 0.5
    assert ran == [0, 2]


def test_a_batch_tells_each_loop_once(device, monkeypatch):
    queue = onelane.BatchQueue(lambda xs: xs, device, collate="list")
    calls = []

    async def main():
        loop = asyncio.get_running_loop()
        tell = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *a, **k: calls.append(1) or tell(*a, **k)
        )
        with Hold(device):
            tasks = [asyncio.create_task(queue.infer(i)) for i in range(32)]
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == list(range(32))
    assert queue.stats().batches == 1
    assert len(calls) == 1
