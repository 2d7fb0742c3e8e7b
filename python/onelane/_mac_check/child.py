"""One check, in a process of its own: `python -m onelane._mac_check.child NAME [PROFILE] [SEED]`.

Runs on mps, or with a profile on the simulated device, and prints what it observed as the last line
of stdout. A crash ends the process: the parent sees that.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onelane
from onelane import _memory, _shapes

LIMIT_S = float(os.environ.get("ONELANE_CHECK_S", "100"))
_began = time.monotonic()


class NotRun(Exception):
    """The check cannot run here; the text says why."""


class Device:
    """The device under a check: mps, or a simulated one."""

    def __init__(self, sim: Any) -> None:
        self.sim = sim

    def together(self, functions: list[Callable[[], Any]]) -> list[Any]:
        """Run functions in threads that start together."""
        if self.sim is not None:
            return list(self.sim.run(*functions))
        barrier = threading.Barrier(len(functions))

        def run(function: Callable[[], Any]) -> Any:
            barrier.wait()
            return function()

        with ThreadPoolExecutor(len(functions)) as pool:
            return list(pool.map(run, functions))

    def size(self, mac: int, simulated: int) -> int:
        """How often to do something: the simulated device is slow."""
        return mac if self.sim is None else simulated

    def memory(self) -> int:
        """Bytes of the device that are taken, graphs included."""
        if self.sim is not None:
            stats = self.sim.stats()
            return int(stats["reserved_bytes"] + stats.get("graph_bytes", 0))
        import torch

        driver = int(torch.mps.driver_allocated_memory())
        return max(driver, _memory.footprint() or 0)


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


def _encoder() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval().to("mps")


def _lengths(count: int) -> list[int]:
    draw = random.Random(1)
    return [draw.randint(1, 500) for _ in range(count)]


def _run_lengths(device: Device, bucketed: bool, count: int) -> list[int]:
    import torch

    from onelane._install.lengths import length_bucket

    worker = onelane.executor("mps")
    model = worker.call(_encoder)

    def run(length: int) -> int:
        with torch.no_grad():
            model(torch.zeros(1, length, 64, device="mps")).cpu()
        return device.memory()

    taken = [
        worker.call(run, length_bucket(length) if bucketed else length)
        for length in _lengths(count)
    ]
    worker.call(_empty)
    return taken


def _empty() -> None:
    import torch

    torch.mps.empty_cache()


def shapes(device: Device) -> dict[str, Any]:
    count = device.size(300, 90)
    bucketed = _run_lengths(device, True, count)
    plain = _run_lengths(device, False, count)
    return {
        "plain after 100": plain[count // 3],
        "plain at the end": plain[-1],
        "bucketed after 100": bucketed[count // 3],
        "bucketed at the end": bucketed[-1],
        "batches": count,
    }


def graphs_vs_pool(device: Device) -> dict[str, Any]:
    import torch

    worker = onelane.executor("mps")
    model = worker.call(_encoder)
    start = worker.call(device.memory)

    def run(length: int) -> None:
        with torch.no_grad():
            model(torch.zeros(1, length, 64, device="mps")).cpu()

    for length in _lengths(device.size(300, 60)):
        worker.call(run, length)
    full = worker.call(device.memory)
    worker.call(_empty)
    return {"start": start, "full": full, "emptied": worker.call(device.memory)}


def missing_pools(device: Device) -> dict[str, Any]:
    if sys.platform != "darwin":
        raise NotRun("there is no Objective-C here")
    import torch

    worker = onelane.executor("mps")

    def run() -> None:
        x = torch.ones(64, 64, device="mps")
        for _ in range(20):
            (x @ x).cpu()

    for _ in range(100):
        worker.call(run)
    # Objective-C writes to stderr, which the parent counts.
    return {"products": 2000}


def isolation(device: Device) -> dict[str, Any]:
    make = getattr(onelane, "Isolation", None)
    if make is None:
        raise NotRun("this onelane has no isolation in Python")
    if device.sim is not None:
        raise NotRun("a child process has no simulated device")
    queue = onelane.BatchQueue(
        _aborting, "mps", onelane.Items(), factory=True, isolation=make(hang_s=20)
    )
    futures = [queue.submit(at) for at in range(8)]
    failed, right = False, 0
    for at, future in enumerate(futures):
        try:
            found = future.result(90)
        except Exception:
            failed = failed or at == 3
        else:
            right += found == at * 2
    return {"culprit failed": failed, "others right": right, "others": 7}


def _aborting() -> Callable[[list[int]], list[int]]:
    import torch

    def model(items: list[int]) -> list[int]:
        if 3 in items:
            os.abort()
        return [int(x) for x in (torch.tensor(items, device="mps") * 2).cpu()]

    return model


def throughput(device: Device) -> dict[str, Any]:
    if device.sim is not None:
        raise NotRun("speed is not simulated")
    from onelane._mac_check import models

    texts = models.texts(256, longest=60)
    with tempfile.TemporaryDirectory() as folder:
        path = models.minilm() or models.sentence_transformer(Path(folder), large=True)
        lock = threading.Lock()
        model = models.load(path, "mps")

        def locked(text: str) -> None:
            with lock:
                model.encode(text)

        under_lock = _rate(locked, texts)
        onelane.install("mps")
        installed = models.load(path, "mps")
        queue = _rate(installed.encode, texts)
        onelane.uninstall()
    return {"lock": under_lock, "queue": queue, "unit": "texts a second"}


def _rate(ask: Callable[[str], object], texts: list[str], seconds: float = 10.0) -> float:
    for text in texts[:16]:
        ask(text)
    end = time.monotonic() + seconds

    def client(at: int) -> int:
        done = 0
        while time.monotonic() < end:
            ask(texts[(at * 31 + done) % len(texts)])
            done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(client, range(8))) / seconds


def install_e2e(device: Device) -> dict[str, Any]:
    from onelane._mac_check import models

    texts = models.texts(device.size(300, 24), longest=device.size(200, 24))
    with tempfile.TemporaryDirectory() as folder:
        path, pairs = models.sentence_transformer(Path(folder)), models.cross_encoder(Path(folder))
        bare = models.load(path, "cpu")
        alone = [bare.encode(text) for text in texts]
        with onelane.audit("mps", report=lambda finding: None) as audit:
            onelane.install("mps")
            model, ranker = models.load(path, "mps"), models.load_pairs(pairs, "mps")
            with ThreadPoolExecutor(8) as pool:
                ranked = [pool.submit(ranker.predict, [("w1", text)]) for text in texts[:8]]
                results = list(pool.map(model.encode, texts))
                for score in ranked:
                    score.result()
            whole = model.encode(texts)
            del model, ranker
            onelane.uninstall()
        difference = max(
            float(abs(a - b).max())
            for got in (results, whole)
            for a, b in zip(got, alone, strict=True)
        )
    return {
        "findings": len(audit.findings),
        "difference": difference,
        "shapes": _shapes.count("mps"),
    }


def release(device: Device) -> dict[str, Any]:
    import gc

    import torch

    from onelane._mac_check import models

    done = onelane.install("mps")
    worker = onelane.executor("mps")
    allocated = torch.mps.current_allocated_memory
    with tempfile.TemporaryDirectory() as folder:
        path = models.sentence_transformer(Path(folder))
        after, start = [], worker.call(allocated)
        one = 0
        for _ in range(20):
            model = models.load(path, "mps")
            one = max(one, worker.call(allocated) - start)
            del model
            gc.collect()
            limit = time.monotonic() + 10
            while done.unreleased and time.monotonic() < limit:
                time.sleep(0.02)
            after.append(worker.call(allocated))
    return {"after 2": after[1], "after 20": after[-1], "one model": one}


def mlx(device: Device) -> dict[str, Any]:
    if device.sim is not None and sys.platform == "darwin":
        raise NotRun("run once, without the simulated device")
    try:
        import mlx.core as mx
    except ImportError:
        raise NotRun("mlx is not installed") from None
    worker = onelane.executor("mlx", custom=True)
    array = worker.call(lambda: mx.ones(8) * 2)
    through = "right" if worker.call(lambda: (array + 1).sum().item()) == 24.0 else "wrong"
    found: list[str] = []

    def elsewhere() -> None:
        try:
            found.append("fine" if (array + 1).sum().item() == 24.0 else "wrong")
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    worker.call(mx.clear_cache)
    return {"through the worker": through, "elsewhere": found[0]}


RUNS: dict[str, Callable[[Device], dict[str, Any]]] = {
    "arange2": arange2, "sync2": sync2, "first-use": first_use, "arange-worker": arange_worker,
    "ten-direct": ten_direct, "ten-queue": ten_queue, "user-streams": user_streams,
    "fork-only": fork_only, "wrong-matmul": wrong_matmul, "async-load": async_load,
    "shapes": shapes, "graphs-vs-pool": graphs_vs_pool, "missing-pools": missing_pools,
    "isolation": isolation, "throughput": throughput, "install-E2E": install_e2e,
    "release": release, "mlx": mlx,
}  # fmt: skip


def main(name: str, profile: str | None, seed: int) -> None:
    """Run a check and print what was observed."""
    faulthandler.enable()
    end, text, figures = "clean", "", {}
    try:
        if profile is None:
            figures = RUNS[name](Device(None))
        else:
            import onelane.sim

            with onelane.sim.device(profile, seed) as simulated:
                figures = RUNS[name](Device(simulated))
    except NotRun as reason:
        end, text = "not run", str(reason)
    except Exception as error:
        kind = type(error).__name__
        # The simulated device raises what would end a process.
        end = {"DeviceAborted": "abort", "DeviceHung": "hang"}.get(kind, "error")
        text = f"{kind}: {error}"
    print(json.dumps({"end": end, "text": text, "figures": figures,
                      "footprint": _memory.footprint()}), flush=True)  # fmt: skip
    # Nothing of the device may hold the end up.
    os._exit(0)


if __name__ == "__main__":
    main(
        sys.argv[1],
        sys.argv[2] if len(sys.argv) > 2 and sys.argv[2] != "-" else None,
        int(sys.argv[3]) if len(sys.argv) > 3 else 0,
    )
