#!/usr/bin/env python3
"""Ten operations, run by many threads at once: does everybody get the right numbers?

    python3 tests/correctness_benchmark.py --parallel --threads 8
        the threads call the device directly, all at once
    python3 tests/correctness_benchmark.py --parallel --threads 8 --use-batching --workers 1
        the threads submit to a onelane.BatchQueue, whose one worker owns the device
    python3 tests/correctness_benchmark.py
        one thread, the device against the CPU
    python3 tests/correctness_benchmark.py --device sim-mps --parallel --threads 8
        the same on onelane's simulated MPS device, on Linux; also with --patch035

With --parallel the golden results come from the same operations on the same device, run alone.
Thread t uses the input of seed 42 with its outermost dimension rotated by t mod 4 rows, so that
an answer for another thread is a wrong answer. Results must be within 1e-6 of golden (1e-5 through
the queue, where requests share a batch; 1e-4 against the CPU), relative plus absolute.

Exit codes: 0 all passed; 1 a test failed, hung or crashed; 2 wrong usage, no such device, or
onelane is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

try:
    import torch
except ImportError as error:
    print(f"This script needs PyTorch ({error}): pip install torch", file=sys.stderr)
    sys.exit(2)

from correctness.case import CASES, Case
from correctness.crew import Hung
from correctness.device import Device, resolve_device
from correctness.modes import run_batched, run_direct, run_single
from correctness.outcome import Plan, Result
from correctness.simulated import PREFIX, patch_035
from correctness.through_queue import import_onelane

DIRECT_TOLERANCE, BATCHED_TOLERANCE = 1e-6, 1e-5
# Against the CPU's fp32, relative and absolute.
SINGLE_TOLERANCE = {"fp32": (1e-4, 1e-4), "fp16": (0.1, 0.15), "bf16": (0.15, 0.2)}
DEVICE_HELP = (
    "cpu, mps or cuda[:N] (default: mps if there is one, else cpu), or sim-mps[:PROFILE], "
    "onelane's simulated device"
)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def seed(text: str) -> int:
    """An integer that a seed can be, for argparse."""
    number = int(text)
    if not 0 <= number < 1 << 64:
        raise ValueError
    return number


def thread_counts(text: str) -> list[int]:
    """Comma-separated integers of at least 1, for argparse."""
    return [positive(part) for part in text.split(",")]


def cases(text: str) -> list[Case]:
    """Comma-separated names of tests, for argparse; upper and lower case are the same."""
    by_name = {case.name.lower(): case for case in CASES}
    chosen = []
    for name in text.split(","):
        if name.strip().lower() not in by_name:
            known = ", ".join(case.name for case in CASES)
            raise argparse.ArgumentTypeError(f"no test is called {name!r}; there are {known}")
        chosen.append(by_name[name.strip().lower()])
    return chosen


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    head, _, tail = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=tail, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", help=DEVICE_HELP)
    add("--seed", type=seed, metavar="N", help="of a simulated device's schedule (default: 0)")
    add("--patch035", "--patch-035", action="store_true", help="with patch 035 in PyTorch")
    add("--parallel", action="store_true", help="many threads at once")
    add("--threads", type=thread_counts, metavar="N[,N...]", help="how many (default: 8)")
    add("--use-batching", action="store_true", help="submit to a onelane.BatchQueue")
    add("--workers", type=positive, default=1, metavar="N", help="of the queue (default: 1)")
    add("--iterations", type=positive, default=10, metavar="N", help="of each test (default: 10)")
    add("--tests", type=cases, default=list(CASES), metavar="NAME,...", help="(default: all ten)")
    add("--dtype", choices=DTYPES, default="fp32", help="without --parallel only (default: fp32)")
    add("--output", metavar="FILE", help="write the report there, as JSON")
    add("--json", action="store_true", help="the report as JSON on stdout, in place of the table")
    add(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="a process for each test, so that a crash fails one test and not all (default: on mps "
        "without --use-batching)",
    )
    add(
        "--stall-after",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="a test without progress for so long has hung (default: 120)",
    )
    options = parser.parse_args(arguments)
    if options.use_batching and not options.parallel:
        parser.error("--use-batching goes with --parallel")
    if options.threads is not None and not options.parallel:
        parser.error("--threads goes with --parallel")
    if options.parallel and options.dtype != "fp32":
        parser.error("--dtype does not go with --parallel: those tests are fp32")
    if not options.stall_after > 0:
        parser.error("--stall-after must be greater than 0")
    if options.seed is not None and not (options.device or "").startswith(PREFIX):
        parser.error(f"--seed goes with --device {PREFIX}")
    return options


def plans_for(options: argparse.Namespace) -> list[Plan]:
    """What is to be run: each test at each number of threads."""
    relative, absolute = SINGLE_TOLERANCE[options.dtype]
    counts = [1]
    if options.parallel:
        relative = absolute = BATCHED_TOLERANCE if options.use_batching else DIRECT_TOLERANCE
        counts = options.threads or [8]
    return [
        Plan(case, threads, options.iterations, relative, absolute, options.stall_after)
        for case in options.tests
        for threads in counts
    ]


def run_isolated(plan: Plan, options: argparse.Namespace) -> Result:
    """The same test in a process of its own, so that a crash is its result and not our end."""
    command = [sys.executable, os.path.abspath(__file__), "--json", "--no-isolate"]
    command += ["--tests", plan.case.name, "--iterations", str(plan.iterations)]
    command += ["--stall-after", str(plan.stall_after), "--dtype", options.dtype]
    if options.device is not None:
        command += ["--device", options.device]
    if options.seed is not None:
        command += ["--seed", str(options.seed)]
    if options.patch035:
        command += ["--patch035"]
    if options.parallel:
        command += ["--parallel", "--threads", str(plan.threads)]
    if options.use_batching:
        command += ["--use-batching", "--workers", str(options.workers)]
    started = time.perf_counter()
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if child.returncode in (0, 1):
        with contextlib.suppress(json.JSONDecodeError, LookupError, TypeError):
            return Result(**json.loads(child.stdout)["results"][0])
    if child.returncode < 0:
        how = f"the process was killed by {signal.Signals(-child.returncode).name}"
    else:
        how = f"the process ended with code {child.returncode} and no report"
    last = child.stderr.strip().splitlines()[-1:]
    errors = [": ".join([how, *last])]
    return Result(
        plan.case.name, plan.threads, tolerance=plan.absolute, seconds=seconds, errors=errors
    )


def run_here(plan: Plan, device: Device, options: argparse.Namespace) -> tuple[Result, bool]:
    """Run a test in this process; the second value says whether threads were left hanging."""
    started = time.perf_counter()
    try:
        if not options.parallel:
            return run_single(plan, device, DTYPES[options.dtype]), False
        if options.use_batching:
            return run_batched(plan, device, options.workers), False
        return run_direct(plan, device), False
    except Exception as error:
        hung = isinstance(error, Hung)
        text = str(error) if hung else f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        return Result(
            plan.case.name, plan.threads, tolerance=plan.absolute, seconds=seconds, errors=[text]
        ), hung


def run_all(plans: Sequence[Plan], device: Device, options: argparse.Namespace) -> Iterator[Result]:
    """Run the tests one after another; after a hang in this process the others fail unrun."""
    left_hanging = False
    for plan in plans:
        if left_hanging:
            errors = ["not run: an earlier test hung, and its threads are still on the device"]
            yield Result(plan.case.name, plan.threads, tolerance=plan.absolute, errors=errors)
        elif options.isolate:
            yield run_isolated(plan, options)
        else:
            with device.opened() as opened:
                result, left_hanging = run_here(plan, opened, options)
            yield result
    options.left_hanging = left_hanging


def report_of(
    results: Sequence[Result], plans: Sequence[Plan], device: Device, options: argparse.Namespace
) -> dict[str, Any]:
    """The report that --json and --output give."""
    passed = sum(result.passed for result in results)
    return {
        "device": str(device.torch),
        "device_kind": device.kind,
        "simulated": device.simulated and device.simulated._asdict(),
        "patch035": options.patch035,
        "torch": str(torch.__version__),
        "mode": mode_of(options),
        "threads": sorted({plan.threads for plan in plans}),
        "workers": options.workers if options.use_batching else None,
        "iterations": options.iterations,
        "total": len(results),
        "passed": passed,
        "failed": len(results) - passed,
        "results": [asdict(result) for result in results],
    }


def mode_of(options: argparse.Namespace) -> str:
    """Single, parallel or batched."""
    if options.use_batching:
        return "batched"
    return "parallel" if options.parallel else "single"


@contextlib.contextmanager
def output_file(path: str | None) -> Iterator[Callable[[str], None]]:
    """Find out at once whether `path` can be written, and write it in one step at the end.

    Raises ValueError if it cannot.
    """
    if path is None:
        yield lambda text: None
        return
    folder, name = os.path.split(os.path.abspath(path))
    temporary: str | None = None
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(21, "it is a folder")
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=name + ".")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:

            def write(text: str) -> None:
                nonlocal temporary
                file.write(text + "\n")
                file.close()
                assert temporary is not None
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
                temporary = None

            yield write
    finally:
        if temporary is not None:
            os.unlink(temporary)


def show(result: Result, file: Any) -> None:
    """Print one row of the table, and the errors under it."""

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.2e}"

    print(
        f"{'PASS' if result.passed else 'FAIL'}  {result.name:<17} {result.threads:>7}  "
        f"{number(result.max_diff):>10}  {number(result.thread_diff):>11}  {result.seconds:>7.2f}",
        file=file,
        flush=True,
    )
    for error in result.errors:
        print(f"      {error}", file=file, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests and return the exit code."""
    options = parse(arguments)
    table = sys.stderr if options.json else sys.stdout
    plans = plans_for(options)
    options.left_hanging = False
    try:
        device = resolve_device(options.device, options.seed or 0)
        if options.use_batching:
            import_onelane()
        if options.isolate is None:
            options.isolate = (
                options.parallel
                and not options.use_batching
                and device.torch.type == "mps"
                and device.kind == "real"
            )
        # fp32 means fp32: no TF32 in place of it.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        with output_file(options.output) as write, patch_035(options.patch035):
            workers = f", {options.workers} worker(s)" if options.use_batching else ""
            patch = ", patch 035" if options.patch035 else ""
            print(
                f"torch {torch.__version__}, device {device.torch} ({device.kind}), "
                f"{mode_of(options)}{workers}{patch}, {options.iterations} iterations",
                file=table,
            )
            if device.note is not None:
                print(device.note, file=table)
            header = f"      {'test':<17} {'threads':>7}  {'max diff':>10}  {'thread diff':>11}"
            print(f"{header}  {'seconds':>7}", file=table, flush=True)
            results = []
            for result in run_all(plans, device, options):
                results.append(result)
                show(result, table)
            report = report_of(results, plans, device, options)
            text = json.dumps(report, indent=2, allow_nan=False)
            write(text)
    except ValueError as error:
        print(f"correctness_benchmark: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(text)
    where = " (simulated)" if device.kind == "simulated" else ""
    print(f"{report['passed']}/{report['total']} passed{where}", file=table)
    code = 0 if report["failed"] == 0 else 1
    if options.left_hanging:
        # Threads that never end would keep the interpreter's exit waiting in the driver.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
