"""The hazard table of the PyTorch front: unmodified PyTorch modules on the simulated device, by
several ways to it. Everything here is simulated.

    python -m onelane.sim.hazards --seeds 20

Rows are what the threads compute, columns how they get to the device; a cell says how many
iterations passed, with the lowest and the highest seed. In each iteration the main thread computes
the expected results one after another, then threads compute at once and synchronise.

With 2 or 3 workers the workers are real threads behind a real queue: what a seed gives is not the
same in each run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import onelane
from onelane import patch035
from onelane.sim._device import Device
from onelane.sim.errors import SimError

TOLERANCE = 1e-3
BATCH, LENGTH, WIDTH, HEADS = 4, 128, 256, 4
_JOIN_S = 120.0


class Race(nn.Module):
    """The minimal race: a packed projection, its view with or without a dense copy, attention."""

    def __init__(self, contiguous: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(42)
        self.weight = nn.Parameter(torch.randn(3 * WIDTH, WIDTH, generator=generator))
        self.bias = nn.Parameter(torch.randn(3 * WIDTH, generator=generator))
        self.contiguous = contiguous

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, length, width) -> (batch, length, heads, width of a head)."""
        proj = F.linear(x, self.weight, self.bias)
        # One name throughout: the copy must let go of the projection at once, as torch's does.
        proj = torch.unflatten(proj, -1, (3, WIDTH)).unsqueeze(0).transpose(0, -2).squeeze(-2)
        if self.contiguous:
            proj = proj.contiguous()
        shape = (x.shape[0], LENGTH, HEADS, WIDTH // HEADS)
        q, k, v = (proj[at].reshape(shape).transpose(1, 2) for at in range(3))
        return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """`nn.MultiheadAttention` on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        nn.init.uniform_(self.attention.in_proj_bias, -0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, length, width) -> the same shape."""
        attended: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return attended


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 128))


_TOKENS = (BATCH, LENGTH, WIDTH)
# Each row: modules with the shapes of their inputs; whether iterations have inputs of their own.
ROWS: dict[str, tuple[list[tuple[Callable[[], nn.Module], tuple[int, ...]]], bool]] = {
    "single ops": (
        [
            (lambda: nn.Linear(512, 256), (16, 512)),
            (lambda: nn.LayerNorm(768), (4, 128, 768)),
            (lambda: nn.Softmax(dim=-1), (4, 32, 4000)),
            (lambda: nn.Conv2d(3, 64, 3, padding=1), (4, 3, 28, 28)),
            (nn.GELU, (4, 128, 768)),
        ],
        False,
    ),
    "MLP": ([(_mlp, (4, 256))], False),
    "race, without contiguous": ([(lambda: Race(False), _TOKENS)], True),
    "race, with contiguous": ([(lambda: Race(True), _TOKENS)], True),
    "MultiheadAttention": ([(Attention, _TOKENS)], False),
    "TransformerBlock": (
        [(lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 1024, batch_first=True), _TOKENS)],
        False,
    ),
}
# Each column: how threads get to the device ("" directly, "lock", or a number of workers), whether
# patch 035 is in PyTorch, and what is changed on the device.
COLUMNS: dict[str, tuple[str | int, bool, dict[str, Any]]] = {
    "threads": ("", False, {}),
    "patch 035": ("", True, {}),
    "queue, 1 worker": (1, False, {}),
    "queue, 2 workers": (2, False, {}),
    "queue, 3 workers": (3, False, {}),
    "one lock": ("lock", False, {}),
    "per_stream": ("", False, {"reuse": "per_stream"}),
    "retain": ("", False, {"reuse": "retain"}),
    "one stream": ("", False, {"streams": "shared"}),
}


@dataclasses.dataclass
class Cell:
    """What a cell of the table gave with one seed."""

    right: set[int]
    iterations: int
    worst: float = 0.0
    stale_reads: int = 0
    ended_by: str | None = None

    @property
    def passed(self) -> int:
        """Iterations in which every thread's result was right."""
        return len(self.right)

    @property
    def passes(self) -> bool:
        """Whether all iterations passed."""
        return self.passed == self.iterations and self.ended_by is None

    def count(self, iteration: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take in an iteration's results and what they should be."""
        worst = max(float((result - expected).abs().max()) for result, expected in pairs)
        self.worst = max(self.worst, worst)
        # Not a number is not right.
        if not worst <= TOLERANCE:
            self.right.discard(iteration)


class Trial:
    """One row by one column with one seed."""

    def __init__(
        self,
        row: str,
        column: str,
        *,
        seed: int = 0,
        threads: int = 8,
        iterations: int = 30,
        profile: str = "fork-2.9.1",
        schedule: str = "random",
    ) -> None:
        self.modules, self.own_inputs = ROWS[row]
        self.front, self.patched, changes = COLUMNS[column]
        self.threads, self.iterations = threads, iterations
        self._device: Callable[[], Device] = functools.partial(
            Device, profile, seed, schedule, **changes
        )

    def run(self) -> Cell:
        """Run the cell; of a row with several modules, an iteration passes when it does for all."""
        cell = Cell(set(range(self.iterations)), self.iterations)
        for build, shape in self.modules:
            self._build, self._shape = build, shape
            patch: Any = patch035.enabled() if self.patched else contextlib.nullcontext()
            expected = self._expected() if isinstance(self.front, int) else None
            with patch, self._device() as device, torch.no_grad():
                try:
                    if expected is None:
                        self._directly(device, cell)
                    else:
                        self._queued(int(self.front), expected, cell)
                except SimError as error:
                    cell.ended_by = str(error)
                cell.stale_reads += device.stats()["stale_reads"]
        return cell

    def _module(self) -> nn.Module:
        with _building:
            torch.manual_seed(42)
            return self._build().eval()

    def _inputs(self, iteration: int) -> list[Tensor]:
        seeds = [
            (iteration * 1000 if self.own_inputs else 0) + thread for thread in range(self.threads)
        ]
        return [
            torch.randn(self._shape, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]

    def _expected(self) -> list[list[Tensor]]:
        """The results of one thread, alone on a device of its own."""
        with Device("upstream-2.15"), torch.no_grad():
            module = self._module().to("mps")
            rounds = range(self.iterations) if self.own_inputs else range(1)
            return [[module(x.to("mps")).cpu() for x in self._inputs(at)] for at in rounds]

    def _directly(self, device: Device, cell: Cell) -> None:
        """Threads that call the device themselves, under one lock or not."""
        module = self._module().to("mps")
        lock = device.lock("one lock") if self.front == "lock" else None
        for iteration in range(self.iterations):
            inputs = [x.to("mps") for x in self._inputs(iteration)]
            device.synchronise()
            # Computed by the main thread of this process, this also leaves the allocator's pools as
            # the real test finds them. `.clone()` keeps each apart.
            expected = [module(x).clone() for x in inputs]
            device.synchronise()

            def compute(x: Tensor) -> Tensor:
                with torch.no_grad():
                    result: Tensor = module(x)
                    device.synchronise()
                    return result

            def member(x: Tensor) -> Tensor:
                result: Tensor = lock.run(lambda: compute(x)) if lock else compute(x)
                return result

            results = device.run(*[functools.partial(member, x) for x in inputs])
            pairs = [(a.cpu(), b.cpu()) for a, b in zip(results, expected, strict=True)]
            cell.count(iteration, pairs)
            del inputs, expected, results

    def _queued(self, workers: int, expected: list[list[Tensor]], cell: Cell) -> None:
        """Threads that hand requests to a batch queue, one request to a batch."""
        rows = self._shape[0]
        with (
            onelane.DeviceExecutor("mps", workers) as executor,
            onelane.BatchQueue(self._module, executor, max_batch_size=rows, factory=True) as queue,
        ):
            for iteration in range(self.iterations):
                inputs = self._inputs(iteration)
                results: dict[int, Tensor | BaseException] = {}

                def client(
                    at: int,
                    x: Tensor,
                    results: dict[int, Tensor | BaseException] = results,
                ) -> None:
                    try:
                        with torch.no_grad():
                            results[at] = queue(x)
                    except BaseException as error:
                        results[at] = error

                clients = [
                    threading.Thread(target=client, args=pair, daemon=True)
                    for pair in enumerate(inputs)
                ]
                for thread in clients:
                    thread.start()
                for thread in clients:
                    thread.join(_JOIN_S)
                wanted = expected[iteration % len(expected)]
                pairs = []
                for at, want in enumerate(wanted):
                    result = results.get(at, SimError("hung: a client had no answer (simulated)"))
                    if isinstance(result, BaseException):
                        raise result
                    pairs.append((result, want))
                cell.count(iteration, pairs)


# Modules draw from the generator that all threads share, and workers build at once.
_building = threading.Lock()


def expectation(row: str, column: str) -> bool | None:
    """Whether all iterations must pass (True), some must fail (False), or nothing is said (None).

    For the profile `fork-2.9.1`, over all seeds.
    """
    racy = row in ("race, with contiguous", "MultiheadAttention", "TransformerBlock")
    if column == "patch 035" and row == "MultiheadAttention":
        return True
    if column in ("threads", "patch 035"):
        return not racy
    if column in ("queue, 2 workers", "queue, 3 workers"):
        return False if racy else None
    return True


def table(
    rows: Sequence[str], columns: Sequence[str], seeds: Sequence[int], **conditions: Any
) -> Iterator[tuple[str, str, list[Cell]]]:
    """Run cells with all seeds, one after another."""
    for row in rows:
        for column in columns:
            yield row, column, [Trial(row, column, seed=at, **conditions).run() for at in seeds]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a cell is not as expected."""
    head, _, tail = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m onelane.sim.hazards", description=head, epilog=tail,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="(default: 20)")
    parser.add_argument("--iterations", type=int, default=30, metavar="N", help="(default: 30)")
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="(default: 8)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument(
        "--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="COLUMN"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each cell")
    options = parser.parse_args(arguments)
    print(
        f"simulated: profile fork-2.9.1, torch {torch.__version__}, {options.threads} threads x "
        f"{options.iterations} iterations, seeds 0 to {options.seeds - 1}",
        file=sys.stderr,
    )
    unmet = 0
    conditions = {"threads": options.threads, "iterations": options.iterations}
    for row, column, cells in table(
        options.rows, options.columns, range(options.seeds), **conditions
    ):
        expected = expectation(row, column)
        met = expected is None or all(cell.passes for cell in cells) == expected
        unmet += not met
        passed = [cell.passed for cell in cells]
        if options.json:
            found = {
                "simulated": True, "row": row, "column": column, "passed": passed, "met": met,
                "iterations": options.iterations, "worst": max(cell.worst for cell in cells),
                "stale_reads": sum(cell.stale_reads for cell in cells),
                "ended_by": [cell.ended_by for cell in cells if cell.ended_by],
            }  # fmt: skip
            print(json.dumps(found), flush=True)
        else:
            spread = f"{min(passed)} to {max(passed)}" if min(passed) < max(passed) else passed[0]
            print(
                f"{row:<25} {column:<17} {spread!s:>8} of {options.iterations}"
                f"{'' if met else '  NOT AS EXPECTED'}",
                flush=True,
            )
    return 1 if unmet else 0


if __name__ == "__main__":
    sys.exit(main())
