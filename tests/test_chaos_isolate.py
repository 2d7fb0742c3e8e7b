"""A small size of `chaos.py --isolate`."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("numpy")
if os.name != "posix":
    pytest.skip("isolated workers are for Unix", allow_module_level=True)

import chaos
import chaos_isolate


@pytest.mark.timeout(600)
def test_whoever_is_killed_nothing_is_lost_and_nothing_is_left():
    report, wrong = chaos_isolate.run(seconds=20, seed=5, threads=6, tasks=6, quiet=True)
    assert wrong == []
    assert report["submitted"] == sum(report[outcome] for outcome in chaos.OUTCOMES)
    # What it is for did happen.
    assert report["completed"] > 0
    assert report["errors"] > 0
    assert report["restarts"]["signals"] > 0
    assert report["workers"]["crashes"] > 0
