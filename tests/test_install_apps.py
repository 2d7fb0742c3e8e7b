"""`onelane.install`: versions, settings, and whole applications, unchanged."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import warnings

import pytest

import onelane
from install_common import Threads, pairs_model, sentences
from onelane._mac_check import models as tiny_models

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.timeout(300)


def test_versions_that_are_not_known(monkeypatch, home):
    from onelane._install import versions

    monkeypatch.setattr(versions, "version", {"sentence-transformers": "3.1.0"}.get)
    with pytest.raises(onelane.UnknownVersion, match=r"3\.1\.0.*5\.7 to 6\.2"):
        onelane.install(home)
    monkeypatch.setattr(versions, "version", {"sentence-transformers": "6.9.0"}.get)
    with pytest.warns(UserWarning, match=r"6\.9\.0 is not what"):
        versions.check()
    lacking = versions.Family("transformers", (5, 0), (5, 24), "5.24.0", ("no_such_file.py",))
    monkeypatch.setattr(versions, "version", {"transformers": "5.1.0"}.get)
    with pytest.raises(onelane.UnknownVersion, match=r"no_such_file\.py"):
        versions.check((lacking,))
    monkeypatch.setattr(versions, "version", {}.get)
    with pytest.warns(UserWarning, match="found none"):
        onelane.install(home)
    onelane.uninstall()


def test_settings_are_checked(home):
    with pytest.raises(ValueError, match="transformers"):
        onelane.install(home, skip=("transformer",))
    with pytest.raises(TypeError, match="tuple"):
        onelane.install(home, skip="transformers")
    assert onelane.installed() is None


APPLICATION = """
import sys, threading, anyio, anyio.to_thread
from sentence_transformers import CrossEncoder, SentenceTransformer
import onelane

model = SentenceTransformer(sys.argv[1], device="cpu")
ranker = CrossEncoder(sys.argv[2], device="cpu")

async def main():
    async def ask(i):
        await anyio.to_thread.run_sync(model.encode, f"w{i} w2")
        await anyio.to_thread.run_sync(ranker.predict, [("w1", f"w{i}")])
    async with anyio.create_task_group() as group:
        for i in range(40):
            group.start_soon(ask, i)

anyio.run(main)
print(onelane.installed().stats()[0].completed, __name__)
"""


def test_an_unchanged_application_is_run(paths, tmp_path):
    app = tmp_path / "app.py"
    app.write_text(APPLICATION)
    command = [sys.executable, "-m", "onelane", "run", "--device", "cpu", str(app)]
    done = subprocess.run(
        [*command, paths["sentences"], paths["pairs"]],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["40", "__main__"]
    missing = subprocess.run(
        [*command[:-1], "missing.py"], capture_output=True, text=True, timeout=100, check=False
    )
    assert missing.returncode == 2
    assert "missing.py" in missing.stderr


def test_a_pool_of_processes_works(paths, installed):
    model = sentences(paths)
    texts = tiny_models.texts(8)
    wanted = model.encode(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pool = model.start_multi_process_pool(["cpu"])
        try:
            got = model.encode(texts, pool=pool)
        finally:
            model.stop_multi_process_pool(pool)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


ON_THE_SIMULATED_DEVICE = """
import gc, os, sys, time
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from sentence_transformers import CrossEncoder, SentenceTransformer
import onelane, onelane.sim
from onelane._mac_check import models

texts = models.texts(24, longest=24)
bare = SentenceTransformer(sys.argv[1], device="cpu")
alone = [bare.encode(text) for text in texts]

def application():
    model = SentenceTransformer(sys.argv[1], device="mps")
    ranker = CrossEncoder(sys.argv[2], device="mps")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(model.encode, texts))
        list(pool.map(ranker.predict, [("w1", text) for text in texts]))
    np.testing.assert_allclose(results, alone, atol=1e-4)
    del model, ranker
    gc.collect()

with onelane.sim.device("upstream-2.15"):
    with onelane.audit("mps", report=lambda finding: None) as audit:
        if sys.argv[3] == "install":
            done = onelane.install("mps")
            application()
            limit = time.monotonic() + 30
            while done.unreleased and time.monotonic() < limit:
                time.sleep(0.01)
            stats = onelane.executor("mps").stats()
            assert stats.memory.allocated == 0, stats.memory
            assert 0 < stats.shapes <= 96
        else:
            application()
        print(len(audit.findings), flush=True)
        os._exit(0)
"""


@pytest.mark.skipif(
    sys.platform == "darwin" or not (shutil.which("c++") or shutil.which("g++")),
    reason="needs the simulated device, which needs a C++ compiler",
)
def test_on_the_simulated_device_nothing_goes_around_the_worker(paths):
    found, both = {}, (paths["sentences"], paths["pairs"])
    for way in ("install", "without"):
        done = subprocess.run(
            [sys.executable, "-c", ON_THE_SIMULATED_DEVICE, *both, way],
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[way] = int(done.stdout.split()[-1])
    assert found["install"] == 0
    assert found["without"] > 0


def test_a_web_application_is_unchanged(paths, home):
    fastapi = pytest.importorskip("fastapi")
    texts = tiny_models.texts(64, longest=60)
    documents = tiny_models.texts(600, seed=1, longest=60)
    bare, bare_pairs = sentences(paths), pairs_model(paths)
    alone = [bare.encode(text) for text in texts]
    scores = [float(bare_pairs.predict(("w1 w2", text))) for text in texts]
    done = onelane.install(home)
    try:
        model, ranker, app = sentences(paths), pairs_model(paths), fastapi.FastAPI()

        # Not coroutines: the framework runs them in its pool of threads.
        @app.post("/embed")
        def embed(body: dict):
            return model.encode(body["text"]).tolist()

        @app.post("/score")
        def score(body: dict):
            return float(ranker.predict(("w1 w2", body["text"])))

        @app.post("/index")
        def index(body: dict):
            return len(model.encode(body["texts"]))

        async def post(path, body):
            return json.loads(await ask(app, path, json.dumps(body).encode()))

        async def main():
            limit = asyncio.Semaphore(16)

            async def both(text):
                async with limit:
                    return await post("/embed", {"text": text}), await post(
                        "/score", {"text": text}
                    )

            job = asyncio.ensure_future(post("/index", {"texts": documents}))
            answers = await asyncio.gather(*(both(text) for text in texts))
            return answers, await job

        with Threads() as threads:
            answers, indexed = asyncio.run(main())
        assert indexed == 600
        np.testing.assert_allclose([a for a, _ in answers], alone, atol=1e-4)
        np.testing.assert_allclose([b for _, b in answers], scores, atol=1e-4)
        assert threads.seen == {home.call(threading.get_ident)}
        for stats in done.stats():
            assert stats.batches < stats.completed
            assert stats.shapes <= 2 * 96
    finally:
        onelane.uninstall()


async def ask(app, path, body):
    """Ask an ASGI application, without a server."""
    sent, given = [], iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return next(given, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return b"".join(message.get("body", b"") for message in sent[1:])
