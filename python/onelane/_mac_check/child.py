"""One check, in a process of its own: `python -m onelane._mac_check.child NAME [PROFILE] [SEED]`.

Runs on mps, or with a profile on the simulated device, and prints what it observed as the last line
of stdout. A crash ends the process: the parent sees that.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from onelane import _memory
from onelane._mac_check.device import Device, NotRun
from onelane._mac_check.isolated import isolation, shapes_recycled
from onelane._mac_check.threads import (
    arange2,
    arange_worker,
    async_load,
    first_use,
    fork_only,
    sync2,
    ten_direct,
    ten_queue,
    user_streams,
    wrong_matmul,
)
from onelane._mac_check.upkeep import candle_pool, graphs_vs_pool, missing_pools, shapes
from onelane._mac_check.whole import install_e2e, mlx, release, throughput

RUNS: dict[str, Callable[[Device], dict[str, Any]]] = {
    "arange2": arange2, "sync2": sync2, "first-use": first_use, "arange-worker": arange_worker,
    "ten-direct": ten_direct, "ten-queue": ten_queue, "user-streams": user_streams,
    "fork-only": fork_only, "wrong-matmul": wrong_matmul, "async-load": async_load,
    "shapes": shapes, "graphs-vs-pool": graphs_vs_pool, "missing-pools": missing_pools,
    "isolation": isolation, "throughput": throughput, "install-E2E": install_e2e,
    "release": release, "mlx": mlx, "shapes-recycled": shapes_recycled, "candle-pool": candle_pool,
}  # fmt: skip


def main(name: str, profile: str | None, seed: int) -> None:
    """Run a check and print what was observed."""
    faulthandler.enable()
    end, text, figures = "clean", "", {}
    try:
        if profile is None:
            figures = RUNS[name](Device(None))
        else:
            import onelane.sim

            with onelane.sim.device(profile, seed) as simulated:
                figures = RUNS[name](Device(simulated))
    except NotRun as reason:
        end, text = "not run", str(reason)
    except Exception as error:
        kind = type(error).__name__
        # The simulated device raises what would end a process.
        end = {"DeviceAborted": "abort", "DeviceHung": "hang"}.get(kind, "error")
        text = f"{kind}: {error}"
    print(json.dumps({"end": end, "text": text, "figures": figures,
                      "footprint": _memory.footprint()}), flush=True)  # fmt: skip
    # Nothing of the device may hold the end up.
    os._exit(0)


if __name__ == "__main__":
    main(
        sys.argv[1],
        sys.argv[2] if len(sys.argv) > 2 and sys.argv[2] != "-" else None,
        int(sys.argv[3]) if len(sys.argv) > 3 else 0,
    )
