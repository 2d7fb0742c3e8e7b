"""`mac-check`: each check can fail, each child is contained, and a simulated run says that it is.

What a check makes of an observation is tested with observations that refute it; that the checks
themselves run, on the simulated device.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

import onelane
from onelane import _mac_check
from onelane._mac_check import isolated, whole
from onelane._mac_check.checks import BY_NAME, CHECKS, Condition, Observed
from onelane._mac_check.page import page

OLD, NEW = Condition((2, 14)), Condition((2, 15))
FORK = Condition((2, 9), "fork-2.9.1")


def clean(**figures):
    return Observed("clean", "", {name.replace("_", " "): value for name, value in figures.items()})


ABORT, HANG = Observed("abort", "SIGABRT"), Observed("hang")
FINE, SHORT = {"a": (10, 10)}, {"a": (10, 10), "b": (9, 10)}
FORK_FINE = {"projection kept": (30, 30), "width 128": (30, 30), "patch 035 in loops": (200, 240)}
FLAT = {
    "plain after 100": 10, "plain at the end": 20, "bucketed after 100": 10,
    "bucketed at the end": 10,
}  # fmt: skip
E2E = {"findings": 0, "difference": 1e-6, "shapes": 90, "streamed": "as alone"}
CONTAINED = {"abort": "EngineCrashed", "hang": "EngineHung", "others right": 6, "others": 6}
RECYCLED = {
    "most in the first third": 100, "most at the end": 104, "replaced": 2, "lost": 0,
}  # fmt: skip

# For each check: an observation that is as expected, and those that refute it.
TABLE = {
    "arange2": [(ABORT, OLD, [clean()]), (clean(), NEW, [ABORT, HANG])],
    "sync2": [(ABORT, OLD, []), (clean(), NEW, [ABORT, HANG])],
    "first-use": [(ABORT, OLD, []), (clean(), NEW, [ABORT])],
    "arange-worker": [(clean(), OLD, [ABORT, HANG]), (clean(), NEW, [ABORT])],
    "ten-direct": [(ABORT, OLD, [clean(passed=SHORT)]), (clean(passed=FINE), NEW, [ABORT])],
    "ten-queue": [(clean(passed=FINE), OLD, [clean(passed=SHORT), ABORT])],
    "user-streams": [(clean(passed=FINE), NEW, [clean(passed=SHORT), ABORT])],
    "fork-only": [
        (
            clean(passed=FORK_FINE),
            FORK,
            [
                clean(passed={**FORK_FINE, "projection kept": (29, 30)}),
                clean(passed={**FORK_FINE, "width 128": (29, 30)}),
                clean(passed={**FORK_FINE, "patch 035 in loops": (240, 240)}),
            ],
        )
    ],
    "wrong-matmul": [(clean(wrong=0), OLD, [clean(wrong=1), ABORT])],
    "async-load": [(clean(), NEW, [ABORT])],
    "shapes": [(Observed("clean", "", FLAT), NEW, [
        Observed("clean", "", {**FLAT, "bucketed at the end": 11}), ABORT])],
    "graphs-vs-pool": [
        (clean(start=10, full=110, emptied=20), NEW, [clean(start=10, full=110, emptied=70)])
    ],
    "missing-pools": [(clean(lines=0), NEW, [clean(lines=1)])],
    "isolation": [
        (Observed("clean", "", CONTAINED), NEW, [
            Observed("clean", "", {**CONTAINED, "others right": 5}),
            Observed("clean", "", {**CONTAINED, "abort": "an answer"}),
            Observed("clean", "", {**CONTAINED, "hang": "TimeoutError"}), ABORT, HANG])
    ],
    "shapes-recycled": [
        (Observed("clean", "", RECYCLED), NEW, [
            Observed("clean", "", {**RECYCLED, "most at the end": 106}),
            Observed("clean", "", {**RECYCLED, "replaced": 0}),
            Observed("clean", "", {**RECYCLED, "lost": 1}), ABORT])
    ],
    "candle-pool": [
        (clean(with_our_pool=1 << 20, without=23 << 20), NEW, [
            clean(with_our_pool=22 << 20, without=23 << 20), ABORT])
    ],
    "throughput": [(clean(lock=10.0, queue=25.0), NEW, [clean(lock=10.0, queue=9.0)])],
    "install-E2E": [
        (Observed("clean", "", E2E), NEW, [
            Observed("clean", "", {**E2E, "findings": 1}),
            Observed("clean", "", {**E2E, "difference": 1e-3}),
            Observed("clean", "", {**E2E, "streamed": "another text"}),
            Observed("clean", "", {**E2E, "shapes": 97}), ABORT])
    ],
    "release": [
        (clean(after_2=5, after_20=6, one_model=3), NEW, [
            clean(after_2=5, after_20=9, one_model=3)])
    ],
    "mlx": [(clean(through_the_worker="right"), NEW, [clean(through_the_worker="wrong")])],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_each_check_can_fail(name):
    judge, refuted = BY_NAME[name].judge, 0
    for expected, on, wrong in TABLE[name]:
        assert judge(expected, on) == "as expected"
        for observed in wrong:
            assert judge(observed, on) == "refuted", observed
            refuted += 1
    assert refuted, "nothing would refute this check"


def test_the_table_names_every_check_and_each_is_explained():
    assert set(TABLE) == {check.name for check in CHECKS}
    for check in CHECKS:
        assert check.runs
        assert check.expected
        assert check.refuted_if


def test_what_a_child_that_ended_observed():
    said = json.dumps({"end": "clean", "text": "", "figures": {"products": 1}, "footprint": 5})
    observed, footprint = _mac_check.read("missing-pools", 0, f"noise\n{said}\n", "MISSING POOLS x")
    assert observed.figures == {"products": 1, "lines": 1}
    assert footprint == 5
    assert _mac_check.read("arange2", -6, "", "")[0] == Observed("abort", "SIGABRT")
    assert _mac_check.read("arange2", 3, "nothing", "")[0].end == "error"


def test_a_child_that_hangs_is_killed(monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    child.write_text("import threading; threading.Event().wait()")
    monkeypatch.setattr(_mac_check.sys, "executable", "/bin/sh")
    real = subprocess.Popen

    def popen(command, **named):
        return real(["/bin/sh", "-c", "echo last words >&2; exec sleep 100"], **named)

    monkeypatch.setattr(_mac_check.subprocess, "Popen", popen)
    observed, _, stderr = _mac_check.observe("arange2", None, limit_s=1.0)
    assert observed.end == "hang"
    assert "last words" in stderr


def test_a_name_that_there_is_not(capsys):
    assert _mac_check.main(only=["arange"]) == 2
    assert "arange2" in capsys.readouterr().err


needs_sim = pytest.mark.skipif(
    sys.platform == "darwin" or not (shutil.which("c++") or shutil.which("g++")),
    reason="needs the simulated device, which needs a C++ compiler",
)


@needs_sim
@pytest.mark.timeout(300)
def test_a_simulated_run_agrees_with_the_rules_and_says_that_it_is_one(tmp_path):
    pytest.importorskip("torch")
    target = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, "-m", "onelane", "mac-check", "--json", "--html", str(target),
         "--only", "arange2", "arange-worker", "missing-pools"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["simulated"] is True
    assert "simulated" in done.stderr
    ended = {(r["check"], r["condition"]): r for r in report["results"]}
    assert ended["arange2", "upstream-2.14 (simulated)"]["end"] == "abort"
    assert ended["arange2", "upstream-2.15 (simulated)"]["end"] == "clean"
    assert ended["arange-worker", "upstream-2.14 (simulated)"]["end"] == "clean"
    assert ended["missing-pools", "upstream-2.15 (simulated)"]["verdict"] == "not run"
    assert "measured on a Mac" in target.read_text()


def test_the_page_escapes_what_a_check_said():
    result = _mac_check.Result("mlx", "x", True, "refuted", "error", "<script>", {}, None, "<b>")
    made = page(_mac_check.report([result], mac=False))
    assert "<script>" not in made
    assert "&lt;script&gt;" in made


@needs_sim
@pytest.mark.skipif(os.name != "posix", reason="isolated workers are for Unix")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["isolation", "shapes-recycled"])
def test_on_the_simulated_device_isolated_workers_contain_and_are_replaced(name):
    pytest.importorskip("torch")
    check = BY_NAME[name]
    result = _mac_check.run(check, _mac_check.conditions(check, mac=False)[0])
    assert result.verdict == "as expected", (result.end, result.text, result.figures, result.stderr)


def test_without_isolation_the_same_requests_are_not_contained(device):
    """What the check of isolation asks, of a model in this process that only raises."""

    def model(items):
        if {isolated._ABORTS, isolated._HANGS} & set(items):
            raise RuntimeError("not contained")
        return [at * 2 for at in items]

    queue = onelane.BatchQueue(model, device, onelane.Items(), factory=False)
    figures = isolated.answers(queue, 60)
    assert figures["others right"] == figures["others"]
    assert BY_NAME["isolation"].judge(Observed("clean", "", figures), NEW) == "refuted"


def test_the_streamer_of_the_whole_program(home, tmp_path):
    """On the host: on a Mac the check runs the same on mps."""
    pytest.importorskip("transformers")
    onelane.install(home)
    try:
        told = []
        assert whole.streamed(tmp_path, "cpu", told.append) == "as alone"
        assert len(told) == 8
    finally:
        onelane.uninstall()
