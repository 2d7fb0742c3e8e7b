"""Client libraries as their users call them, against a real server."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

TEXTS = ["a first text", "another", "the third of them is longer than the others"]
WIDTH = 32


@pytest.fixture(scope="session")
def expected(address: str) -> list[list[float]]:
    import json

    body = json.dumps({"inputs": TEXTS}).encode()
    request = urllib.request.Request(
        f"http://{address}/embed", body, {"content-type": "application/json"}
    )
    vectors: list[list[float]] = json.load(urllib.request.urlopen(request))
    return vectors


def close(a: object, b: object) -> bool:
    import numpy as np

    return bool(np.allclose(np.asarray(a), np.asarray(b), atol=1e-6))


def test_openai(address: str, expected: list[list[float]]) -> None:
    import openai

    client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="toy", input=TEXTS)
    assert close([item.embedding for item in answer.data], expected)
    assert answer.usage.total_tokens == sum(len(text.split()) for text in TEXTS)
    raw = client.embeddings.create(model="toy", input=TEXTS[0], encoding_format="base64")
    packed = base64.b64decode(raw.data[0].embedding)  # type: ignore[arg-type]
    assert close(struct.unpack(f"<{WIDTH}f", packed), expected[0])
    cut = client.embeddings.create(model="toy", input=TEXTS[0], dimensions=8).data[0].embedding
    assert len(cut) == 8
    assert abs(sum(x * x for x in cut) - 1) < 1e-5
    assert [model.id for model in client.models.list()] == ["toy", "toy-rerank", "toy-classify"]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="none", input="a")
    with pytest.raises(openai.BadRequestError, match=r"input\[1\]"):
        client.embeddings.create(model="toy", input=["a", ""])


def test_cohere(address: str) -> None:
    import cohere

    for version in (cohere.Client, cohere.ClientV2):
        client = version(api_key="none", base_url=f"http://{address}")
        ranks = client.rerank(model="toy-rerank", query=TEXTS[1], documents=TEXTS, top_n=2)
        assert next(rank.index for rank in ranks.results) == 1
        assert len(ranks.results) == 2
        assert ranks.results[0].relevance_score > 0.9


def test_voyageai(address: str, expected: list[list[float]]) -> None:
    import voyageai

    client = voyageai.Client(api_key="none", base_url=f"http://{address}/v1", max_retries=0)
    assert close(client.embed(TEXTS, model="toy").embeddings, expected)
    ranks = client.rerank(TEXTS[1], TEXTS, model="toy-rerank", top_k=2)
    assert next(rank.index for rank in ranks.results) == 1
    assert ranks.total_tokens > 0
    assert ranks.results[0].document == TEXTS[1]


def test_huggingface_hub(address: str, expected: list[list[float]]) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=f"http://{address}")
    assert close(client.feature_extraction(TEXTS[0]), [expected[0]])
    scores = client.sentence_similarity(TEXTS[0], TEXTS)
    assert len(scores) == 3
    assert abs(scores[0] - 1) < 1e-5


def test_tritonclient_http(address: str, expected: list[list[float]]) -> None:
    import numpy as np
    import tritonclient.http as triton

    client = triton.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.get_model_metadata("toy")["outputs"][0]["shape"] == [-1, WIDTH]
    for binary in (True, False):
        text = triton.InferInput("text", [3], "BYTES")
        text.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary)
        output = triton.InferRequestedOutput("embedding", binary_data=binary)
        answer = client.infer("toy", [text], outputs=[output], request_id="7", priority=1)
        assert answer.get_response()["id"] == "7"
        assert close(answer.as_numpy("embedding"), expected)
    client.close()


def test_tritonclient_grpc(address: str, expected: list[list[float]]) -> None:
    import numpy as np
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.get_model_metadata("toy").outputs[0].name == "embedding"
    text = triton.InferInput("text", [3], "BYTES")
    text.set_data_from_numpy(np.array(TEXTS, dtype=object))
    answer = client.infer("toy", [text], client_timeout=30, timeout=30_000_000)
    assert close(answer.as_numpy("embedding"), expected)
    with pytest.raises(InferenceServerException, match="no model"):
        client.infer("none", [text])
    text.set_data_from_numpy(np.array(["a", "", "b"], dtype=object))
    with pytest.raises(InferenceServerException, match=r"text\[1\]") as refused:
        client.infer("toy", [text])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    client.close()


def test_grpc_health(address: str) -> None:
    """By hand: the health service's request is empty, its answer one number."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=30) == b"\x08\x01", "SERVING"
        unknown = channel.unary_unary("/no.such.Service/Method")
        with pytest.raises(grpc.RpcError) as refused:
            unknown(b"", timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_langchain_openai(address: str, expected: list[list[float]]) -> None:
    from langchain_openai import OpenAIEmbeddings
    from pydantic import SecretStr

    model = OpenAIEmbeddings(
        model="toy",
        base_url=f"http://{address}/v1",
        api_key=SecretStr("none"),
        check_embedding_ctx_length=False,
    )
    assert close(model.embed_documents(TEXTS), expected)
    assert close(model.embed_query(TEXTS[1]), expected[1])


def test_llama_index_tei(address: str, expected: list[list[float]]) -> None:
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    model = TextEmbeddingsInference(model_name="toy", base_url=f"http://{address}")
    assert close(model.get_text_embedding_batch(TEXTS), expected)


def test_llama_index_openai(address: str, expected: list[list[float]]) -> None:
    from llama_index.embeddings.openai import OpenAIEmbedding

    model = OpenAIEmbedding(model_name="toy", api_base=f"http://{address}/v1", api_key="none")
    assert close(model.get_text_embedding_batch(TEXTS), expected)


def test_schemathesis(address: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://{address}/openapi.json"]
    command += ["--max-examples", "20", "--seed", "1", "--no-color"]
    # Their schemas say less than they want: a tensor must have as many elements as its shape says,
    # and POST / takes the form of what the first model does.
    command += ["--exclude-path", "/", "--exclude-path", "/v2/models/{model}/infer"]
    # It leaves a cache where it runs.
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
