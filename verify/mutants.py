#!/usr/bin/env python3
"""Deliberate one-line bugs: each has to be caught by the check that is named.

Copies the core (and, for bugs in the Python front, the package in .venv) to a scratch folder, puts
in one bug at a time, runs its check there, and prints a table. Exit 1 when a bug is not caught, or
no longer applies to the code; exit 2 when a check fails without any bug, which would prove nothing.

    verify/mutants.py            all
    verify/mutants.py fifo loom  those whose name or check holds one of the words
    verify/mutants.py --list     what there is; exit 1 when one no longer applies
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bugs import MUTANTS, SPEC, Mutant

ROOT = Path(__file__).resolve().parent.parent
SOURCES = Path("crates/onelane/src")
PYTHON = ROOT / ".venv/bin/python"
TARGET = os.environ.get("MUTANTS_TARGET_DIR", str(ROOT / "target" / "mutants"))
# A check that takes so long more than ten times what it takes without a bug hangs, and has caught
# its bug.
LIMIT_S = 30


def environment(check: str) -> tuple[list[str], dict[str, str]]:
    env = dict(os.environ, CARGO_TARGET_DIR=TARGET, RUST_BACKTRACE="0")
    # Whether a workload fails is what matters here, not the smallest that does.
    env |= {"PROPTEST_CASES": "256", "PROPTEST_MAX_SHRINK_ITERS": "0"}
    if check.startswith("python: "):
        env |= {"PYTHONPATH": "python", "PYTHONDONTWRITEBYTECODE": "1"}
        return [str(PYTHON), *check.removeprefix("python: ").split()], env
    if check.startswith("loom: "):
        # A folder of its own: other flags would build everything anew each time.
        env |= {
            "RUSTFLAGS": "--cfg loom",
            "CARGO_TARGET_DIR": f"{TARGET}-loom",
            "CARGO_PROFILE_TEST_OPT_LEVEL": "1",
        }
        check = check.removeprefix("loom: ")
    return check.split(), env


def run(check: str, tree: Path, limit: float) -> tuple[str, float, float]:
    """`passed`, `failed`, `hangs` or `does not compile`; the seconds that it ran, and in all."""
    command, env = environment(check)
    started = time.monotonic()
    if "test" in command:
        build = [*command[:2], "--no-run", *command[2:]]
        built = subprocess.run(
            build, cwd=tree, env=env, capture_output=True, text=True, check=False
        )
        if built.returncode != 0:
            print(built.stderr[-2000:], file=sys.stderr)
            return "does not compile", 0.0, time.monotonic() - started
    ready = time.monotonic()
    # A group of its own: what hangs is a child of cargo.
    child = subprocess.Popen(
        command, cwd=tree, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        outcome = "passed" if child.wait(limit) == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        outcome = "hangs"
    end = time.monotonic()
    return outcome, end - ready, end - started


def copy_tree(scratch: Path) -> Path:
    """The core as a workspace of its own: nothing else has to be built. The Python package."""
    tree = scratch / "tree"
    # Not the times of the files: what the target folder holds of the last run's bugs is older.
    shutil.copytree(ROOT / "crates/onelane", tree / "crates/onelane", copy_function=shutil.copyfile)
    for name in ("Cargo.lock", "rust-toolchain.toml"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)
    manifest = (ROOT / "Cargo.toml").read_text()
    lines = [line for line in manifest.splitlines() if not line.startswith("default-members")]
    lines = [
        'members = ["crates/onelane"]' if line.startswith("members") else line for line in lines
    ]
    (tree / "Cargo.toml").write_text("\n".join(lines) + "\n")
    return tree


def copy_package(tree: Path) -> None:
    """The installed package, which has the compiled part, with the sources as they are."""
    where = "import importlib.util as u; print(u.find_spec('onelane').origin)"
    found = subprocess.run(
        [PYTHON, "-c", where], cwd=tree, capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        sys.exit("the Python package is not in .venv: run `make package`")
    shutil.copytree(Path(found.stdout.strip()).parent, tree / "python/onelane")
    shutil.copytree(ROOT / "python/onelane", tree / "python/onelane", dirs_exist_ok=True)
    shutil.copytree(ROOT / "tests", tree / "tests")
    shutil.copy(ROOT / "pyproject.toml", tree)


def place(mutant: Mutant, tree: Path) -> Path:
    return tree / (mutant.file if "/" in mutant.file else SOURCES / mutant.file)


def applies(mutant: Mutant, tree: Path) -> bool:
    return place(mutant, tree).read_text().count(mutant.old) == 1


def check_mutant(mutant: Mutant, tree: Path, limit: float) -> tuple[str, float]:
    if not applies(mutant, tree):
        return "NO LONGER APPLIES", 0.0
    path = place(mutant, tree)
    original = path.read_text()
    # A condition that the compiler does not see through.
    new = mutant.new.replace("queue_is_never_aborted()", "id == QueueId::MAX")
    path.write_text(original.replace(mutant.old, new))
    try:
        outcome, _, seconds = run(mutant.check, tree, limit)
    finally:
        path.write_text(original)
    return {
        "passed": "NOT CAUGHT",
        "failed": "caught",
        "hangs": "caught (hangs)",
        "does not compile": "DOES NOT COMPILE",
    }[outcome], seconds


def short(check: str) -> str:
    if check.startswith("loom: "):
        return "loom " + check.rsplit("::", 1)[1]
    if check.startswith("python: "):
        return check.rsplit(" ", 1)[1]
    if " --lib " in check:
        return "lib " + check.split("--lib ")[1]
    return check.split("--test ")[1].replace(" ", "::")


def main() -> int:
    parser = argparse.ArgumentParser(description="Deliberate bugs: each has to be caught.")
    parser.add_argument("words", nargs="*", help="only those whose name or check holds one of them")
    parser.add_argument("--list", action="store_true", help="say what applies; run nothing")
    args = parser.parse_args()
    words = args.words
    chosen = [m for m in MUTANTS if not words or any(w in f"{m.name} {m.check}" for w in words)]
    spec = [s for s in SPEC if not words or any(w in f"{s[0]} spec" for w in words)]
    if args.list:
        stale = [mutant for mutant in chosen if not applies(mutant, ROOT)]
        for mutant in chosen:
            note = ": NO LONGER APPLIES" if mutant in stale else ""
            print(f"{mutant.name}: {mutant.file}: {short(mutant.check)}{note}")
        for name, _, flag in spec:
            print(f"{name}: spec --bug {flag}")
        return 1 if stale else 0
    rows: list[tuple[str, str, str, str]] = []
    with tempfile.TemporaryDirectory(prefix="onelane-mutants-") as scratch:
        tree = copy_tree(Path(scratch))
        if any(mutant.check.startswith("python: ") for mutant in chosen):
            copy_package(tree)
        # Without a bug, every check must pass.
        limits = {}
        for check in dict.fromkeys(mutant.check for mutant in chosen):
            outcome, ran, seconds = run(check, tree, 10 * LIMIT_S)
            limits[check] = LIMIT_S + 10 * ran
            print(f"without a bug: {short(check)}: {outcome} ({seconds:.0f} s)", flush=True)
            if outcome != "passed":
                return 2
        for mutant in chosen:
            outcome, seconds = check_mutant(mutant, tree, limits[mutant.check])
            rows.append((mutant.name, mutant.promise, short(mutant.check), outcome))
            print(f"{mutant.name}: {outcome} ({seconds:.0f} s)", flush=True)
    binary = os.environ.get("SPEC", "")
    command = binary.split() or ["cargo", "run", "--release", "-q", "-p", "onelane-spec", "--"]
    for name, promise, flag in spec:
        run_spec = [*command, "--bug", flag, "--must-fail"]
        done = subprocess.run(run_spec, cwd=ROOT, capture_output=True, check=False)
        outcome = "caught" if done.returncode == 0 else "NOT CAUGHT"
        rows.append((name, promise, f"spec --bug {flag}", outcome))
    print("\n| bug | promise | check | result |\n|---|---|---|---|")
    for name, promise, check, outcome in rows:
        print(f"| {name} | {promise} | `{check}` | {outcome} |")
    missed = [row for row in rows if not row[3].startswith("caught")]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
