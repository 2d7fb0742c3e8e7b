"""A real server of KServe's for the tests: `kserve_app.py HTTP_PORT GRPC_PORT MODEL...`."""

import sys

import kserve
import kserve.model_server
import kserve_models as models

import onelane
import onelane.kserve
from onelane.kserve import QueueModel

ITEMS = onelane.Items()
MODELS = {
    "texts": lambda: QueueModel(
        "texts", "kserve_models:texts", requests=ITEMS, isolation="process", factory=False
    ),
    "gated": lambda: QueueModel(
        "gated",
        models.gated,
        requests=ITEMS,
        device=onelane.DeviceExecutor("cpu"),
        capacity=8,
        max_batch_size=4,
    ),
    "picky": lambda: QueueModel("picky", models.picky, requests=ITEMS, device="cpu"),
    "loading": lambda: QueueModel(
        "loading", models.loading, requests=ITEMS, device="cpu", factory=True
    ),
    "broken": lambda: QueueModel("broken", models.broken, requests=ITEMS, factory=True),
    "tensors": lambda: QueueModel("tensors", models.tensors, device="cpu"),
    "named": lambda: QueueModel("named", models.named, device="cpu", factory=False),
}


def main():
    http, grpc, *names = sys.argv[1:]
    chosen = [MODELS[name]() for name in names]

    @kserve.model_server.app.get("/waiting")
    async def waiting() -> dict:
        # How the tests see that their calls have arrived; there is nothing to see before loading.
        found = {}
        for model in chosen:
            if model._queue is not None:
                stats = model.queue.stats()
                found[model.name] = stats.waiting + stats.running
        return found

    server = kserve.ModelServer(http_port=int(http), grpc_port=int(grpc), workers=1)
    server.start(chosen)


if __name__ == "__main__":
    main()
