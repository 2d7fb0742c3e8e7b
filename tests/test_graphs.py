"""Recorded work: what it is given and gives back.

The recorder is a double that does the work again; the tests at the end have a device that records.
"""

from __future__ import annotations

import gc
import threading
import warnings

import pytest

import onelane
from common import Hold
from onelane import _graphs, _model

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


class HostRecorder:
    """Records on the host."""

    def __init__(self):
        self.shapes = []
        self.replays = 0
        self.fails = None

    def upload(self, tensor):
        return tensor.clone()

    def host(self, shape, dtype):
        return torch.zeros(tuple(shape), dtype=dtype)

    def made(self, tensor):
        return tensor.dtype != torch.int8

    def rehearse(self, work):
        self.shapes.append(work())
        return work()

    def record(self, work):
        if self.fails:
            raise self.fails

        def replay():
            self.replays += 1
            work()

        return replay

    @property
    def sizes(self):
        return [shape.shape[0] for shape in self.shapes]


@pytest.fixture
def recorder(monkeypatch):
    double = HostRecorder()
    plain = _model.Runner.__init__

    def init(self, model, build):
        plain(self, model, build)
        self.graphs = _graphs.Graphs(double, model)

    monkeypatch.setattr(_model.Runner, "__init__", init)
    return double


def rows_of(*sizes):
    """Requests that differ in every number."""
    numbers = iter(torch.randn(sum(sizes), 64, generator=torch.Generator().manual_seed(1)))
    return [torch.stack([next(numbers) for _ in range(size)]) for size in sizes]


def together(queue, device, requests):
    """The responses to requests that run as one batch."""
    with Hold(device):
        futures = [queue.submit(request) for request in requests]
    return [future.result(30) for future in futures]


@pytest.mark.parametrize("copy_outputs", [True, False])
def test_a_replayed_batch_gives_what_each_request_gets_alone(device, mlp, recorder, copy_outputs):
    queue = onelane.BatchQueue(mlp, device, onelane.Tensors(copy=copy_outputs), max_batch_size=64)
    kept = []
    for sizes in ([1], [3, 2, 4], [1] * 33, [40], [1] * 9, [3, 2, 4]):
        requests = rows_of(*sizes)
        responses = together(queue, device, requests)
        kept += zip(requests, responses, [r.clone() for r in responses], strict=True)
    for request, response, at_first in kept:
        # The next batch has not written over it.
        assert torch.equal(response, at_first)
        with torch.no_grad():
            torch.testing.assert_close(response, mlp(request), atol=1e-5, rtol=1e-5)
    # Nine rows were there before, and forty are computed for thirty-three.
    assert recorder.sizes == [1, 9 + 1, 40]
    assert recorder.replays == 6


def test_rows_that_nobody_asked_for_are_copies_of_the_last(device, recorder):
    seen = []

    def model(x):
        seen.append(x.clone())
        return x + 1

    queue = onelane.BatchQueue(model, device, max_batch_size=64)
    for requests in (rows_of(*[1] * 17), rows_of(*[1] * 18)):
        assert torch.equal(torch.cat(together(queue, device, requests)), torch.cat(requests) + 1)
        whole = seen[-1]
        assert whole.shape[0] == 20
        assert torch.equal(whole[: len(requests)], torch.cat(requests))
        assert all(torch.equal(row, requests[-1][0]) for row in whole[len(requests) :])
    assert recorder.sizes == [20]


def test_sizes_are_few_and_a_quarter_larger_at_most():
    sizes = [_graphs._size(rows) for rows in range(1, 4097)]
    assert all(
        rows <= size <= 1.25 * rows for rows, size in zip(range(1, 4097), sizes, strict=True)
    )
    assert sizes == sorted(sizes)
    assert sizes[:16] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12, 14, 14, 16, 16]
    assert len(set(sizes)) == 8 + 4 * 9


def test_structures_keywords_and_padding(device, recorder):
    def model(ids, scale=1.0, *, mask):
        assert ids.shape == mask.shape
        real = ids * mask
        return {"sum": real.sum(1, keepdim=True) * scale, "ids": real, "name": "x"}

    pad = onelane.Pad(buckets=(4, 8), mask="mask")
    queue = onelane.BatchQueue(model, device, onelane.Tensors(pad=pad))
    for _ in range(2):
        requests = [torch.arange(1, n + 1)[None] for n in (3, 4, 7, 2)]
        with Hold(device):
            futures = [queue.submit({"ids": ids, "scale": 2.0}) for ids in requests]
        for ids, future in zip(requests, futures, strict=True):
            response = future.result(30)
            assert torch.equal(response["sum"], 2.0 * ids.sum(1, keepdim=True))
            assert torch.equal(response["ids"][:, : ids.shape[1]], ids)
            assert response["name"] == "x"
    assert recorder.replays == 4


def test_modes_and_dtypes_are_recorded_apart(device, mlp, recorder):
    queue = onelane.BatchQueue(lambda x: x * (2 if torch.is_grad_enabled() else 3), device)
    x = torch.ones(1, 2)
    for _ in range(2):
        assert queue(x).unique().item() == 2
        with torch.no_grad():
            assert queue(x).unique().item() == 3
        assert queue(x.double()).dtype == torch.float64
    assert len(recorder.shapes) == 3
    assert recorder.replays == 6


def test_an_input_that_wants_a_gradient_is_not_recorded(device, recorder):
    queue = onelane.BatchQueue(
        lambda x: torch.autograd.grad((x * x).sum(), x)[0] if x.requires_grad else 2 * x, device
    )
    for requests in (rows_of(1, 1), rows_of(1)):
        for request in requests:
            request.requires_grad_()
        responses = together(queue, device, requests)
        for request, response in zip(requests, responses, strict=True):
            torch.testing.assert_close(response, 2 * request.detach())
    assert not recorder.shapes


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "x", [torch.eye(3).to_sparse(), torch.eye(3).as_subclass(Subclass), torch.empty(0, 3)]
)
def test_inputs_that_are_not_plain_are_not_recorded(device, recorder, x):
    queue = onelane.BatchQueue(lambda x: x.to_dense() + 1, device)
    assert torch.equal(queue(x), x.to_dense() + 1)
    assert not recorder.shapes


def test_what_cannot_be_recorded_runs_without_and_says_so_once(device, mlp, recorder):
    recorder.fails = RuntimeError("operation not permitted when stream is capturing")
    queue = onelane.BatchQueue(mlp, device)
    (x,) = rows_of(2)
    with torch.no_grad():
        expected = mlp(x)
    with pytest.warns(RuntimeWarning, match=r"for 2 rows.*not permitted"):
        torch.testing.assert_close(queue(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(queue(x), expected)
    assert recorder.replays == 0


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda x: (x + 1, [1.0] * len(x)), r"a list of 4 plain values"),
        (lambda x: (x + 1, np.ones(len(x))), r"a NumPy array"),
        (lambda x: (x + 1, torch.zeros(len(x), dtype=torch.int8)), r"shape \(4,\) is on cpu"),
    ],
)
def test_what_replaying_would_leave_as_it_was_is_not_recorded(device, recorder, model, why):
    queue = onelane.BatchQueue(model, device)
    (x,) = rows_of(4)
    with pytest.warns(RuntimeWarning, match=why):
        response, _ = queue(x)
    assert torch.equal(response, x + 1)
    assert recorder.replays == 0


@pytest.mark.filterwarnings("ignore:the model cannot be recorded")
def test_an_output_that_is_not_by_rows_is_an_error_as_without(device, recorder):
    queue = onelane.BatchQueue(lambda x: x.sum(), device)
    for _ in range(2):
        with pytest.raises(onelane.NotBatchable, match="shape"):
            queue(torch.ones(3, 2))


def test_a_request_that_the_model_refuses_fails_alone(device, recorder):
    def model(x):
        if (x < 0).any():
            raise ValueError("negative")
        return x

    queue = onelane.BatchQueue(model, device)
    good, bad = torch.ones(1, 2), -torch.ones(1, 2)
    with Hold(device):
        futures = [queue.submit(x) for x in (good, bad, good)]
    assert torch.equal(futures[0].result(30), good)
    assert torch.equal(futures[2].result(30), good)
    with pytest.raises(ValueError, match="negative"):
        futures[1].result(30)


def test_so_many_shapes_are_recorded_and_no_more(device, mlp, recorder, monkeypatch):
    monkeypatch.setattr(_graphs, "_MOST_SHAPES", 2)
    queue = onelane.BatchQueue(mlp, device)
    for _ in range(2):
        for x in rows_of(1, 2, 3, 4):
            with torch.no_grad():
                torch.testing.assert_close(queue(x), mlp(x))
    assert recorder.sizes == [1, 2]


def test_large_tensors_are_not_kept(device, recorder, monkeypatch):
    monkeypatch.setattr(_graphs, "_MOST_BYTES", 2 * 64 * 4)
    queue = onelane.BatchQueue(lambda x: x + 1, device)
    small, large = rows_of(2, 3)
    assert torch.equal(queue(small), small + 1)
    assert torch.equal(queue(large), large + 1)
    assert recorder.sizes == [2]
    queue = onelane.BatchQueue(lambda x: x.repeat(1, 2), device)
    with pytest.warns(RuntimeWarning, match=r"shape \(2, 128\) is large"):
        assert queue(small).shape == (2, 128)


def test_the_model_dies_with_its_queue_on_the_worker(device, recorder):
    died = []

    class Model:
        def __call__(self, x):
            return x + 1

        def __del__(self):
            died.append(threading.current_thread())

    gc.disable()
    try:
        queue = onelane.BatchQueue(Model, device, factory=True)
        for x in rows_of(1, 3, 1):
            assert torch.equal(queue(x), x + 1)
        assert recorder.replays == 3
        assert not died
        queue.close()
        assert len(died) == 1
        assert died[0] is not threading.main_thread()
    finally:
        gc.enable()


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_the_setting_is_true_or_false(value):
    with pytest.raises(TypeError, match=f"cuda_graphs={value!r}"):
        onelane.Tensors(cuda_graphs=value)


def test_what_does_not_go_with_it_is_refused(device, mlp):
    with pytest.raises(ValueError, match="results that leave the device: use output='cpu'"):
        onelane.Tensors(cuda_graphs=True, output="device")
    graphs = onelane.Tensors(cuda_graphs=True)
    with pytest.raises(ValueError, match="does not go with idempotent=False"):
        onelane.BatchQueue(mlp, device, graphs, idempotent=False)
    with pytest.raises(ValueError, match="the device is 'cpu', which has none"):
        onelane.BatchQueue(mlp, device, graphs)


# On a device.

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
def test_threads_get_what_they_get_alone():
    torch.manual_seed(0)
    calls = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)
            )

        def forward(self, x):
            calls.append(x.shape)
            return self.layers(x)

    requests = rows_of(*[1 + n % 3 for n in range(64)])
    model = Model()
    with torch.no_grad():
        expected = [model.layers(x) for x in requests]
    off = [0.0] * len(requests)
    with onelane.BatchQueue(model, "cuda", onelane.Tensors(cuda_graphs=True)) as queue:

        def client(number):
            for _ in range(50):
                y = queue(requests[number])
                off[number] = max(off[number], (y - expected[number]).abs().max().item())

        crew = [threading.Thread(target=client, args=(n,)) for n in range(len(requests))]
        for member in crew:
            member.start()
        for member in crew:
            member.join()
        stats = queue.stats()
    assert max(off) < 1e-4
    # Twice to rehearse, once to record, for each shape; the rest are replayed.
    assert len(calls) <= 3 * 30 < stats.batches
    assert stats.completed == 50 * len(requests)


@cuda
def test_weights_that_change_in_place_are_seen():
    model = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4)

    def double():
        with torch.no_grad():
            model.weight.mul_(2)
            return model.weight.cpu(), model.bias.cpu()

    with onelane.BatchQueue(model, "cuda", onelane.Tensors(cuda_graphs=True)) as queue:
        before = queue(x)
        weight, bias = queue.executor.call(double)
        after = queue(x)
    expected = torch.nn.functional.linear(x, weight, bias).detach()
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after, before)


@cuda
def test_a_model_that_waits_for_the_device_runs_without():
    def model(x):
        return x * (2 if x.sum().item() > 0 else 3)

    with onelane.BatchQueue(model, "cuda", onelane.Tensors(cuda_graphs=True)) as queue:
        with pytest.warns(RuntimeWarning, match="cannot be recorded"):
            assert torch.equal(queue(torch.ones(1, 2)), 2 * torch.ones(1, 2))
        assert torch.equal(queue(-torch.ones(1, 2)), -3 * torch.ones(1, 2))
    # The device is as it was.
    with (
        warnings.catch_warnings(),
        onelane.BatchQueue(lambda x: x + 1, "cuda", onelane.Tensors(cuda_graphs=True)) as queue,
    ):
        warnings.simplefilter("error")
        for _ in range(3):
            assert torch.equal(queue(torch.ones(3, 2)), 2 * torch.ones(3, 2))


@cuda
def test_other_threads_may_use_the_device_meanwhile():
    stop = threading.Event()
    x = torch.randn(32, 64)

    def other():
        y = x.cuda()
        while not stop.is_set():
            y = (y @ torch.randn(64, 64).cuda()).clamp(-1, 1)
        torch.cuda.synchronize()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        layer = torch.nn.Linear(64, 64)
        with torch.no_grad():
            expected = layer(x)
        with (
            warnings.catch_warnings(),
            onelane.BatchQueue(layer, "cuda", onelane.Tensors(cuda_graphs=True)) as queue,
        ):
            warnings.simplefilter("error")
            for rows in range(1, 33):
                torch.testing.assert_close(queue(x[:rows]), expected[:rows], atol=1e-4, rtol=1e-4)
    finally:
        stop.set()
        thread.join()
