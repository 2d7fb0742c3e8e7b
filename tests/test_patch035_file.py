"""The patch file of patch 035: patch(1) does with it what the tool does, and strict diffs."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from onelane.patch035 import target, unified_diff
from onelane.patch035.installed import InstalledTorch

pytestmark = pytest.mark.usefixtures("_patch035_is_left_disabled")
REPOSITORY = Path(__file__).resolve().parent.parent
PATCH = REPOSITORY / "patches" / target.PATCH_FILE.name
REAL = Path(torch.__file__).parent
needs_patch = pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is not installed")


def other_versions() -> list[Path]:
    """Unpacked torch/nn/functional.py of other releases: folders named by version.

    ONELANE_TORCH_FILES names the folder that holds them; without it only the installed one runs.
    """
    folder = os.environ.get("ONELANE_TORCH_FILES")
    return sorted(Path(folder).iterdir()) if folder else []


def test_the_two_copies_of_the_patch_are_one() -> None:
    assert PATCH.read_bytes() == target.PATCH_FILE.read_bytes()


@needs_patch
@pytest.mark.parametrize("source", [REAL.parent, *other_versions()], ids=lambda p: p.name)
def test_patch_p1_does_what_the_tool_does(tmp_path: Path, source: Path) -> None:
    sites = [tmp_path / "by-patch", tmp_path / "by-tool"]
    for site in sites:
        (site / "torch" / "nn").mkdir(parents=True)
        for name in ("nn/functional.py", "version.py"):
            shutil.copy(source / "torch" / name, site / "torch" / name)
    arguments = ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", "-d", str(sites[0])]
    with PATCH.open("rb") as diff:
        done = subprocess.run(arguments, stdin=diff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    by_patch, by_tool = map(InstalledTorch.find, sites)
    assert by_tool.apply()
    assert by_patch.functional.read_bytes() == by_tool.functional.read_bytes()
    # What patch(1) applied, without any backup, the tool knows and can undo.
    assert not by_patch.apply()
    assert by_patch.revert()
    original = source / "torch" / "nn" / "functional.py"
    assert by_patch.functional.read_bytes() == original.read_bytes()


def test_strict_diffs() -> None:
    diff = "--- a\n+++ b\n@@ -1,3 +1,3 @@ def f\n one\n-two\n+TWO\n three\n"
    hunks = unified_diff.parse(diff)
    text = "zero\none\ntwo\nthree\n"
    assert unified_diff.apply(hunks, text) == "zero\none\nTWO\nthree\n"
    assert unified_diff.revert(hunks, "zero\none\nTWO\nthree\n") == text
    for bad in ("one\ntwo\n", text + text, "one\r\ntwo\r\nthree\r\n", ""):
        with pytest.raises(unified_diff.DiffDoesNotFit):
            unified_diff.apply(hunks, bad)
    lines = diff.splitlines(keepends=True)
    for cut in itertools.chain([lines[:2]], [lines[:n] for n in range(3, len(lines))]):
        with pytest.raises(ValueError, match="hunk"):
            unified_diff.parse("".join(cut))
    with pytest.raises(ValueError, match="no hunk"):
        unified_diff.parse(diff + "trailing\n")
