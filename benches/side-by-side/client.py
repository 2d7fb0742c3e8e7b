"""The client's process: all loads against one server, in one run, as JSON on stdout.

    CLIENT_ENV/bin/python client.py PLAN.json

The plan says where the server is and how much is asked; `run.py` writes it. Answers are kept as
bytes and read after each load, so that reading them delays no request.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import arrivals
import figures
import load
import numpy as np
import uvloop
from memory import resident_mb
from poisons import POISONS


class Server:
    """One server over HTTP; connections are kept."""

    def __init__(self, port: int, timeout_s: float) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/embeddings"
        # openai's client says its timeout in this header; a server may heed it.
        self.headers = {
            "content-type": "application/json",
            "x-stainless-read-timeout": str(timeout_s),
        }

    async def __aenter__(self) -> Server:
        # Loads bound their requests themselves; who waits for a connection would not be open loop.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def post(self, body: bytes) -> tuple[int, bytes]:
        try:
            async with self.session.post(self.url, data=body, headers=self.headers) as answer:
                return answer.status, await answer.read()
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error

    async def ask(self, text: str) -> tuple[int, bytes]:
        return await self.post(json.dumps({"model": "model", "input": [text]}).encode())


class Plan:
    """How much is asked of the server, and the loads by their names."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.port, self.pid, self.seed = plan["port"], plan["pid"], plan["seed"]
        self.seconds: float = plan["seconds"]
        self.rate: float | None = plan["rate"]
        reference = np.load(plan["reference"])
        self.work: list[str] = [str(text) for text in reference["texts"]]
        self.reference = dict(zip(self.work, reference["embeddings"], strict=True))
        self.seen: list[figures.Seen] = []
        self.texts_s: float | None = None

    async def memory(self) -> dict[str, Any]:
        """Resident memory before and after texts of random lengths, eight calls at a time."""
        count, limit = self.plan["memory_texts"], self.plan["memory_seconds"]
        work = arrivals.mostly_short(count, self.seed + 1)
        calls = iter([work[at : at + 16] for at in range(0, count, 16)])
        done, failed, begin = 0, 0, time.perf_counter()
        async with Server(self.port, 60) as server:
            before = resident_mb(self.pid)

            async def client() -> None:
                nonlocal done, failed
                for call in calls:
                    if time.perf_counter() - begin > limit:
                        return
                    body = json.dumps({"model": "model", "input": call}).encode()
                    status = 0
                    try:
                        status, _ = await asyncio.wait_for(server.post(body), 60)
                    except (OSError, asyncio.TimeoutError):
                        await asyncio.sleep(0.1)
                    if status == 200:
                        done += len(call)
                    else:
                        failed += len(call)

            await asyncio.gather(*(client() for _ in range(8)))
        after = resident_mb(self.pid)
        return {
            "before_mb": before,
            "after_mb": after,
            "grown_mb": after - before,
            "texts": done,
            "texts_failed": failed,
            "took_s": time.perf_counter() - begin,
        }

    async def closed(self) -> dict[str, Any]:
        """One text a call, clients that wait for their answer."""
        async with Server(self.port, 30) as server:
            seen = await load.closed_loop(server.ask, self.work, self.plan["clients"], self.seconds)
        self.seen += seen
        self.texts_s = figures.throughput(seen, self.seconds)
        return {"texts_s": self.texts_s, "statuses": figures.statuses(seen)}

    async def open(self) -> dict[str, Any]:
        """The same arrivals for every server."""
        found = {}
        for share in self.plan["shares"]:
            rate = share * (self.rate or self.texts_s or 0)
            instants = arrivals.poisson(rate, self.seconds, self.seed + 2)
            async with Server(self.port, 30) as server:
                seen = await load.open_loop(server.ask, self.work, instants, give_up=10.0)
                await load.settled(server.ask, self.work[0])
            self.seen += seen
            found[f"{share:.0%}"] = {
                "rate": rate,
                **figures.latencies(seen),
                "client_late_ms": max(one.sent - one.planned for one in seen) * 1e3,
            }
        return found

    async def overload(self) -> dict[str, Any]:
        """More than the server can answer, from clients that give up after a second."""
        if not self.texts_s:
            raise ValueError("the server answered nothing in the closed loop")
        rate = self.plan["overload"] * self.texts_s
        instants = arrivals.poisson(rate, self.seconds, self.seed + 3)
        within = self.plan["within_s"]
        async with Server(self.port, within) as server:
            seen = await load.open_loop(server.ask, self.work, instants, give_up=within)
            settled = await load.settled(server.ask, self.work[0])
        found = figures.goodput(seen, self.seconds, within)
        return {
            "rate": rate,
            "goodput": found,
            "of_throughput": found / self.texts_s,
            "statuses": figures.statuses(seen),
            "idle_again_s": settled,
            "client_late_ms": max(one.sent - one.planned for one in seen) * 1e3,
        }

    async def poison(self) -> dict[str, Any]:
        """Each poisoned request once, until one is not recovered from."""
        found: dict[str, Any] = {}
        limit = self.plan["recovery_limit_s"]
        for name, body in {"none": None, **POISONS}.items():
            async with Server(self.port, limit) as server:

                async def post(server: Server = server, body: str | None = body):
                    return await server.post((body or "").encode())

                found[name] = await load.recovery(
                    server.ask, post if body else None, self.work, limit=limit
                )
            if found[name]["recovery_s"] is None:
                break
        return found

    async def all(self) -> dict[str, Any]:
        parts: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "memory": self.memory,
            "closed": self.closed,
            "open": self.open,
            "overload": self.overload,
            "poison": self.poison,
        }
        found: dict[str, Any] = {}
        async with Server(self.port, 30) as server:
            await load.closed_loop(server.ask, self.work[:64], 8, self.plan["warm_seconds"])
        for name, part in parts.items():
            begin = time.perf_counter()
            try:
                found[name] = await part()
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                # The figure is missing on the page, with this reason; the others still count.
                found[name] = {"error": f"{type(error).__name__}: {error}"}
            found[name]["wall_s"] = time.perf_counter() - begin
            print(f"  {name}: {found[name]}", file=sys.stderr, flush=True)
        found["wrong"] = figures.wrong_answers(self.seen, self.reference)
        return found


def main() -> int:
    """Run the plan that the first argument names."""
    # An open loop has a connection for each request that waits.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with open(sys.argv[1], encoding="utf-8") as file:
        plan = Plan(json.load(file))
    json.dump(uvloop.run(plan.all()), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
