"""Checks of numbers and threads: what aborts, what comes out wrong, and what cures it."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onelane
from onelane._mac_check.device import Device, NotRun


def _loop(step: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run


def _arange() -> None:
    import torch

    torch.arange(256, device="mps").cpu()


def arange2(device: Device) -> dict[str, Any]:
    device.together([_loop(_arange, device.size(2000, 30))] * 2)
    return {}


def _product_and_wait() -> None:
    import torch

    x = torch.ones(64, 64, device="mps")
    (x @ x).sum()
    torch.mps.synchronize()


def sync2(device: Device) -> dict[str, Any]:
    device.together([_loop(_product_and_wait, device.size(1000, 20))] * 2)
    return {}


def _fresh(at: int) -> Callable[[], None]:
    import torch

    kernels = (torch.sin, torch.exp, torch.tanh, torch.sqrt, torch.sigmoid, torch.abs)

    def run() -> None:
        x = torch.ones(16 + at, 16, device="mps")
        for kernel in kernels:
            kernel(x).cpu()

    return run


def first_use(device: Device) -> dict[str, Any]:
    import torch

    # Kernels are fresh once in a process: all threads meet the same ones at once.
    x = torch.ones(64, 64).to("mps")

    def run() -> None:
        for kernel in (torch.sin, torch.exp, torch.tanh, torch.sqrt, torch.sigmoid, torch.abs):
            kernel(x)
            torch.softmax(x, 0)

    device.together([run] * 4)
    return {}


def arange_worker(device: Device) -> dict[str, Any]:
    worker = onelane.executor("mps")
    times = device.size(500, 10)

    def client() -> None:
        for _ in range(times):
            worker.call(_arange)
            worker.call(_product_and_wait)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(client) for _ in range(4)]:
            done.result()
    return {"calls": worker.stats().completed}


def _ten() -> dict[str, tuple[Callable[[], Any], tuple[int, ...]]]:
    """The ten tests: what is made of which input."""
    import torch
    from torch import nn

    def product(*shape: int) -> Callable[[], Any]:
        class Product(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.other = nn.Parameter(torch.randn(*shape))

            def forward(self, x: Any) -> Any:
                return torch.matmul(x, self.other)

        return Product

    block = functools.partial(nn.TransformerEncoderLayer, 256, 4, 1024, batch_first=True)
    return {
        "Linear 512": (lambda: nn.Linear(512, 256), (16, 512)),
        "Linear 2048": (lambda: nn.Linear(2048, 2048), (64, 2048)),
        "Matmul 256": (product(512, 256), (256, 512)),
        "Matmul 1024": (product(1024, 1024), (1024, 1024)),
        "BMM": (product(8, 64, 64), (8, 64, 64)),
        "LayerNorm": (lambda: nn.LayerNorm(768), (16, 512, 768)),
        "Softmax": (lambda: nn.Softmax(dim=-1), (4, 128, 32000)),
        "Conv2d": (lambda: nn.Conv2d(3, 64, 3, padding=1), (4, 3, 224, 224)),
        "GELU": (nn.GELU, (16, 512, 768)),
        "TransformerBlock": (block, (4, 128, 256)),
    }


def _ten_tests(device: Device, queued: bool) -> dict[str, Any]:
    import torch

    passed: dict[str, tuple[int, int]] = {}
    times = device.size(10, 1)
    for name, (make, shape) in _ten().items():
        torch.manual_seed(42)
        made, inputs = make().eval(), torch.randn(shape)
        good = 0
        with torch.no_grad():
            if queued:
                with onelane.BatchQueue(made, "mps", onelane.Each()) as queue:
                    expected = queue(inputs)
                    with ThreadPoolExecutor(8) as pool:
                        for _ in range(times):
                            results = list(pool.map(queue, [inputs] * 8))
                            good += all(torch.allclose(r, expected, 1e-5, 1e-5) for r in results)
            else:
                model = made.to("mps")
                expected = model(inputs.to("mps")).cpu()

                def ask(model: Any = model, inputs: Any = inputs) -> Any:
                    with torch.no_grad():
                        return model(inputs.to("mps")).cpu()

                for _ in range(times):
                    results = device.together([ask] * 8)
                    good += all(torch.allclose(r, expected, 1e-6, 1e-6) for r in results)
                del model
        passed[name] = (good, times)
    return {"passed": passed}


def ten_direct(device: Device) -> dict[str, Any]:
    return _ten_tests(device, queued=False)


def ten_queue(device: Device) -> dict[str, Any]:
    return _ten_tests(device, queued=True)


def _race(width: int, kept: bool) -> Callable[[Any], Any]:
    """The minimal race: a packed projection, its copy, attention."""
    import torch
    from torch.nn import functional

    torch.manual_seed(42)
    weight, bias = torch.randn(3 * width, width).to("mps"), torch.randn(3 * width).to("mps")

    def compute(x: Any) -> Any:
        projection: Any = functional.linear(x, weight, bias)
        packed = projection.unflatten(-1, (3, width)).unsqueeze(0).transpose(0, -2).squeeze(-2)
        held = projection if kept else None
        del projection
        packed = packed.contiguous()
        shape = (*x.shape[:2], 4, width // 4)
        q, k, v = (packed[at].view(shape).transpose(1, 2) for at in range(3))
        result = functional.scaled_dot_product_attention(q, k, v)
        torch.mps.synchronize()
        del held
        return result

    return compute


def _iterations(
    device: Device, compute: Callable[[Any], Any], shape: tuple[int, ...], tolerance: float,
    times: int,
) -> tuple[int, int]:  # fmt: skip
    import torch

    good = 0
    with torch.no_grad():
        for iteration in range(times):
            inputs = []
            for at in range(8):
                torch.manual_seed(iteration * 1000 + at)
                inputs.append(torch.randn(shape).to("mps"))
            torch.mps.synchronize()
            # On the device's own memory, as in the published test; compared on the host.
            expected = [compute(x).clone() for x in inputs]
            torch.mps.synchronize()

            def ask(x: Any) -> Any:
                with torch.no_grad(), _own_stream(device):
                    return compute(x)

            results = device.together([functools.partial(ask, x) for x in inputs])
            good += all(
                torch.allclose(a.cpu(), b.cpu(), tolerance, tolerance)
                for a, b in zip(results, expected, strict=True)
            )
            del inputs, expected, results
    return good, times


@contextlib.contextmanager
def _own_stream(device: Device) -> Iterator[None]:
    """A stream of the thread's own; the simulated device gives one by its profile."""
    import torch

    stream = None if device.sim is not None else getattr(torch.mps, "Stream", None)
    if stream is None:
        yield
    else:
        with getattr(torch.mps, "stream")(stream()):  # noqa: B009
            yield


def user_streams(device: Device) -> dict[str, Any]:
    import torch
    from torch import nn

    if device.sim is None and not (hasattr(torch.mps, "Stream") and hasattr(torch.mps, "stream")):
        raise NotRun("this PyTorch has no torch.mps.Stream")
    times = device.size(30, 5)
    torch.manual_seed(42)
    attention = nn.MultiheadAttention(256, 4, batch_first=True).eval().to("mps")
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True).eval().to("mps")

    def attend(x: Any) -> Any:
        result = attention(x, x, x, need_weights=False)[0]
        torch.mps.synchronize()
        return result

    def encode(x: Any) -> Any:
        result = layer(x)
        torch.mps.synchronize()
        return result

    shape = (4, 128, 256)
    return {
        "passed": {
            "race": _iterations(device, _race(256, False), shape, 1e-3, times),
            "MultiheadAttention": _iterations(device, attend, shape, 1e-3, times),
            "TransformerEncoderLayer": _iterations(device, encode, shape, 1e-3, times),
        }
    }


def fork_only(device: Device) -> dict[str, Any]:
    import torch
    from torch import nn

    from onelane import patch035

    if device.sim is None:
        raise NotRun("stock PyTorch shares one stream: these are claims about the fork")
    times = device.size(30, 6)
    kept = _iterations(device, _race(256, True), (4, 128, 256), 1e-3, times)
    width = _iterations(device, _race(128, False), (4, 128, 128), 1e-3, times)
    # In loops: no thread waits for the others between its iterations.
    torch.manual_seed(42)
    attention = nn.MultiheadAttention(256, 4, batch_first=True).eval().to("mps")
    inputs = [torch.randn(4, 128, 256).to("mps") for _ in range(8)]
    with patch035.enabled(), torch.no_grad():
        expected = [attention(x, x, x, need_weights=False)[0].cpu() for x in inputs]

        def loop(at: int) -> int:
            good = 0
            with torch.no_grad():
                for _ in range(times):
                    x = inputs[at]
                    found = attention(x, x, x, need_weights=False)[0]
                    torch.mps.synchronize()
                    good += bool(torch.allclose(found.cpu(), expected[at], 1e-3, 1e-3))
            return good

        passed = sum(device.together([functools.partial(loop, at) for at in range(8)]))
    return {
        "passed": {
            "projection kept": kept,
            "width 128": width,
            "patch 035 in loops": (passed, 8 * times),
        }
    }


def wrong_matmul(device: Device) -> dict[str, Any]:
    import torch

    draw, wrong = random.Random(0), 0
    times = device.size(400, 20)
    for _ in range(times):
        rows = draw.choice((30, 64, 100, 257, 600))
        left, right = torch.randn(rows, 25), torch.randn(rows, 25)
        # Memory of other sizes comes and goes, so that blocks are used again.
        waste = [torch.empty(draw.randint(1, 4096), device="mps") for _ in range(4)]
        found = left.to("mps").T @ right.to("mps")
        del waste
        expected = left.T @ right
        wrong += not torch.allclose(found.cpu(), expected, 1e-3, 1e-3)
    return {"wrong": wrong, "products": times}


def async_load(device: Device) -> dict[str, Any]:
    if device.sim is not None:
        raise NotRun("loading onto the device is not simulated")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    from transformers import AutoModel

    from onelane._mac_check import models

    worker = onelane.executor("mps")
    with tempfile.TemporaryDirectory() as folder:
        path = models.bert(Path(folder))
        for _ in range(10):
            model = worker.call(AutoModel.from_pretrained, path, device_map="mps")
            worker.call(_read, model)
            worker.call(lambda: None)
            del model
    return {"loads": 10}


def _read(model: Any) -> Any:
    return next(model.parameters()).sum().cpu()
