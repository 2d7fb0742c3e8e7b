"""ONNX Runtime behind FastAPI; a session runs calls of many threads at once.

python onnx_server.py --model DIR --onnx FILE --port N
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from tokenizers import Tokenizer


class Request(BaseModel):
    model: str
    input: list[str]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    session = onnxruntime.InferenceSession(args.onnx, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(args.model, "tokenizer.json")))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    app = FastAPI()

    @app.post("/v1/embeddings")
    def embed(request: Request) -> dict[str, object]:
        encoded = tokenizer.encode_batch(request.input)
        inputs = {
            "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
        }
        vectors = session.run(None, inputs)[0]
        rows = [
            {"object": "embedding", "index": index, "embedding": vector.tolist()}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "model": "model", "data": rows}

    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
