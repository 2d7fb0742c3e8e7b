"""sentence-transformers behind LitServe: one worker process, batches of 32, 10 ms.

MODEL=DIR python litserve_server.py --port N
"""

# The annotation of `decode_request` is read as a type, not as its name: no lazy annotations here.
import argparse
import os

import litserve
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Texts(BaseModel):
    model: str
    input: list[str]


class Embedder(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = SentenceTransformer(os.environ["MODEL"], device="cpu")

    def decode_request(self, request: Texts) -> list[str]:
        return request.input

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        return inputs

    def predict(self, inputs: list[list[str]]) -> list[list[list[float]]]:
        vectors = iter(self.model.encode([text for texts in inputs for text in texts]))
        return [[next(vectors).tolist() for _ in texts] for texts in inputs]

    def unbatch(self, output: list[list[list[float]]]) -> list[list[list[float]]]:
        return output

    def encode_response(self, output: list[list[float]]) -> dict[str, object]:
        rows = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(output)
        ]
        return {"object": "list", "model": "model", "data": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    api = Embedder(max_batch_size=32, batch_timeout=0.01, api_path="/v1/embeddings")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")
