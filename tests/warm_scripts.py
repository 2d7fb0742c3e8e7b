"""Runs scripts in processes that have imported PyTorch already, which takes seconds.

A server imports it once and forks for each script: `WarmScripts().run(...)` is `subprocess.run` of
a new interpreter but for that. What must be seen from the first line on (PyTorch missing, say)
wants a real one.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DONE = "done"


class WarmScripts:
    """A server of scripts, started when it is first asked; one script at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, script: Path, arguments: list[str], break_with: Path | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a script; `break_with` is a folder whose `sitecustomize.py` is run before it."""
        server = self._running()
        assert server.stdin is not None
        with tempfile.TemporaryDirectory() as folder:
            request = {
                "script": str(script),
                "arguments": arguments,
                "break_with": None if break_with is None else str(break_with),
                "out": f"{folder}/out",
                "err": f"{folder}/err",
            }
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            code = self._answer(server, timeout)
            printed = [Path(folder, name).read_text() for name in ("out", "err")]
        return subprocess.CompletedProcess(arguments, code, *printed)

    def _running(self) -> subprocess.Popen[str]:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | self._environment,
                # All that hangs can be killed together.
                start_new_session=True,
            )
        return self._server

    def _answer(self, server: subprocess.Popen[str], timeout: float) -> int:
        assert server.stdout is not None
        if not select.select([server.stdout], [], [], timeout)[0]:
            self.close()
            raise TimeoutError(f"the script has not ended after {timeout:g} s")
        answer = server.stdout.readline().split()
        assert answer[:1] == [DONE], "the server of scripts has died"
        return int(answer[1])

    def close(self) -> None:
        """Kill the server, and what hangs."""
        server, self._server = self._server, None
        if server is not None:
            os.killpg(server.pid, signal.SIGKILL)
            with server:
                pass


def serve() -> dict[str, Any] | None:
    """Fork for each request; returns one in its child, and nothing when no more will come."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return request
        _, status = os.waitpid(pid, 0)
        print(DONE, os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Be the script, in its child."""
    files = {0: os.devnull, 1: request["out"], 2: request["err"]}
    for number, path in files.items():
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    script = request["script"]
    sys.path[0] = os.path.dirname(script)
    if request["break_with"] is not None:
        paths = [request["break_with"], os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        runpy.run_path(os.path.join(request["break_with"], "sitecustomize.py"))
    sys.argv = [script, *request["arguments"]]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    import torch  # noqa: F401

    # A fork takes the thread along that calls it, and no other.
    assert len(os.listdir("/proc/self/task")) == 1
    found = serve()
    if found is not None:
        become(found)
