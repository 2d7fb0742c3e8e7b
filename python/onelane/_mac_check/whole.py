"""Checks of whole programs: throughput, install, release, MLX."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onelane
from onelane import _shapes
from onelane._mac_check.device import Device, NotRun


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
            # Generation is more than the simulated device knows.
            told = None if device.sim else streamed(Path(folder), "mps", model.encode)
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
        "streamed": told,
    }


def streamed(folder: Path, name: str, encode: Callable[[str], Any]) -> str:
    """Generate in a thread with a streamer, under install(), while others encode.

    Says "as alone" if the text is that of the host alone, and every other call was answered.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

    from onelane._mac_check import models

    path = models.language_model(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    inputs = tokenizer("w1 w2 w3", return_tensors="pt")
    asked = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    alone = tokenizer.decode(model.generate(**inputs, **asked)[0])
    model.to(name)
    streamer: Any = TextIteratorStreamer(tokenizer, timeout=60)
    named = {**inputs, **asked, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=named, daemon=True)
    with ThreadPoolExecutor(2) as pool:
        thread.start()
        answers = [pool.submit(encode, f"w{at} w2") for at in range(8)]
        text = "".join(streamer)
        thread.join(60)
        for answer in answers:
            answer.result(60)
    return "as alone" if text.split() == alone.split() and not thread.is_alive() else "another text"


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
