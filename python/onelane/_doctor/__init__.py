"""`python -m onelane doctor`: what this machine has, which hazards apply, what to do next.

Looks only: it uses no device, downloads nothing and changes nothing.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any, Literal

from onelane import _devices, _hazards, _memory
from onelane._install.versions import FAMILIES, NOT_COVERED, Family, numbers, version

Level = Literal["ok", "note", "do"]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. `do`: what to do about it; empty unless the level is `do`."""

    topic: str
    level: Level
    found: str
    meaning: str
    do: str = ""


_VARIABLES = {
    "PYTORCH_ENABLE_MPS_FALLBACK": "operators that mps lacks run on the CPU, slowly, instead of "
    "raising",
    "PYTORCH_DEBUG_MPS_ALLOCATOR": "PyTorch's allocator tells what it does",
    "PYTORCH_MPS_FAST_MATH": "less exact arithmetic",
    "PYTORCH_MPS_PREFER_METAL": "Metal kernels for products instead of graphs",
    "PYTORCH_MPS_METAL_VERSION": "which version of Metal's language is compiled for",
    "TOKENIZERS_PARALLELISM": "whether a tokenizer uses threads of its own",
    "OBJC_DEBUG_MISSING_POOLS": "Objective-C tells of objects without an autorelease pool",
}
_WITHOUT_EFFECT = ("PYTORCH_MPS_GRAPH_CACHE_POLICY",)


def examine(environment: dict[str, str] | None = None) -> list[Line]:
    """Look at this machine and this environment."""
    env = dict(os.environ) if environment is None else environment
    torch_version = version("torch")
    lines = [_system(), _python(), *_torch(torch_version), *_libraries()]
    applies = sys.platform == "darwin"
    if torch_version is not None:
        lines += _hazards_of(torch_version, applies)
    lines += _environment(env, applies)
    lines += _process()
    return lines


def _system() -> Line:
    if sys.platform == "darwin":
        return Line(
            "system",
            "ok",
            f"macOS {platform.mac_ver()[0]} on {platform.machine()}",
            "the device is mps",
        )
    return Line(
        "system",
        "note",
        f"{platform.system()} on {platform.machine()}",
        "there is no mps here: hazards below are those of a Mac with this PyTorch",
    )


def _python() -> Line:
    import onelane

    found = f"Python {platform.python_version()}, onelane {onelane.__version__}"
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return Line(
            "python",
            "do",
            found + " for x86-64",
            "on a Mac with Apple silicon this Python is translated, and has no mps",
            "install a Python for arm64, unless this is a Mac with an Intel processor",
        )
    return Line("python", "ok", found, "Python 3.10 or later is needed")


def _torch(found: str | None) -> list[Line]:
    if found is None:
        return [
            Line(
                "torch",
                "note",
                "PyTorch is not installed",
                "onelane works without it, for other runtimes; install() and guard() of PyTorch's "
                "models need it",
            )
        ]
    try:
        device = _devices.default()
    except Exception as error:
        return [
            Line(
                "torch", "do", f"PyTorch {found} does not load: {error}", "nothing works without",
                "reinstall PyTorch",
            )
        ]  # fmt: skip
    meaning = {
        "mps": "install(), guard() and BatchQueue() use mps",
        "cuda": "install(), guard() and BatchQueue() use cuda",
    }.get(device, "there is no accelerator that PyTorch can use: the CPU is used")
    if sys.platform == "darwin" and device != "mps":
        return [
            Line(
                "torch", "do", f"PyTorch {found}, without mps", meaning,
                "update macOS (14 or later) and PyTorch; a Mac with an Intel processor has no mps",
            )
        ]  # fmt: skip
    return [Line("torch", "ok", f"PyTorch {found}, device {device}", meaning)]


def _libraries() -> list[Line]:
    lines = []
    for family in FAMILIES:
        found = version(family.library)
        if found is not None:
            lines.append(_library(family, found))
    for name in NOT_COVERED:
        found = version(name)
        if found is None:
            continue
        if name == "mlx" and numbers(found) >= (0, 31):
            lines.append(
                Line(
                    name,
                    "note",
                    f"{name} {found}",
                    "its arrays belong to the thread that made them, from 0.31.2 on; its cache may "
                    "grow to 1.5 times the working set: see mx.set_cache_limit, mx.clear_cache. "
                    "Use onelane.guard(factory, 'mlx')",
                )
            )
        else:
            lines.append(
                Line(name, "note", f"{name} {found}", "install() leaves it alone: use guard()")
            )
    return lines


def _library(family: Family, found: str) -> Line:
    at = numbers(found)
    if at < family.oldest or at[0] > family.newest[0]:
        return Line(
            family.library,
            "do",
            f"{family.library} {found}",
            f"install() knows {family}",
            f"install a version that it knows, or use onelane.guard() for {family.library}",
        )
    if at != numbers(family.tested):
        return Line(
            family.library, "note", f"{family.library} {found}",
            f"not what was tested: install() warns, and knows {family}",
        )  # fmt: skip
    return Line(family.library, "ok", f"{family.library} {found}", f"install() knows {family}")


def _hazards_of(torch_version: str, here: bool) -> list[Line]:
    at, lines = _hazards.numbers(torch_version), []
    for hazard in _hazards.HAZARDS:
        verdict = hazard.verdict(at)
        found = f"{verdict} ({hazard.source})"
        applies = verdict == "applies"
        # Elsewhere than on a Mac only what concerns every device is to be done.
        everywhere = hazard.name == "shared-tokenizers" and version("tokenizers") is not None
        level: Level = "ok" if not applies else "do" if (here or everywhere) else "note"
        lines.append(
            Line(
                f"hazard {hazard.name}",
                level,
                found,
                hazard.what,
                hazard.cure if level == "do" else "",
            )
        )
    return lines


def _environment(env: dict[str, str], here: bool) -> list[Line]:
    lines = []
    if env.get("HF_DEACTIVATE_ASYNC_LOAD", "") not in ("1", "true", "True", "yes", "on"):
        lines.append(
            Line(
                "variable HF_DEACTIVATE_ASYNC_LOAD",
                "note",
                "not set",
                "transformers may load weights in threads of its own; install() and guard() set it",
            )
        )
    high, low = (env.get(f"PYTORCH_MPS_{end}_WATERMARK_RATIO") for end in ("HIGH", "LOW"))
    if high is not None or low is not None or here:
        found = f"high {high or '1.7 (default)'}, low {low or '1.4 (default)'}"
        lines.append(
            Line(
                "variable PYTORCH_MPS_*_WATERMARK_RATIO",
                "do" if here and high is None else "note",
                found,
                "1.7 of what the system recommends may be more than the memory there is: the Mac "
                "swaps before PyTorch raises",
                "set PYTORCH_MPS_HIGH_WATERMARK_RATIO=1.0 and PYTORCH_MPS_LOW_WATERMARK_RATIO=0.8"
                if here and high is None
                else "",
            )
        )
    lines += [
        Line(f"variable {name}", "note", env[name], meaning)
        for name, meaning in _VARIABLES.items()
        if name in env
    ]
    lines += [
        Line(
            f"variable {name}",
            "do",
            env[name],
            "it has no effect: no wheel of PyTorch reads it",
            f"unset {name}",
        )
        for name in _WITHOUT_EFFECT
        if name in env
    ]
    return lines


def _process() -> list[Line]:
    lines = []
    used = _memory.footprint()
    if used is not None:
        lines.append(
            Line("memory", "ok", f"{used >> 20} MiB", "footprint of this process, to compare with")
        )
    names = sorted(thread.name for thread in threading.enumerate())
    lines.append(
        Line(
            "threads",
            "ok",
            ", ".join(names),
            "of this process. Which threads of an application touch the device: "
            "`python -m onelane run --audit app.py`",
        )
    )
    return lines


_NEXT = (
    "run an application with its models on one worker: python -m onelane run app.py",
    "find what goes around the worker: python -m onelane run --audit app.py",
    "check every claim about a Mac: python -m onelane mac-check --html report.html",
)


def report(lines: list[Line]) -> dict[str, Any]:
    """Return what was found as plain values."""
    return {
        "lines": [asdict(line) for line in lines],
        "to_do": [line.do for line in lines if line.level == "do"],
        "next": list(_NEXT),
    }


def main(as_json: bool = False) -> int:
    """Print what was found; 1 if there is something to do, 2 if it could not look."""
    try:
        lines = examine()
    except Exception as error:
        print(f"onelane doctor: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    found = report(lines)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        marks = {"ok": "  ok", "note": "note", "do": "  DO"}
        for line in lines:
            print(f"{marks[line.level]}  {line.topic}: {line.found}")
            print(f"        {line.meaning}")
            if line.do:
                print(f"        -> {line.do}")
        print("\nNext:")
        for step in _NEXT:
            print(f"  {step}")
    return 1 if found["to_do"] else 0


__all__ = ["Line", "examine", "main", "report"]
