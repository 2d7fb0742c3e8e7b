"""The server that the client libraries are tried on: the example with toy models."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINARY = Path(os.environ.get("ONELANE_TOY_SERVER", ROOT / "target/release/examples/hashing"))


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Host and port of a server with the models toy, toy-rerank and toy-classify."""
    if not BINARY.exists():
        pytest.fail(f"{BINARY} is not built: make test-clients builds it")
    process = subprocess.Popen([BINARY, "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://(\S+)", line)
        assert found, line
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
