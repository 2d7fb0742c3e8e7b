"""The servers that client libraries are tried on: toy models, and models of tensors in Python."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[2]
# Of an environment that has the package.
PYTHON = Path(os.environ.get("ONELANE_PYTHON", ROOT / ".venv/bin/python"))
BINARY = Path(os.environ.get("ONELANE_TOY_SERVER", ROOT / "target/release/examples/hashing"))


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Host and port of a server with the models toy, toy-rerank and toy-classify."""
    if not BINARY.exists():
        pytest.fail(f"{BINARY} is not built: make test-clients builds it")
    process = subprocess.Popen([BINARY, "0"], stdout=subprocess.PIPE, text=True)
    yield from _running(process, process.stdout)


@pytest.fixture(scope="session")
def tensors() -> Iterator[str]:
    """Host and port of a server in Python with the models of `served_tensors`."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is not there: make test-clients makes it")
    command = [PYTHON, "-m", "onelane", "serve", "--device", "cpu", "--port", "0"]
    command += ["--drain-delay", "0"]
    command += [f"{name}=served_tensors:{name}" for name in ("scale", "echo")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    yield from _running(process, process.stderr)


def _running(process: subprocess.Popen[str], says: IO[str] | None) -> Iterator[str]:
    """Yield where a server says that it listens, when it is ready, and end it."""
    try:
        assert says is not None
        line = says.readline()
        found = re.search(r"http://(\S+)", line)
        assert found, line
        while not _is_ready(found[1]):
            assert process.poll() is None, "the server has ended"
            time.sleep(0.05)
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_ready(address: str) -> bool:
    try:
        urllib.request.urlopen(f"http://{address}/ready").close()
    except OSError:
        return False
    return True
