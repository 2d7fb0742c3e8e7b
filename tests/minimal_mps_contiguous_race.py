#!/usr/bin/env python3
"""The `.contiguous()` race of the packed attention projection, as small as it gets.

Eight threads run a packed query/key/value projection and attention on the device at once, each
on its own input; every result is compared with the one computed alone. The projection is
unpacked by views, then with or without one strided copy (`.contiguous()`), as
torch.nn.functional._in_projection_packed does it.

    python3 tests/minimal_mps_contiguous_race.py              without the copy, then with it
    python3 tests/minimal_mps_contiguous_race.py --patch035   three plain copies (patch 035)
    python3 tests/minimal_mps_contiguous_race.py --mha        nn.MultiheadAttention as installed
    python3 tests/minimal_mps_contiguous_race.py --device sim-mps   onelane's simulated device

--keep-projection, --width 128 and --own-streams put predictions to the test: see
reports/main/root-cause.md.

Exit codes: 0 every iteration passed; 1 reproduced: wrong numbers, an exception or a hang; 2 wrong
usage or no such device. A process that is killed by a signal is a reproduction, too: Metal's
assertions end the process.

The published failures come from a fork of PyTorch 2.9.1 with one stream per thread, run with
MPS_FORCE_GRAPH_PATH=1. Released versions give all threads one stream, where the documented
hazard is a crash or a hang.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    print(f"This script needs PyTorch ({error}): pip install torch", file=sys.stderr)
    sys.exit(2)

from correctness.simulated import PREFIX, Simulated, patch_035

BATCH, LENGTH, HEADS = 4, 128, 4
TOLERANCE = 1e-3
SEED = 42

Operation = Callable[[Tensor], Tensor]


def resolve_device(name: str | None) -> tuple[torch.device, str, str | None]:
    """The device of this name, "real" or "simulated", and what a reader should know about it.

    Raises ValueError if there is no such device.
    """
    if name is None:
        if torch.backends.mps.is_available():
            return torch.device("mps"), "real", None
        note = "no MPS device here: running on cpu, which does not have this race"
        return torch.device("cpu"), "real", note
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "mps", "cuda"):
        raise ValueError(f"unknown device {name!r}: use cpu, mps or cuda[:N], or {PREFIX}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "no MPS device here: it takes a Mac with Apple silicon, or use --device cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no device {name}: this PyTorch sees {torch.cuda.device_count()} of them")
    return device, "real", None


def has_streams(device: torch.device) -> bool:
    """Whether a program can make streams on the device."""
    return device.type == "cuda" or (device.type == "mps" and hasattr(torch.mps, "Stream"))


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "cuda":
        torch.cuda.synchronize(device)


def own_stream(device: torch.device, wanted: bool) -> contextlib.AbstractContextManager[object]:
    """A new stream for the calling thread, if wanted."""
    if not wanted:
        return contextlib.nullcontext()
    backend: Any = torch.mps if device.type == "mps" else torch.cuda
    return backend.stream(backend.Stream())  # type: ignore[no-any-return]


def projection(device: torch.device, form: str, width: int, keep: bool) -> Operation:
    """Packed projection and attention; `form` is "views", "contiguous" or "chunks".

    `keep` holds the projection until attention has been called.
    """
    generator = torch.Generator().manual_seed(SEED)
    weight = torch.randn(3 * width, width, generator=generator).to(device)
    bias = torch.randn(3 * width, generator=generator).to(device)

    def run(x: Tensor) -> Tensor:
        proj = F.linear(x, weight, bias)
        kept = proj if keep else None
        if form == "chunks":
            parts = [part.contiguous() for part in proj.chunk(3, dim=-1)]
        else:
            # One name throughout: the copy must let go of the projection at once, as torch's does.
            proj = torch.unflatten(proj, -1, (3, width))
            proj = proj.unsqueeze(0).transpose(0, -2).squeeze(-2)
            if form == "contiguous":
                proj = proj.contiguous()
            parts = [proj[0], proj[1], proj[2]]
        shape = (BATCH, LENGTH, HEADS, width // HEADS)
        if form == "views":
            q, k, v = (part.reshape(shape).transpose(1, 2) for part in parts)
        else:
            q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        result = F.scaled_dot_product_attention(q, k, v)
        del kept
        return result

    return run


def attention(device: torch.device, width: int) -> Operation:
    """nn.MultiheadAttention of the same sizes, in eval mode, as this PyTorch has it."""
    torch.manual_seed(SEED)
    module = nn.MultiheadAttention(width, HEADS, batch_first=True)
    nn.init.uniform_(module.in_proj_bias, -0.1, 0.1)  # zero by default, which would hide its loss
    module = module.eval().to(device)

    def run(x: Tensor) -> Tensor:
        return module(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]

    return run


@dataclass
class Outcome:
    """What the iterations of one variant gave."""

    name: str
    iterations: int
    passed_iterations: int = 0
    max_diff: float | None = 0.0
    errors: list[str] = field(default_factory=list)
    hung: bool = False

    @property
    def passed(self) -> bool:
        """Every thread was right in every iteration."""
        return self.passed_iterations == self.iterations


def race(
    name: str,
    run: Operation,
    device: torch.device,
    options: argparse.Namespace,
    simulated: Any = None,
) -> Outcome:
    """Run `run` in all threads at once, `iterations` times, and compare with serial results.

    simulated: the simulated device, where there is one; its seed says in which order threads go.
    """
    outcome = Outcome(name, options.iterations)
    for iteration in range(options.iterations):
        # Each iteration in a call of its own: its tensors are gone before the next begins. A tensor
        # that this thread freed while others run would not be a part of the seed.
        iterate(outcome, iteration, run, device, options, simulated)
        if outcome.hung:
            break
        arm_watchdog(options.stall_after)
    return outcome


def iterate(
    outcome: Outcome,
    iteration: int,
    run: Operation,
    device: torch.device,
    options: argparse.Namespace,
    simulated: Any,
) -> None:
    """Run `run` in all threads at once, once, and note in `outcome` what came of it."""
    inputs = [
        torch.randn(
            BATCH,
            LENGTH,
            options.width,
            generator=torch.Generator().manual_seed(iteration * 1000 + thread),
        ).to(device)
        for thread in range(options.threads)
    ]
    with torch.no_grad():
        expected = [run(x).cpu() for x in inputs]
    synchronise(device)

    done: queue.SimpleQueue[tuple[int, Tensor | str]] = queue.SimpleQueue()
    member = simulated.party(options.threads).member if simulated else None

    def compute(thread: int) -> Tensor | str:
        try:
            with torch.no_grad(), own_stream(device, options.own_streams):
                result = run(inputs[thread])
                synchronise(device)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return result

    def work(thread: int) -> None:
        with member(thread) if member else contextlib.nullcontext():
            done.put((thread, compute(thread)))

    # Daemons, so that one that hangs does not keep the process; all others are joined.
    crew = [
        threading.Thread(target=work, args=(thread,), daemon=True)
        for thread in range(options.threads)
    ]
    for crew_member in crew:
        crew_member.start()
    results: list[tuple[int, Tensor | str]] = []
    for missing in range(options.threads, 0, -1):
        try:
            results.append(done.get(timeout=options.stall_after))
        except queue.Empty:
            outcome.hung = True
            outcome.errors.append(
                f"iteration {iteration}: hung: {missing} threads did not finish within "
                f"{options.stall_after:g} s"
            )
            return
    for crew_member in crew:
        crew_member.join(options.stall_after)
        outcome.hung = outcome.hung or crew_member.is_alive()
    if outcome.hung:
        outcome.errors.append(f"iteration {iteration}: hung: a thread did not end")
        return
    right = 0
    for thread, result in sorted(results, key=lambda pair: pair[0]):
        fault = check(result, expected[thread], outcome)
        if fault is None:
            right += 1
        else:
            outcome.errors.append(f"iteration {iteration}, thread {thread}: {fault}")
    outcome.passed_iterations += right == options.threads


def check(result: Tensor | str, expected: Tensor, outcome: Outcome) -> str | None:
    """Say what is wrong with a result, if anything, and note its difference."""
    if isinstance(result, str):
        return result
    difference = (result.cpu() - expected).abs().max().item()
    if not difference < float("inf"):
        outcome.max_diff = None
        return "the result is not finite"
    if outcome.max_diff is not None:
        outcome.max_diff = max(outcome.max_diff, difference)
    return None if difference <= TOLERANCE else f"difference {difference:.3g}"


def arm_watchdog(seconds: float) -> None:
    """End the process if it does not come back here: a hang that holds the GIL stops Python."""
    faulthandler.dump_traceback_later(seconds * 2 + 30, exit=True)


def variants(
    options: argparse.Namespace, device: torch.device
) -> list[tuple[str, Callable[[], Operation]]]:
    """The variants that the options ask for, by name, and what makes each on the device."""
    if options.mha:
        name = "nn.MultiheadAttention" + (" with patch 035" if options.patch035 else "")
        return [(name, lambda: attention(device, options.width))]
    kept = ", projection kept" if options.keep_projection else ""

    def form(name: str, form: str) -> tuple[str, Callable[[], Operation]]:
        return name + kept, lambda: projection(device, form, options.width, options.keep_projection)

    if options.patch035:
        return [form("three copies (patch 035)", "chunks")]
    chosen = []
    if options.contiguous is not True:
        chosen.append(form("without .contiguous()", "views"))
    if options.contiguous is not False:
        chosen.append(form("with .contiguous()", "contiguous"))
    return chosen


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


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    head, _, tail = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=tail, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        help="cpu, mps or cuda[:N] (default: mps if there is one, else cpu), or "
        "sim-mps[:PROFILE], onelane's simulated device",
    )
    parser.add_argument(
        "--seed", type=seed, metavar="N", help="of a simulated device's schedule (default: 0)"
    )
    parser.add_argument(
        "--contiguous",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="only the variant with the strided copy, or only the one without (default: both)",
    )
    parser.add_argument("--mha", action="store_true", help="race nn.MultiheadAttention instead")
    parser.add_argument(
        "--patch035", "--patch-035", action="store_true", help="as patch 035 has it"
    )
    parser.add_argument(
        "--keep-projection",
        action="store_true",
        help="hold the packed projection until attention has been called",
    )
    parser.add_argument("--width", type=positive, default=256, metavar="N", help="(default: 256)")
    parser.add_argument(
        "--own-streams",
        action="store_true",
        help="a stream of its own for each thread (mps from torch 2.15 on, or cuda)",
    )
    parser.add_argument("--threads", type=positive, default=8, metavar="N")
    parser.add_argument("--iterations", type=positive, default=30, metavar="N")
    parser.add_argument(
        "--stall-after",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="give up as hung after so long without a result (default: 120)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no text")
    options = parser.parse_args(arguments)
    if options.contiguous is not None and (options.mha or options.patch035):
        parser.error("--contiguous and --no-contiguous do not go with --mha or --patch035")
    if options.keep_projection and options.mha:
        parser.error("--keep-projection does not go with --mha")
    if options.seed is not None and not (options.device or "").startswith(PREFIX):
        parser.error(f"--seed goes with --device {PREFIX}")
    if options.width % HEADS:
        parser.error(f"--width must be a multiple of {HEADS}, the number of heads")
    if not options.stall_after > 0:
        parser.error("--stall-after must be greater than 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen variants and return the exit code."""
    options = parse(arguments)
    text = sys.stderr if options.json else sys.stdout
    outcomes: list[Outcome] = []
    try:
        simulated = Simulated.parse(options.device or "", options.seed or 0)
        if simulated is None:
            device, kind, note = resolve_device(options.device)
        else:
            device, kind, note = torch.device("mps"), "simulated", simulated.note
            if options.own_streams:
                raise ValueError("--own-streams: use --device sim-mps:2.15-user-streams")
        if options.own_streams and not has_streams(device):
            raise ValueError(
                f"--own-streams: torch {torch.__version__} has no streams on {device} that a "
                "program can make (cuda has, and mps from 2.15 on)"
            )
        print(f"torch {torch.__version__}, device {device} ({kind})", file=text)
        if note is not None:
            print(note, file=text)
        streams = ", a stream for each thread" if options.own_streams else ""
        print(
            f"{options.threads} threads x {options.iterations} iterations, width {options.width}, "
            f"tolerance {TOLERANCE:g}{streams}",
            file=text,
        )
        arm_watchdog(options.stall_after)
        with patch_035(options.mha and options.patch035):
            if options.mha and options.patch035 and device.type != "mps":
                print("patch 035 changes nothing on this device: it is for mps", file=text)
            for name, make in variants(options, device):
                # A fresh device for each variant.
                with simulated.opened() if simulated else contextlib.nullcontext() as opened:
                    outcome = race(name, make(), device, options, opened)
                outcomes.append(outcome)
                show(outcome, text)
                if outcome.hung:
                    break
    except ValueError as error:
        print(f"minimal_mps_contiguous_race: {error}", file=sys.stderr)
        return 2
    finally:
        faulthandler.cancel_dump_traceback_later()
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if options.json:
        report = {
            "device": str(device),
            "device_kind": kind,
            "simulated": simulated and simulated._asdict(),
            "torch": str(torch.__version__),
            "threads": options.threads,
            "iterations": options.iterations,
            "width": options.width,
            "own_streams": options.own_streams,
            "tolerance": TOLERANCE,
            "reproduced": bool(failed),
            "variants": [asdict(outcome) | {"passed": outcome.passed} for outcome in outcomes],
        }
        print(json.dumps(report, indent=2, allow_nan=False))
    where = " (simulated)" if simulated else ""
    print(
        ("REPRODUCED: concurrent results are not the serial ones" + where)
        if failed
        else ("not reproduced: every concurrent result is the serial one" + where),
        file=text,
    )
    code = 1 if failed else 0
    if any(outcome.hung for outcome in outcomes):
        # Threads that never end would keep the interpreter's exit waiting in the driver.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def show(outcome: Outcome, text: Any) -> None:
    """Print one line for a variant, and the first of its errors."""
    difference = "not finite" if outcome.max_diff is None else f"{outcome.max_diff:.2e}"
    print(
        f"{'PASS' if outcome.passed else 'FAIL'}  {outcome.name:<36}"
        f"{outcome.passed_iterations:>3}/{outcome.iterations}  max difference {difference}",
        file=text,
        flush=True,
    )
    for error in outcome.errors[:5]:
        print(f"      {error}", file=text)
    if len(outcome.errors) > 5:
        print(f"      and {len(outcome.errors) - 5} more", file=text)


if __name__ == "__main__":
    sys.exit(main())
