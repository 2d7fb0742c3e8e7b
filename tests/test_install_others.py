"""`onelane.install`: openai-whisper and ultralytics, the real ones where they are installed.

Everywhere else modules of the same shape stand in for them: the same names of modules, classes,
methods and arguments, as far as `install` patches them.
"""

from __future__ import annotations

import gc
import importlib
import sys
import textwrap
import threading

import pytest

import onelane
from install_common import on_threads
from onelane._install import versions

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(300)

TESTED = {family.library: family.tested for family in versions.FAMILIES}

WHISPER = {
    "whisper/__init__.py": """
        import torch
        from .decoding import DecodingResult, decode, detect_language
        from .model import Whisper
        from .transcribe import transcribe

        def load_model(name, device=None, download_root=None, in_memory=False):
            model = Whisper()
            model.made_by = __import__("threading").get_ident()
            return model.to(device or "cpu")
    """,
    "whisper/decoding.py": """
        import dataclasses, threading, torch

        @dataclasses.dataclass(frozen=True)
        class DecodingResult:
            audio_features: torch.Tensor
            text: str = ""

        def decode(model, mel, options=None, **kwargs):
            features = model(mel)
            return DecodingResult(features, str(threading.get_ident()))

        def detect_language(model, mel, tokenizer=None):
            return model(mel), [{"en": 1.0}]
    """,
    "whisper/transcribe.py": """
        import threading

        def transcribe(model, audio, *, verbose=None, **decode_options):
            text = model.decode(audio).text
            return {"text": text, "segments": [{"id": 0}], "language": "en"}
    """,
    "whisper/model.py": """
        import torch
        from .decoding import decode as decode_function
        from .decoding import detect_language as detect_language_function
        from .transcribe import transcribe as transcribe_function

        class Whisper(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = torch.nn.Linear(4, 4)

            def forward(self, mel):
                return self.encoder(mel)

            detect_language = detect_language_function
            transcribe = transcribe_function
            decode = decode_function
    """,
}

ULTRALYTICS = {
    "ultralytics/__init__.py": "from .engine.model import Model as YOLO\n",
    "ultralytics/engine/__init__.py": "",
    "ultralytics/engine/model.py": """
        import threading, torch

        class Results:
            def __init__(self, data, thread):
                self.data, self.thread, self.on_host = data, thread, False

            def cpu(self):
                made = Results(self.data.cpu(), self.thread)
                made.on_host = True
                return made

        class Model(torch.nn.Module):
            def __init__(self, model="yolo.yaml", task=None, verbose=False):
                super().__init__()
                self.model, self.overrides = torch.nn.Linear(4, 2), {}

            def __call__(self, source=None, stream=False, **kwargs):
                return self.predict(source, stream, **kwargs)

            def predict(self, source=None, stream=False, predictor=None, **kwargs):
                made = (Results(self.model(x), threading.get_ident()) for x in source)
                return made if stream else list(made)

            def track(self, source=None, stream=False, persist=False, **kwargs):
                return self.predict(source=source, stream=stream, **kwargs)

            def embed(self, source=None, stream=False, **kwargs):
                return [self.model(x) for x in source]
    """,
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Write a package, and have it found and taken for the version that was tested."""

    def write(files, library):
        name = next(iter(files)).partition("/")[0]
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(tmp_path))
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(versions, "version", {library: TESTED[library]}.get)
        written.append(name)

    written = []
    yield write
    onelane.uninstall()
    for module in [m for m in sys.modules if m.partition(".")[0] in written]:
        del sys.modules[module]


def test_whisper_is_loaded_called_and_freed_on_the_worker(stand_in, home):
    stand_in(WHISPER, "openai-whisper")
    done = onelane.install(home)
    worker = home.call(threading.get_ident)
    whisper = importlib.import_module("whisper")
    model = whisper.load_model("tiny", device="cpu")
    assert model.made_by == worker
    mel = torch.ones(1, 4)
    assert model.transcribe(mel)["text"] == str(worker)
    assert whisper.transcribe(model, mel) == model.transcribe(mel)
    decoded = on_threads(model.decode, [mel] * 16)
    assert {one.text for one in decoded} == {str(worker)}
    result = whisper.decode(model, mel)
    assert isinstance(result, whisper.DecodingResult)
    assert type(result.audio_features) is torch.Tensor
    assert model.detect_language(mel)[1] == [{"en": 1.0}]
    freed = done._releaser.freed
    del model
    gc.collect()
    home.call(int)
    assert done._releaser.freed == freed + 2
    onelane.uninstall()
    assert whisper.load_model("tiny").made_by == threading.get_ident()


def test_ultralytics_predicts_on_the_worker_and_results_are_on_the_host(stand_in, home):
    stand_in(ULTRALYTICS, "ultralytics")
    onelane.install(home)
    worker = home.call(threading.get_ident)
    model = importlib.import_module("ultralytics").YOLO()
    images = list(torch.ones(3, 4))
    for call in (model, model.predict, model.track):
        results = call(images)
        assert [(r.thread, r.on_host, type(r).__name__) for r in results] == [
            (worker, True, "Results")
        ] * 3
        stream = call(images, stream=True)
        assert [(r.thread, r.on_host) for r in stream] == [(worker, True)] * 3
        assert list(stream) == []
    assert [type(x) for x in model.embed(images)] == [torch.Tensor] * 3
    # One that is left in the middle is dropped on the worker.
    stream = model(images, stream=True)
    next(stream)
    stream.close()
    assert list(stream) == []
    # Said to be elsewhere, it is the caller's.
    assert model(images, device="cuda:7")[0].thread == threading.get_ident()
    model.overrides["device"] = "cuda"
    assert model(images)[0].thread == threading.get_ident()


@pytest.mark.parametrize(
    ("library", "other"), [("openai-whisper", "20991231"), ("ultralytics", "9.0.0")]
)
def test_versions_that_are_not_known_are_refused_by_name(monkeypatch, home, library, other):
    monkeypatch.setattr(versions, "version", {library: other}.get)
    with pytest.raises(onelane.UnknownVersion, match=rf"{library} {other}.*{library}"):
        onelane.install(home)
    with pytest.warns(UserWarning, match="found none"):
        onelane.install(home, skip=(library,))
    onelane.uninstall()


def test_the_real_whisper(home, monkeypatch, tmp_path):
    if versions.version("openai-whisper") is None:
        pytest.skip("openai-whisper is not installed")
    monkeypatch.setattr(versions, "version", {"openai-whisper": TESTED["openai-whisper"]}.get)
    onelane.install(home)
    try:
        import whisper

        torch.manual_seed(0)
        dims = whisper.ModelDimensions(80, 1500, 32, 2, 1, 51865, 448, 32, 2, 1)
        made = whisper.model.Whisper(dims)
        torch.save(
            {"dims": vars(dims), "model_state_dict": made.state_dict()}, tmp_path / "tiny.pt"
        )
        model = whisper.load_model(str(tmp_path / "tiny.pt"), device="cpu")
        seen = set()
        model.encoder.register_forward_pre_hook(lambda *_: seen.add(threading.get_ident()))
        mel = torch.zeros(80, 3000)
        options = whisper.DecodingOptions(language="en", fp16=False, sample_len=4)
        texts = on_threads(lambda _: whisper.decode(model, mel, options).text, range(6))
        assert len(set(texts)) == 1
        assert seen == {home.call(threading.get_ident)}
    finally:
        onelane.uninstall()


def test_the_real_ultralytics(home, monkeypatch, tmp_path):
    if versions.version("ultralytics") is None:
        pytest.skip("ultralytics is not installed")
    monkeypatch.setattr(versions, "version", {"ultralytics": TESTED["ultralytics"]}.get)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    onelane.install(home)
    try:
        from ultralytics import YOLO

        model = YOLO("yolov8n.yaml")
        seen = set()
        model.model.register_forward_pre_hook(lambda *_: seen.add(threading.get_ident()))
        image = np.zeros((64, 64, 3), np.uint8)

        def ask(_):
            return model(image, device="cpu", verbose=False, imgsz=64)

        for results in on_threads(ask, range(6)):
            assert type(results[0]).__name__ == "Results"
            assert results[0].boxes.data.device.type == "cpu"
        (streamed,) = model(image, stream=True, device="cpu", verbose=False, imgsz=64)
        assert type(streamed).__name__ == "Results"
        assert seen == {home.call(threading.get_ident)}
    finally:
        onelane.uninstall()
