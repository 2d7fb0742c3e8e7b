"""A small size of `chaos.py --isolate`, in a process of its own: it counts all that is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("numpy")
if os.name != "posix":
    pytest.skip("isolated workers are for Unix", allow_module_level=True)

import chaos

SCRIPT = """
import json, chaos_isolate
print(json.dumps(chaos_isolate.run(seconds=10, seed=5, threads=6, tasks=6, quiet=True)))
"""


@pytest.mark.timeout(600)
def test_whoever_is_killed_nothing_is_lost_and_nothing_is_left():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    report, wrong = json.loads(done.stdout.splitlines()[-1])
    assert wrong == []
    assert report["submitted"] == sum(report[outcome] for outcome in chaos.OUTCOMES)
    # What it is for did happen.
    assert report["completed"] > 0
    assert report["errors"] > 0
    assert report["restarts"]["signals"] > 0
    assert report["workers"]["crashes"] > 0
