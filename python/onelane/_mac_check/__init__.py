"""`python -m onelane mac-check`: every claim about a Mac, run as a check in a process of its own.

On other machines the checks run on the simulated device, and the report says so: that shows that
the checks work and that the claims follow from the rules, not what a Mac does.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onelane import _hazards, _names
from onelane._install.versions import version
from onelane._mac_check.checks import (
    BY_NAME,
    CHECKS,
    PROFILE_VERSIONS,
    Check,
    Condition,
    Observed,
    Verdict,
)

# A child has this long, then it is killed and counts as hung. The simulated device is slow.
LIMIT_S, SIMULATED_LIMIT_S = 110.0, 600.0
_STDERR_KEPT = 4096
# Seeds of the simulated device for what only some orders of threads show.
_SEEDS = {"first-use": 20, "sync2": 3}


@dataclass(frozen=True)
class Result:
    """What became of one check under one condition."""

    check: str
    condition: str
    simulated: bool
    verdict: Verdict
    end: str
    text: str
    figures: dict[str, Any]
    footprint: int | None
    stderr: str


def is_mac() -> bool:
    """Whether there is a real mps here."""
    if sys.platform != "darwin":
        return False
    try:
        import torch
    except ImportError:
        return False
    return torch.backends.mps.is_available()


def run(check: Check, on: Condition) -> Result:
    """Run a check in a child; with more than one seed, until one does not end cleanly."""
    limit_s = SIMULATED_LIMIT_S if on.simulated else LIMIT_S
    seeds = range(_SEEDS.get(check.name, 1) if on.simulated else 1)
    for seed in seeds:
        observed, footprint, stderr = observe(check.name, on.simulated, seed, limit_s)
        if observed.end != "clean":
            break
    verdict: Verdict = "not run" if observed.end == "not run" else check.judge(observed, on)
    return Result(
        check.name, str(on), on.simulated is not None, verdict, observed.end, observed.text,
        observed.figures, footprint, stderr,
    )  # fmt: skip


def observe(
    name: str, profile: str | None, seed: int = 0, limit_s: float = LIMIT_S
) -> tuple[Observed, int | None, str]:
    """Run a check's child, and return what it observed, its footprint, and its last words."""
    command = [sys.executable, "-m", "onelane._mac_check.child", name, profile or "-", str(seed)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if name == "missing-pools":
        environment["OBJC_DEBUG_MISSING_POOLS"] = "YES"
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    try:
        stdout, stderr = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        _, stderr = child.communicate()
        return Observed("hang", f"no end within {limit_s:.0f} s"), None, stderr[-_STDERR_KEPT:]
    except BaseException:
        child.kill()
        child.wait()
        raise
    tail = stderr[-_STDERR_KEPT:]
    return (*read(name, child.returncode, stdout, stderr), tail)


def read(name: str, code: int, stdout: str, stderr: str) -> tuple[Observed, int | None]:
    """Return what a child that has ended observed, and its footprint."""
    if code < 0:
        return Observed("abort", signal.Signals(-code).name), None
    try:
        said = json.loads(stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return Observed("error", f"exit code {code}, and no report"), None
    figures = said["figures"]
    if name == "missing-pools" and said["end"] == "clean":
        figures["lines"] = stderr.count("MISSING POOLS")
    return Observed(said["end"], said["text"], figures), said["footprint"]


def conditions(check: Check, mac: bool) -> list[Condition]:
    """Return what a check runs on here."""
    if mac:
        return [Condition(_hazards.numbers(version("torch") or ""))]
    if check.profiles:
        return [Condition(PROFILE_VERSIONS[name], name) for name in check.profiles]
    return [Condition(PROFILE_VERSIONS["upstream-2.15"], "upstream-2.15")]


def machine() -> dict[str, Any]:
    """Return what a report has to say of the machine."""
    libraries = ("torch", "sentence-transformers", "transformers", "tokenizers", "mlx", "numpy")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "macos": platform.mac_ver()[0] or None,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("onelane", *libraries)},
        "variables": {
            name: value for name, value in os.environ.items() if name.startswith("PYTORCH_")
        },
    }


def report(results: list[Result], mac: bool) -> dict[str, Any]:
    """Return the whole report as plain values."""
    return {
        "simulated": not mac,
        "note": None
        if mac
        else "No mps here: run on the simulated device. Nothing in this report was measured on "
        "a Mac.",
        "machine": machine(),
        "checks": {
            check.name: {
                "runs": check.runs,
                "expected": check.expected,
                "refuted_if": check.refuted_if,
            }
            for check in CHECKS
        },
        "results": [asdict(result) for result in results],
    }


def main(
    as_json: bool = False,
    html: str | None = None,
    only: list[str] | None = None,
    listing: bool = False,
) -> int:
    """Run the checks; 1 if one was refuted, 2 if it could not be done as asked."""
    if listing:
        for check in CHECKS:
            print(f"{check.name}: {check.runs}\n    expected: {check.expected}\n    refuted if: "
                  f"{check.refuted_if}")  # fmt: skip
        return 0
    for name in only or ():
        if name not in BY_NAME:
            print(
                f"onelane mac-check: there is no check {name!r}{_names.nearest(name, BY_NAME)}",
                file=sys.stderr,
            )
            return 2
    if version("torch") is None:
        print("onelane mac-check: PyTorch is not installed: pip install torch", file=sys.stderr)
        return 2
    mac = is_mac()
    if not mac:
        print("No mps here: running on the simulated device. Nothing is measured on a Mac.",
              file=sys.stderr)  # fmt: skip
    results = []
    for check in CHECKS:
        if only and check.name not in only:
            continue
        for on in conditions(check, mac):
            print(f"{check.name} on {on} ...", end=" ", file=sys.stderr, flush=True)
            result = run(check, on)
            results.append(result)
            print(result.verdict, file=sys.stderr)
    whole = report(results, mac)
    if html is not None:
        from onelane._mac_check.page import page

        Path(html).write_text(page(whole), encoding="utf-8")
    if as_json:
        print(json.dumps(whole, indent=1))
    else:
        for result in results:
            print(f"{result.verdict:<12} {result.check} on {result.condition}: {words(result)}")
        if not mac:
            print(whole["note"])
    return 1 if any(result.verdict == "refuted" for result in results) else 0


def words(result: Result) -> str:
    """Return what was observed, in one line."""
    figures = ", ".join(f"{name} {value}" for name, value in result.figures.items())
    return "; ".join(part for part in (result.end, result.text.split("\n")[0], figures) if part)


__all__ = ["Result", "conditions", "is_mac", "main", "observe", "read", "report", "run"]
