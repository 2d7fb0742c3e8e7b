"""`benches/flat.py`: each front that it measures works, and growth is told."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(120)

_SPEC = importlib.util.spec_from_file_location(
    "flat", Path(__file__).parent.parent / "benches" / "flat.py"
)
flat = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(flat)


def test_each_front_answers_as_many_as_it_is_asked():
    fronts = flat.fronts()
    assert len(fronts) == 14
    for run in fronts.values():
        run(128)


def test_growth_is_told():
    start = 500 << 20
    figures = {"after a tenth": start, "at the end": start + (4 << 20)}
    assert flat.is_flat(figures)
    assert flat.is_flat({**figures, "at the end": start - (90 << 20)})
    # A hundred bytes a request, of 90,000, are more than that.
    assert not flat.is_flat({**figures, "at the end": start + 90_000 * 120})


_KEEPS = f"""
import sys
sys.path.insert(0, {str(_SPEC.origin.rpartition("/")[0])!r})
import flat
kept = []
flat.fronts = lambda: {{"keeps": lambda count: kept.append(bytearray(b"x") * (count * 20_000))}}
sys.exit(0 if flat.is_flat(flat.measure("keeps", 1000)) else 7)
"""


def test_memory_that_is_kept_is_seen():
    # In a process of its own, as the benchmark measures: in this one, memory that earlier tests
    # have freed would be used again.
    assert subprocess.run([sys.executable, "-c", _KEEPS], timeout=100).returncode == 7
