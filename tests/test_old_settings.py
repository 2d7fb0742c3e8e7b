"""The settings that `BatchQueue` had: they work, and a warning shows the new call."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

import onelane
from common import Hold

OLD = [
    # What was written, with `device`, and what the warning says to write.
    (lambda d: onelane.BatchQueue(double, d, collate="list"), "requests=onelane.Items()"),
    (
        lambda d: onelane.BatchQueue(double, d, 8, collate="list", output="device"),
        "requests=onelane.Items(output='device'), max_batch_size=8",
    ),
    (
        lambda d: onelane.BatchQueue(double, d, 8, 2.5, 16),
        "max_wait=0.0025, max_batch_size=8, capacity=16",
    ),
    (
        lambda d: onelane.BatchQueue(double, device=d, copy_outputs=False, unpack=False),
        "requests=onelane.Tensors(unpack=False, copy=False)",
    ),
    (lambda d: onelane.BatchQueue(double, d, batch=False), "requests=onelane.Each()"),
    (
        lambda d: onelane.BatchQueue(stacked, d, collate=torch.stack),
        "requests=onelane.Items(collate=stack)",
    ),
    (
        lambda d: onelane.BatchQueue(double, d, pad=onelane.Pad(buckets=(4, 8), trim=True)),
        "requests=onelane.Tensors(pad=onelane.Pad(buckets=(4, 8), trim=True))",
    ),
    (
        lambda d: onelane.BatchQueue(double, d, max_batch_cost=64, cost=torch.numel),
        "requests=onelane.Tensors(cost=numel), max_batch_cost=64",
    ),
    (
        lambda d: onelane.BatchQueue.from_factory(lambda: double, d, collate="list"),
        "requests=onelane.Items(), factory=True",
    ),
    (
        lambda d: onelane.BatchQueue(double, d, 8, 0, 16, 1, "tensor", None, "cpu"),
        "requests=onelane.Tensors(), max_wait=0.0, max_batch_size=8, capacity=16",
    ),
]


def double(x):
    return [part * 2 for part in x] if isinstance(x, list) else x * 2


def stacked(x):
    return x * 2


@pytest.mark.parametrize(("make", "new"), OLD, ids=[new for _, new in OLD])
def test_the_old_spelling_works_and_the_new_one_is_shown(device, make, new):
    with pytest.warns(DeprecationWarning, match="old spelling") as caught:
        queue = make(device)
    (warning,) = caught
    shown = str(warning.message).partition("Write: ")[2]
    assert shown == f"onelane.BatchQueue(model, device, {new})"
    assert warning.filename == __file__
    assert queue(torch.ones(1, 4)).tolist() == [[2.0] * 4]
    queue.close()


def test_what_is_shown_can_be_called_as_it_is(device):
    with pytest.warns(DeprecationWarning, match="old spelling") as caught:
        onelane.BatchQueue(
            double, "cpu", 4, 1, pad=onelane.Pad(rows=(2, 4)), idempotent=False, name="n"
        )
    shown = str(caught[0].message).partition("Write: ")[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue = eval(shown, {"onelane": onelane, "model": double})
    assert "onelane.BatchQueue(model, 'cpu', requests=onelane.Tensors(pad=onelane.Pad(" in shown
    with Hold(queue.executor):
        futures = [queue.submit(torch.ones(1, 4)) for _ in range(8)]
    assert [int(future.result(30).sum()) for future in futures] == [8] * 8
    assert queue.stats().batches == 2, "max_batch_size was lost"


def test_workers_are_the_executors(device):
    with pytest.warns(DeprecationWarning, match="old spelling") as caught:
        queue = onelane.BatchQueue(double, "fpga:7", workers=2)
    assert "device=" not in str(caught[0].message)
    assert "onelane.BatchQueue(model, onelane.executor('fpga:7', workers=2))" in str(
        caught[0].message
    )
    assert queue.executor.workers == 2
    queue.executor.shutdown()


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"collate": "tensors"}, ValueError, "Did you mean 'tensor'"),
        ({"collate": "list", "pad": onelane.Pad()}, ValueError, "onelane.Tensors(pad=...)"),
        ({"batch": False, "cuda_graphs": True}, ValueError, "onelane.Tensors(cuda_graphs=...)"),
        ({"collate": "list", "requests": onelane.Items()}, TypeError, "a part of requests="),
        ({"copy_outputs": 1}, TypeError, "copy=1"),
        ({"output": "devise"}, ValueError, "Did you mean 'device'"),
        ({"max_wait_ms": -1}, ValueError, "max_wait"),
        ({"collate": "list", "max_batchsize": 3}, TypeError, "max_batch_size"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*old spelling")
def test_wrong_old_settings_are_still_named(device, settings, error, text):
    with pytest.raises(error, match=re.escape(text)):
        onelane.BatchQueue(double, device, **settings)


@pytest.mark.filterwarnings("ignore:.*old spelling")
def test_what_comes_twice_is_refused(device):
    with pytest.raises(TypeError, match="two values for 'max_batch_size'"):
        onelane.BatchQueue(double, device, 4, 1, max_batch_size=8)
    with pytest.raises(TypeError, match="no more"):
        onelane.BatchQueue(double, device, 4, 1, 2, 1, "list", None, "cpu", 3)
