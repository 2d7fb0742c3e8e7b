"""tritonclient against a model of tensors that Python serves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
FACTOR = np.array([2, -1], np.float32)
DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


@pytest.fixture(params=[tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def triton(request: pytest.FixtureRequest, tensors: str) -> Any:
    """Yield a protocol's module and a client of its."""
    module = request.param
    client = module.InferenceServerClient(tensors)
    assert client.is_server_live()
    assert client.is_server_ready()
    yield module, client
    client.close()


def inputs(module: Any, x: np.ndarray, factor: np.ndarray) -> list[Any]:
    """Return the inputs of the model `scale`, given in another order than it declares."""
    made = []
    for name, array in (("factor", factor), ("x", x)):
        one = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array)
        made.append(one)
    return made


def test_all_outputs_and_those_asked_for(triton: Any) -> None:
    module, client = triton
    answer = client.infer("scale", inputs(module, X, FACTOR), request_id="7", priority=1)
    assert answer.as_numpy("y").tolist() == (X * FACTOR[:, None]).tolist()
    assert answer.as_numpy("sign").tolist() == [b"plus", b"minus"]
    wanted = [module.InferRequestedOutput("sign")]
    answer = client.infer("scale", inputs(module, X, FACTOR), outputs=wanted)
    assert answer.as_numpy("sign").tolist() == [b"plus", b"minus"]
    assert answer.as_numpy("y") is None


def test_json_in_and_out(tensors: str) -> None:
    client = tritonclient.http.InferenceServerClient(tensors)
    x = tritonclient.http.InferInput("x", [2, 3], "FP32")
    x.set_data_from_numpy(X, binary_data=False)
    factor = tritonclient.http.InferInput("factor", [2], "FP32")
    factor.set_data_from_numpy(FACTOR, binary_data=True)
    wanted = [
        tritonclient.http.InferRequestedOutput("y", binary_data=False),
        tritonclient.http.InferRequestedOutput("sign", binary_data=True),
    ]
    answer = client.infer("scale", [x, factor], outputs=wanted)
    assert answer.as_numpy("y").tolist() == (X * FACTOR[:, None]).tolist()
    assert answer.as_numpy("sign").tolist() == [b"plus", b"minus"]
    client.close()


def test_every_type_comes_back(triton: Any) -> None:
    module, client = triton
    for dtype in DTYPES:
        array = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
        one = module.InferInput("x", [3, 2], np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array)
        found = client.infer("echo", [one]).as_numpy("output-0")
        assert found.dtype == array.dtype
        assert found.tolist() == array.tolist()


def test_what_is_declared_is_told(triton: Any) -> None:
    module, client = triton
    told = client.get_model_metadata("scale")
    if module is tritonclient.http:
        assert told["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
        assert client.get_model_config("scale")["output"][1]["data_type"] == "TYPE_STRING"
    else:
        assert (told.inputs[0].name, list(told.inputs[0].shape)) == ("x", [-1, 3])
        assert told.outputs[1].datatype == "BYTES"


def test_what_makes_no_sense_is_named(triton: Any) -> None:
    module, client = triton
    with pytest.raises(InferenceServerException, match=r"x: must be of type FP32, not FP64"):
        client.infer("scale", inputs(module, X.astype(np.float64), FACTOR))
    with pytest.raises(InferenceServerException, match=r"x: has 2 rows, and factor has 1|factor: "):
        client.infer("scale", inputs(module, X, FACTOR[:1]))
    with pytest.raises(InferenceServerException, match=r"x: is missing"):
        client.infer("scale", inputs(module, X, FACTOR)[:1])


def test_many_callers_get_their_own_rows(triton: Any, tensors: str) -> None:
    module, _ = triton

    def caller(number: int) -> bool:
        client = module.InferenceServerClient(tensors)
        x = np.full((number % 3 + 1, 3), number, np.float32)
        factor = np.arange(len(x), dtype=np.float32)
        answers = [client.infer("scale", inputs(module, x, factor)) for _ in range(20)]
        client.close()
        return all((one.as_numpy("y") == x * factor[:, None]).all() for one in answers)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(caller, range(8)))
