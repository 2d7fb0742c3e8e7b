"""A server's process: started, known to answer, and ended with all that it started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from environments import Unavailable


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings",
        json.dumps({"model": "model", "input": ["a text"]}).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    # It leads a group of its own: children that outlive it end here.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(15)


def _reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1][:300]


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    variables: dict[str, str],
    cores: Sequence[int],
    log: Path,
    limit_s: float,
) -> Iterator[tuple[int, float]]:
    """The process and the seconds until it answered its first text, on these cores.

    Raises Unavailable with the reason if it ends, or does not answer within the limit.
    """
    begin = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    try:
        while not _answers(port):
            if process.poll() is not None:
                raise Unavailable(f"ended with {process.returncode}: {_reason(log)}")
            if time.monotonic() - begin > limit_s:
                raise Unavailable(f"did not answer within {limit_s:.0f} s: {_reason(log)}")
            time.sleep(0.2)
        yield process.pid, time.monotonic() - begin
    finally:
        _end(process)
