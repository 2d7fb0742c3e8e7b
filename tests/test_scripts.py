"""The two scripts, as anybody runs them: what they print, exit codes, and that they can fail."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import correctness_benchmark
import minimal_mps_contiguous_race
from warm_scripts import WarmScripts

TESTS = Path(__file__).resolve().parent
BENCHMARK = TESTS / "correctness_benchmark.py"
RACE = TESTS / "minimal_mps_contiguous_race.py"
TEN = [
    "Linear",
    "LinearLarge",
    "Matmul",
    "MatmulLarge",
    "BMM",
    "LayerNorm",
    "Softmax",
    "Conv2d",
    "GELU",
    "TransformerBlock",
]
# Each test starts processes that import PyTorch: on a loaded machine that alone takes a while.
pytestmark = pytest.mark.timeout(300)
needs_onelane = pytest.mark.skipif(
    importlib.util.find_spec("onelane._onelane") is None,
    reason="onelane is not built here: pip install .",
)


# Eight threads with an OpenMP team each, on a few cores, mostly wait for each other.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
# A fork of a process that has imported PyTorch is safe where nothing has started threads by then.
can_fork = sys.platform == "linux" and importlib.util.find_spec("torch") is not None
warm = WarmScripts(ENVIRONMENT)


@pytest.fixture(scope="module", autouse=True)
def _warm_scripts() -> Iterator[None]:
    yield
    warm.close()


def run(
    script: Path,
    *arguments: object,
    break_with: Path | None = None,
    timeout: float = 280,
    new: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process; `break_with` is a folder with a sitecustomize.py.

    A `new` one is an interpreter that has imported nothing.
    """
    words = [*map(str, arguments)]
    if can_fork and not new:
        return warm.run(script, words, break_with, timeout)
    environment = os.environ | ENVIRONMENT
    if break_with is not None:
        paths = [str(break_with), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run(
        [sys.executable, str(script), *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment,
    )


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON on stdout, and nothing else there; NaN and Infinity are not JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in the report")

    assert done.returncode in (0, 1), done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout, parse_constant=refuse)
    return parsed


# --- correctness_benchmark.py -----------------------------------------------------------------


def check_report(found: dict[str, Any], mode: str, threads: list[int], tests: list[str]) -> None:
    assert found["device"] == "cpu"
    assert found["device_kind"] == "real"
    assert found["mode"] == mode
    assert found["threads"] == threads
    assert found["total"] == len(tests) * len(threads) == len(found["results"])
    assert (found["passed"], found["failed"]) == (found["total"], 0)
    assert [r["name"] for r in found["results"]] == [t for t in tests for _ in threads]
    assert [r["threads"] for r in found["results"]] == threads * len(tests)
    for result in found["results"]:
        assert result["passed"] is True
        assert result["errors"] == []
        assert 0 <= result["max_diff"] < 1e-3
        assert result["seconds"] > 0
        if result["threads"] > 1:
            assert 0 <= result["thread_diff"] < 1e-3
        else:
            assert result["thread_diff"] is None


def test_direct_mode_passes_all_ten() -> None:
    done = run(
        BENCHMARK, "--device", "cpu", "--parallel", "--threads", 8, "--workers", 1,
        "--iterations", 2, "--json", new=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = report(done)
    check_report(found, "parallel", [8], TEN)
    assert found["iterations"] == 2
    assert found["workers"] is None


def test_table_names_in_any_case_several_counts_and_output(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    done = run(
        BENCHMARK, "--device", "cpu", "--parallel", "--threads", "1,16", "--iterations", 2,
        "--tests", "bmm,LINEAR", "--output", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PASS") == 4
    assert "4/4 passed" in done.stdout
    check_report(json.loads(output.read_text()), "parallel", [1, 16], ["BMM", "Linear"])
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_single_mode(dtype: str) -> None:
    done = run(BENCHMARK, "--device", "cpu", "--iterations", 1, "--dtype", dtype, "--json")
    assert done.returncode == 0, done.stderr
    found = report(done)
    assert (found["mode"], found["threads"], found["passed"]) == ("single", [1], 10)


@needs_onelane
@pytest.mark.parametrize(
    ("workers", "threads", "tests"),
    [
        (1, [8], TEN),
        (1, [16, 3], ["Linear", "Matmul", "BMM", "TransformerBlock"]),
        (2, [8], ["Linear", "Matmul", "BMM", "TransformerBlock"]),
    ],
    ids=["ten tests", "other counts", "two workers"],
)
def test_batched_mode(workers: int, threads: list[int], tests: list[str]) -> None:
    done = run(
        BENCHMARK, "--device", "cpu", "--parallel", "--threads", ",".join(map(str, threads)),
        "--use-batching", "--workers", workers, "--iterations", 2, "--tests", ",".join(tests),
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = report(done)
    check_report({**found, "threads": threads}, "batched", threads, tests)
    assert found["threads"] == sorted(threads)
    assert found["workers"] == workers
    for result in found["results"]:
        assert result["tolerance"] == 1e-5
        requests = result["batches"]["count"] * result["batches"]["mean_size"]
        assert requests == pytest.approx(result["threads"] * 2)


def test_the_default_device_is_named() -> None:
    done = run(BENCHMARK, "--parallel", "--threads", 2, "--iterations", 1, "--tests", "Linear")
    assert "device cpu (real)" in done.stdout or "device mps (real)" in done.stdout
    if "device cpu" in done.stdout:
        assert "no MPS device here" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--threads", "0", "--parallel"], "--threads"),
        (["--threads", "8,,16", "--parallel"], "--threads"),
        (["--threads", "many", "--parallel"], "--threads"),
        (["--threads", "8"], "--parallel"),
        (["--workers", "0"], "--workers"),
        (["--iterations", "0"], "--iterations"),
        (["--use-batching"], "--parallel"),
        (["--tests", "Linear,Nothing"], "TransformerBlock"),
        (["--stall-after", "0"], "--stall-after"),
        (["--parallel", "--dtype", "fp16"], "--dtype"),
        (["--device", "toaster"], "cpu, mps or cuda"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--output", "/no/such/folder/report.json"], "/no/such/folder/report.json"),
        (["--output", "/"], "cannot write /"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_usage_is_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = correctness_benchmark.main(arguments)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert code == 2
    assert says in printed.err
    assert "PASS" not in printed.out


def test_wrong_usage_ends_the_process_with_2() -> None:
    for script in (BENCHMARK, RACE):
        done = run(script, "--device", "toaster", new=True)
        assert done.returncode == 2
        assert "cpu, mps or cuda" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", [BENCHMARK, RACE], ids=lambda p: p.stem)
def test_without_torch_it_says_so(script: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
    done = run(script, break_with=tmp_path, new=True)
    assert done.returncode == 2
    assert "pip install torch" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_onelane_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['onelane'] = None\n")
    done = run(BENCHMARK, "--parallel", "--use-batching", break_with=tmp_path, new=True)
    assert done.returncode == 2
    assert "pip install ." in done.stderr
    # Without the queue it is not needed.
    done = run(
        BENCHMARK, "--parallel", "--tests", "linear", "--iterations", 1, break_with=tmp_path,
        new=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- That the benchmark can fail --------------------------------------------------------------

BREAK = """
import os, threading
import torch
from torch import nn

original = nn.GELU.forward
calls = 0
last = None
lock = threading.Lock()

def forward(self, x):
    global calls, last
    y = original(self, x)
    with lock:
        calls += 1
        number, previous = calls, last
        last = y
    {fault}
    return y

nn.GELU.forward = forward
"""
# Eight threads have four different inputs, so that calls 1 to 4 are the golden ones.
FAULTS = {
    "one wrong number in one call": "if number == 9: y.view(-1)[12345] += 1e-4",
    "the answer of another thread": "if number > 4: y = previous",
    "not a number": "if number == 9: y.view(-1)[12345] = float('nan')",
    "not a number, golden too": "y.view(-1)[12345] = float('nan')",
    "infinite, golden too": "y.view(-1)[12345] = float('inf')",
    "another shape": "if number == 9: y = y[:1]",
    "not a tensor": "if number == 9: y = None",
    "an exception": "if number == 9: raise RuntimeError('broken on purpose')",
    "an exception in golden": "if number == 2: raise RuntimeError('broken on purpose')",
}


def broken(folder: Path, fault: str) -> Path:
    (folder / "sitecustomize.py").write_text(BREAK.format(fault=fault))
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_corrupted_operation_fails(fault: str, tmp_path: Path) -> None:
    done = run(
        BENCHMARK, "--device", "cpu", "--parallel", "--tests", "GELU,Linear", "--iterations", 2,
        "--json", break_with=broken(tmp_path, FAULTS[fault]),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    found = report(done)
    assert (found["passed"], found["failed"]) == (1, 1)
    gelu, linear = found["results"]
    assert linear["passed"] is True
    assert gelu["passed"] is False
    assert gelu["errors"]
    if "wrong number" in fault:
        assert gelu["max_diff"] == pytest.approx(1e-4, rel=0.01)
        assert gelu["thread_diff"] == pytest.approx(1e-4, rel=0.01)
    if "answer of another" in fault:
        assert gelu["max_diff"] > 1
    if "number, golden" in fault or "infinite" in fault or fault == "not a number":
        assert gelu["max_diff"] is None
        assert "not finite" in gelu["errors"][0]
    if "exception" in fault:
        assert "broken on purpose" in gelu["errors"][0]
    assert "FAIL  GELU" in done.stderr


@needs_onelane
def test_a_corrupted_operation_fails_through_the_queue(tmp_path: Path) -> None:
    done = run(
        BENCHMARK, "--device", "cpu", "--parallel", "--use-batching", "--tests", "GELU,Linear",
        "--iterations", 2, "--json",
        break_with=broken(tmp_path, "if number > 4: y.view(-1)[12345] += 1e-3"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert [r["passed"] for r in report(done)["results"]] == [False, True]


HANG = "if number == 9: threading.Event().wait()"


def test_a_hang_is_a_failure(tmp_path: Path) -> None:
    done = run(
        BENCHMARK, "--device", "cpu", "--parallel", "--tests", "Linear,GELU,BMM",
        "--iterations", 2, "--stall-after", 3, "--json", break_with=broken(tmp_path, HANG),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    linear, gelu, bmm = report(done)["results"]
    assert linear["passed"] is True
    assert "hung" in gelu["errors"][0]
    assert "not run" in bmm["errors"][0]


@needs_onelane
@pytest.mark.parametrize("number", [2, 6], ids=["golden", "in a batch"])
def test_a_hang_of_the_worker_is_a_failure(number: int, tmp_path: Path) -> None:
    done = run(
        BENCHMARK, "--device", "cpu", "--parallel", "--use-batching", "--tests", "GELU,Linear",
        "--iterations", 2, "--stall-after", 3, "--json",
        break_with=broken(tmp_path, f"if number == {number}: threading.Event().wait()"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    gelu, linear = report(done)["results"]
    assert "hung" in gelu["errors"][0]
    assert "not run" in linear["errors"][0]


def test_in_processes_of_their_own_a_crash_and_a_hang_cost_one_test(tmp_path: Path) -> None:
    crash = broken(tmp_path, "if number == 9: os.abort()")
    arguments: list[object] = ["--device", "cpu", "--parallel", "--isolate", "--iterations", 2]
    arguments += ["--json", "--stall-after", 5, "--tests", "GELU,Linear"]
    done = run(BENCHMARK, *arguments, break_with=crash)
    assert done.returncode == 1, done.stderr
    gelu, linear = report(done)["results"]
    assert linear["passed"] is True
    assert "SIGABRT" in gelu["errors"][0]
    done = run(BENCHMARK, *arguments, break_with=broken(tmp_path, HANG))
    gelu, linear = report(done)["results"]
    assert linear["passed"] is True
    assert "hung" in gelu["errors"][0]


def test_a_failing_run_still_writes_its_report_and_a_refused_one_writes_none(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "break"
    folder.mkdir()
    output = tmp_path / "out" / "report.json"
    output.parent.mkdir()
    output.write_text("the report of yesterday")
    assert run(BENCHMARK, "--device", "toaster", "--output", output).returncode == 2
    assert output.read_text() == "the report of yesterday"
    done = run(
        BENCHMARK, "--device", "cpu", "--parallel", "--tests", "GELU", "--iterations", 2,
        "--output", output, break_with=broken(folder, FAULTS["not a number"]),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert json.loads(output.read_text())["failed"] == 1
    assert list(output.parent.iterdir()) == [output]


# --- minimal_mps_contiguous_race.py -----------------------------------------------------------


def test_the_reproducer_passes_on_the_cpu_and_says_where_it_ran() -> None:
    done = run(RACE, "--device", "cpu", "--iterations", 3, new=True)
    assert done.returncode == 0, done.stderr
    assert "device cpu (real)" in done.stdout
    assert done.stdout.index("without .contiguous()") < done.stdout.index("\nPASS  with ")
    assert done.stdout.count("3/3") == 2
    assert "not reproduced" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "variants"),
    [
        (["--contiguous"], ["with .contiguous()"]),
        (["--no-contiguous"], ["without .contiguous()"]),
        (["--patch035"], ["three copies (patch 035)"]),
        (
            ["--keep-projection", "--width", "128"],
            [
                "without .contiguous(), projection kept",
                "with .contiguous(), projection kept",
            ],
        ),
        (["--mha"], ["nn.MultiheadAttention"]),
        (["--mha", "--patch035"], ["nn.MultiheadAttention with patch 035"]),
    ],
    ids=str,
)
def test_variants_of_the_reproducer(arguments: list[str], variants: list[str]) -> None:
    done = run(RACE, "--device", "cpu", "--iterations", 2, "--threads", 4, "--json", *arguments)
    found = report(done)
    assert done.returncode == 0
    assert [v["name"] for v in found["variants"]] == variants
    assert (found["threads"], found["iterations"], found["reproduced"]) == (4, 2, False)
    for variant in found["variants"]:
        assert variant["passed"] is True
        assert variant["passed_iterations"] == 2
        assert variant["max_diff"] < 1e-3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "0"],
        ["--iterations", "x"],
        ["--mha", "--contiguous"],
        ["--mha", "--keep-projection"],
        ["--width", "130"],
        ["--device", "cpu", "--own-streams"],
        ["--device", "toaster"],
    ],
    ids=str,
)
def test_wrong_usage_of_the_reproducer(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = minimal_mps_contiguous_race.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert capsys.readouterr().err


# In an iteration with 4 threads, attention calls 1 to 4 are the serial ones.
RACE_BREAK = """
import itertools, threading
import torch
import torch.nn.functional as F

original = F.scaled_dot_product_attention
calls = itertools.count(1)

def attention(*args, **kwargs):
    number = next(calls)
    y = original(*args, **kwargs)
    {fault}
    return y

F.scaled_dot_product_attention = attention
"""


@pytest.mark.parametrize(
    ("fault", "passed", "says"),
    [
        ("if number == 7: y = y + 1", 2, "difference 1"),
        ("if number == 7: y = y * float('nan')", 2, "not finite"),
        ("if number == 7: raise RuntimeError('broken on purpose')", 2, "broken on purpose"),
        ("if number == 15: threading.Event().wait()", 1, "hung"),
    ],
    ids=["wrong numbers", "not a number", "exception", "hang"],
)
def test_the_reproducer_reproduces(fault: str, passed: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(RACE_BREAK.format(fault=fault))
    done = run(
        RACE, "--device", "cpu", "--contiguous", "--iterations", 3, "--threads", 4,
        "--stall-after", 3, "--json", break_with=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    found = report(done)
    assert found["reproduced"] is True
    (variant,) = found["variants"]
    assert variant["passed"] is False
    assert variant["passed_iterations"] == passed
    assert says in variant["errors"][0]
    assert variant["max_diff"] is None or math.isfinite(variant["max_diff"])
    assert "REPRODUCED" in done.stderr
