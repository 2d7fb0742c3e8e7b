"""sentence-transformers behind mosec: one worker process, batches of 32, 10 ms.

MODEL=DIR python mosec_server.py --address 127.0.0.1 --port N
"""

from __future__ import annotations

import os

from mosec import Server, ValidationError, Worker
from sentence_transformers import SentenceTransformer


class Embedder(Worker):
    def __init__(self) -> None:
        self.model = SentenceTransformer(os.environ["MODEL"], device="cpu")

    def deserialize(self, data: bytes) -> list[str]:
        body = super().deserialize(data)
        texts = body.get("input") if isinstance(body, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValidationError("input: give a list of texts")
        return texts

    def forward(self, data: list[list[str]]) -> list[dict[str, object]]:
        vectors = iter(self.model.encode([text for texts in data for text in texts]))
        return [
            {
                "object": "list",
                "model": "model",
                "data": [
                    {"object": "embedding", "index": index, "embedding": next(vectors).tolist()}
                    for index in range(len(texts))
                ],
            }
            for texts in data
        ]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Embedder, num=1, max_batch_size=32, max_wait_time=10, route="/v1/embeddings"
    )
    server.run()
