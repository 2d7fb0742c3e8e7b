"""sentence-transformers behind FastAPI: what people write today, and the same with onelane.

    python fastapi_server.py --model DIR --port N --way lock|threads|guard

`lock`: handlers run in the framework's pool of threads, with a lock around the model. `threads`:
the same without the lock. `guard`: `onelane.guard` around the model, and handlers are coroutines.
"""

from __future__ import annotations

import argparse
import threading

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Request(BaseModel):
    model: str
    input: list[str]


def answer(vectors: object) -> dict[str, object]:
    rows = [
        {"object": "embedding", "index": index, "embedding": vector.tolist()}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "model": "model", "data": rows}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--way", choices=("lock", "threads", "guard"), required=True)
    args = parser.parse_args()
    app, lock = FastAPI(), threading.Lock()

    if args.way == "guard":
        import onelane

        guarded = onelane.guard(
            lambda: SentenceTransformer(args.model, device="cpu"), "cpu", batch={"encode": 32}
        )

        @app.post("/v1/embeddings")
        async def embed_guarded(request: Request) -> dict[str, object]:
            if len(request.input) == 1:
                return answer([await guarded.encode.acall(request.input[0])])
            return answer(await guarded.encode.acall(request.input))

    else:
        model = SentenceTransformer(args.model, device="cpu")

        @app.post("/v1/embeddings")
        def embed(request: Request) -> dict[str, object]:
            if args.way == "threads":
                return answer(model.encode(request.input))
            with lock:
                return answer(model.encode(request.input))

    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
