"""Patch 038 is current, and applies to a tree with PyTorch's layout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CRATE = Path(__file__).resolve().parent.parent
PATCH = CRATE.parent.parent / "patches" / "038-mps-batch-queue.patch"
sys.path.insert(0, str(CRATE / "pytorch"))

import make_patch  # noqa: E402


def test_it_is_current():
    assert PATCH.read_text() == make_patch.patch(), "run `make patch-038`"


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is not installed")
def test_it_applies_and_gives_the_files(tmp_path):
    (tmp_path / "aten/src/ATen/mps").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    command = ["patch", "-p1", "--fuzz=0", "-d", str(tmp_path)]
    with PATCH.open() as text:
        subprocess.run(command, stdin=text, check=True, capture_output=True)
    for path, text in make_patch.files().items():
        assert (tmp_path / path).read_text() == text
