"""onelane on Ray Serve: one queue in each replica.

Ray routes and scales; the queue of a replica batches, bounds, refuses and isolates. Never put
`serve.batch` before it: two batchers wait for each other's company. This module needs Ray Serve,
`pip install "ray[serve]"`, and is not imported by onelane itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

try:
    from ray import serve  # type: ignore[import-not-found]
    from ray.exceptions import (  # type: ignore[import-not-found]
        ActorDiedError,
        ActorUnavailableError,
    )
    from ray.serve.config import RequestRouterConfig  # type: ignore[import-not-found]
except ImportError as error:
    raise ImportError(
        "onelane.ray needs Ray Serve, which is not installed: pip install 'ray[serve]'"
    ) from error

from onelane._batch_queue import BatchQueue, Priority

# So many batches may be in a replica at once: one runs, the others wait for it. And two calls, so
# that the next is there when one ends.
_BATCHES = 3
_CALLS = 2
# Where all replicas have their calls, Ray's router looks again after so long, in seconds. Its own
# times, 0.025 to 0.5, leave replicas idle whose batches take milliseconds.
_FIRST_LOOK_S = 0.005
_LAST_LOOK_S = 0.02
# What a replica does beside its drain when it is shut down.
_MARGIN_S = 5.0
# Of a replica that is gone, or going.
_GONE = (ActorDiedError, ActorUnavailableError)


class Replica:
    """What each replica of a deployment is: a queue, and its state as Ray wants to know it.

    Made by `application`, or subclass it and give it to `serve.deployment` yourself.
    """

    def __init__(self, model: Any, settings: Mapping[str, Any], drain_s: float) -> None:
        self.queue = BatchQueue(model, **settings)
        self._drain_s = drain_s

    async def __call__(
        self, request: Any, *, priority: Priority = "normal", timeout: float | None = None
    ) -> Any:
        """Return the model's response to one request; what it raises arrives as it is."""
        return await self.queue.infer(request, priority=priority, timeout=timeout)

    async def many(
        self,
        requests: Sequence[Any],
        *,
        priority: Priority = "normal",
        timeout: float | None = None,
    ) -> list[Any]:
        """Return the responses to a list of requests, in order.

        A call of Ray costs more than most requests, so send lists. What fails fails alone: its
        exception stands in its place and is not raised.
        """
        calls = [self._one(request, priority, timeout) for request in requests]
        return await asyncio.gather(*calls, return_exceptions=True)

    async def _one(self, request: Any, priority: Priority, timeout: float | None) -> Any:
        # A request that is refused where it is made is one of the list's failures, too.
        return await self.queue.infer(request, priority=priority, timeout=timeout)

    def check_health(self) -> None:
        """Raise unless the queue works, or builds its model again by itself; Ray calls this.

        After three times in a row Ray replaces the replica.
        """
        health = self.queue.health()
        if not health.ok and health.state != "rebuilding":
            raise RuntimeError(f"the queue of this replica is {health.state}: {health.detail}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what waits, for a custom autoscaling policy of Ray's."""
        stats = self.queue.stats()
        return {
            "waiting": float(stats.waiting + stats.waiting_for_room),
            "waiting_cost": float(stats.waiting_cost),
            "running": float(stats.running),
        }

    def __del__(self) -> None:
        """Run what was accepted, then drop the model; Ray calls this when a replica shuts down.

        Ray has waited for the calls before; what blocks its loop here is the end of the model.
        """
        queue = getattr(self, "queue", None)
        if queue is not None:
            queue.shutdown(timeout=self._drain_s)


def application(
    model: Any,
    *,
    per_call: int = 1,
    drain_s: float = 30.0,
    name: str = "onelane",
    num_gpus: float = 0.0,
    mps: bool = False,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> serve.Application:
    """Return an application for `serve.run`, with one `BatchQueue(model, **settings)` a replica.

    ::

        app = onelane.ray.application(
            "app.models:load", isolation="process", per_call=32, num_gpus=0.5,
            options={"num_replicas": 2},
        )
        handle = serve.run(app)
        responses = await onelane.ray.infer_many(handle, requests, per_call=32)

    model, settings: as for `BatchQueue`. They are pickled: give a function of a module, or its
    import path with `isolation=`.
    per_call: how many requests a call brings (`Replica.many`). From it and the settings comes
    `max_ongoing_requests`, which counts calls: three batches, at least two calls, and never more
    than the queue holds, so that what waits, waits in Ray, where another replica may still take it.
    drain_s: seconds that a replica which is shut down has for what it has accepted.
    num_gpus: of a replica; a fraction lets several share one. mps: a replica needs `{"mps": 1}`,
    the resource that a Mac is started with: `ray start --resources='{"mps": 1}'`.
    options: of `serve.deployment`, and go before what is derived here.
    """
    if per_call < 1:
        raise ValueError(f"per_call={per_call}: use at least 1")
    size, capacity = settings.get("max_batch_size", 32), settings.get("capacity", 1024)
    if per_call > capacity:
        raise ValueError(
            f"per_call={per_call} is more than the queue of a replica holds: capacity={capacity}"
        )
    calls = min(max(_CALLS, math.ceil(_BATCHES * size / per_call)), capacity // per_call)
    actor: dict[str, Any] = {"num_gpus": num_gpus} if num_gpus else {}
    if mps:
        actor["resources"] = {"mps": 1}
    derived: dict[str, Any] = {
        "name": name,
        "max_ongoing_requests": calls,
        "graceful_shutdown_timeout_s": drain_s + _MARGIN_S,
        "health_check_period_s": 2.0,
        "request_router_config": RequestRouterConfig(
            initial_backoff_s=_FIRST_LOOK_S, max_backoff_s=_LAST_LOOK_S
        ),
        "ray_actor_options": actor,
        **(options or {}),
    }
    deployment = serve.deployment(**derived)(Replica)
    return deployment.bind(model, settings, drain_s)


async def infer_many(
    handle: Any,
    requests: Sequence[Any],
    *,
    per_call: int = 32,
    retries: int = 3,
    priority: Priority = "normal",
    timeout: float | None = None,
) -> list[Any]:
    """Return the responses to a list of requests, sent `per_call` at a time, in order.

    A request that fails has its exception in its place. A call whose replica dies is sent again, to
    another, up to `retries` times; say 0 for a model that must not be asked twice. After that the
    exception of Ray's is raised.
    """
    if per_call < 1:
        raise ValueError(f"per_call={per_call}: use at least 1")
    parts = [requests[at : at + per_call] for at in range(0, len(requests), per_call)]
    calls = [_resent(handle, part, retries, priority, timeout) for part in parts]
    return [response for part in await asyncio.gather(*calls) for response in part]


async def _resent(
    handle: Any, part: Sequence[Any], retries: int, priority: Priority, timeout: float | None
) -> Any:
    while True:
        try:
            return await handle.many.remote(part, priority=priority, timeout=timeout)
        except _GONE:
            if not retries:
                raise
            retries -= 1


__all__ = ["Replica", "application", "infer_many"]
