"""Load: closed loop, open loop, and a poisoned request among good ones.

Every load asks by a function, so that tests need no server. Instants are seconds from the load's
begin, by `clock`. A request that is cancelled by its own client has the status 0.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from figures import Seen, innocents, recovery_time

# Takes a text; gives the status and the body. Raises OSError if there is no answer.
Ask = Callable[[str], Awaitable[tuple[int, bytes]]]
Clock = Callable[[], float]


async def request(
    ask: Ask, text: str, planned: float, give_up: float, clock: Clock, begin: float
) -> Seen:
    """Ask once, for at most `give_up` seconds from when it was planned."""
    sent = clock() - begin
    status, body = 0, b""
    with suppress(OSError, asyncio.TimeoutError):
        status, body = await asyncio.wait_for(ask(text), max(planned + give_up - sent, 0))
    return Seen(text, planned, clock() - begin, status, body, sent)


async def closed_loop(
    ask: Ask,
    work: Sequence[str],
    clients: int,
    seconds: float,
    give_up: float = 30.0,
    clock: Clock = time.perf_counter,
) -> list[Seen]:
    """So many clients, each with one request at a time, for so many seconds."""
    left, seen, begin = itertools.cycle(work), list[Seen](), clock()

    async def client() -> None:
        while (now := clock() - begin) < seconds:
            seen.append(await request(ask, next(left), now, give_up, clock, begin))
            if not seen[-1].good:
                # A server that refuses at once is not asked as fast as the client can.
                await asyncio.sleep(0.01)

    await asyncio.gather(*(client() for _ in range(clients)))
    return seen


async def open_loop(
    ask: Ask,
    work: Sequence[str],
    instants: Sequence[float],
    give_up: float,
    clock: Clock = time.perf_counter,
) -> list[Seen]:
    """Send at these instants, whatever becomes of those before."""
    texts, begin, calls = itertools.cycle(work), clock(), []
    for at in instants:
        # A late client does not sleep, but lets the others run. The delay counts: see `Seen`.
        await asyncio.sleep(max(at - (clock() - begin), 0))
        calls.append(asyncio.create_task(request(ask, next(texts), at, give_up, clock, begin)))
    return list(await asyncio.gather(*calls))


async def settled(
    ask: Ask, text: str, limit: float = 60.0, clock: Clock = time.perf_counter
) -> float | None:
    """Seconds until three requests in a row took less than a second each; None: not in time."""
    begin, row = clock(), 0
    while (now := clock() - begin) < limit:
        one = await request(ask, text, now, 10.0, clock, begin)
        row = row + 1 if one.good and one.latency < 1 else 0
        if row == 3:
            return clock() - begin
        if not one.good:
            await asyncio.sleep(0.1)
    return None


async def recovery(
    ask: Ask,
    poison: Callable[[], Awaitable[tuple[int, bytes]]] | None,
    work: Sequence[str],
    clients: int = 16,
    limit: float = 10.0,
    clock: Clock = time.perf_counter,
) -> dict[str, object]:
    """One poisoned request among clients with good ones; without one: what is usual."""
    texts, seen, begin = itertools.cycle(work), list[Seen](), clock()
    ready, over = asyncio.Event(), asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            now = clock() - begin
            seen.append(await request(ask, next(texts), now, limit, clock, begin))
            if not seen[-1].good:
                await asyncio.sleep(0.01)
            elif sum(one.good for one in seen[-2 * clients :]) == 2 * clients:
                ready.set()

    async def poisoned_call() -> tuple[str, float]:
        assert poison is not None
        start = clock()
        try:
            status, _ = await asyncio.wait_for(poison(), limit)
        except asyncio.TimeoutError:
            return "no answer", clock() - start
        except OSError:
            return "connection lost", clock() - start
        return str(status), clock() - start

    running = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        await asyncio.wait_for(ready.wait(), limit * 3)
        at = clock() - begin
        call = asyncio.create_task(poisoned_call()) if poison else None
        while clock() - begin < at + limit and recovery_time(seen, at) is None:
            await asyncio.sleep(0.02)
        answer, took = await call if call else ("", 0.0)
    except asyncio.TimeoutError:
        raise TimeoutError("good requests were not answered before the poisoned one") from None
    finally:
        # Those under way end by themselves: one that the poison has hung fails at its limit.
        over.set()
        await asyncio.gather(*running)
    return {
        "recovery_s": recovery_time(seen, at),
        "innocents_failed": innocents(seen, at),
        "answer": answer,
        "answered_after_s": took,
    }
