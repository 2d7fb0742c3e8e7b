"""Builds and loads the device guard that PyTorch lacks for MPS on Linux: `guard.cpp`.

Built once per version of PyTorch and kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from onelane.sim.errors import SimUnavailable

_SOURCE = Path(__file__).with_name("guard.cpp")
_BUILD_TIMEOUT_S = 300.0

_lock = threading.Lock()
_loaded = False


def load() -> None:
    """Load the guard into this process, for good. Raises `SimUnavailable` if it cannot be built."""
    global _loaded
    with _lock:
        if _loaded:
            return
        if torch.backends.mps.is_built():
            raise SimUnavailable(
                "this PyTorch has a real MPS device, and the simulated one would have to take its "
                "place: use it with a PyTorch that is built without MPS (Linux)"
            )
        ops: Any = torch.ops
        ops.load_library(str(_built()))
        _loaded = True


def cache_folder() -> Path:
    """Where built guards lie: `ONELANE_CACHE`, else `$XDG_CACHE_HOME/onelane`."""
    own = os.environ.get("ONELANE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onelane"


def _built() -> Path:
    source = _SOURCE.read_bytes()
    key = hashlib.sha256(source + torch.__config__.show().encode()).hexdigest()[:12]
    target = cache_folder() / "sim" / f"guard-{torch.__version__}-{key}.so"
    if not target.exists():
        _build(target)
    return target


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return [found]
    raise SimUnavailable(
        "the simulated device needs a C++ compiler once, to build a file of two lines for this "
        f"PyTorch ({torch.__version__}), and there is none: install one (Debian, Ubuntu: "
        "`apt-get install g++`; Fedora: `dnf install gcc-c++`), or name it in CXX"
    )


def _build(target: Path) -> None:
    compiler, home = _compiler(), Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".so")
    except OSError as error:
        raise SimUnavailable(
            f"cannot write to {target.parent} ({error.strerror}): name another folder in "
            "ONELANE_CACHE"
        ) from error
    os.close(handle)
    command = [
        *compiler, "-shared", "-fPIC", "-O1", "-std=c++20", f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
        f"-I{home / 'include'}", str(_SOURCE), f"-L{home / 'lib'}", "-lc10", "-o", temporary,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_BUILD_TIMEOUT_S
        )
        if done.returncode != 0:
            raise SimUnavailable(
                f"building {_SOURCE.name} for PyTorch {torch.__version__} failed:\n"
                f"{shlex.join(command)}\n{done.stderr.strip()}"
            )
        # In one step: other processes may be building it, too.
        os.replace(temporary, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SimUnavailable(f"cannot run {command[0]}: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
