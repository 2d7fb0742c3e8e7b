"""Environments of the peers, made by uv; what they share lies on the disk once.

An environment is complete when its `.ready` holds what was asked of it. uv links packages from its
cache, so that torch takes its room once however many environments have it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_LIMIT_S = 1200


class Unavailable(Exception):
    """A peer that cannot be had or started here; the text is the reason that the page gives."""


def uv() -> str:
    """The program uv: beside this Python, in the repository's .venv, or on the PATH."""
    here = Path(__file__).resolve().parents[2]
    for place in (Path(sys.executable).parent, here / ".venv/bin"):
        if (place / "uv").exists():
            return str(place / "uv")
    found = shutil.which("uv")
    if found is None:
        raise SystemExit("uv is not there: python3 -m pip install uv")
    return found


def last_lines(text: str, count: int = 2) -> str:
    """The end of what a program said, for the page."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-count:])[:300]


def environment(
    cache: Path, name: str, requirements: Sequence[str], overrides: Sequence[str]
) -> Path:
    """The environment's Python; made first if it is not there or was made for something else."""
    folder = cache / name
    python, ready = folder / "bin/python", folder / ".ready"
    asked = json.dumps([list(requirements), list(overrides)])
    if ready.exists() and ready.read_text() == asked:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    print(f"{name}: installing {', '.join(requirements)}", file=sys.stderr, flush=True)
    # Not the name of this Python itself, which may be an environment's.
    base = os.path.realpath(sys.executable)
    _run([uv(), "venv", "--quiet", "--python", base, str(folder)])
    command = [uv(), "pip", "install", "--quiet", "--python", str(python), *requirements]
    if overrides:
        file = folder / "overrides.txt"
        file.write_text("\n".join(overrides) + "\n")
        command += ["--override", str(file)]
    _run(command)
    ready.write_text(asked)
    return python


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"not installed within {_LIMIT_S} s") from None
    if done.returncode:
        raise Unavailable(f"not installed: {last_lines(done.stderr)}")


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The installed versions of these packages."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({p: have[p] for p in sys.argv[1:] if p in have}))"
    )
    done = subprocess.run(
        [str(python), "-c", code, *packages], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found
