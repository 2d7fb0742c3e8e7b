"""`onelane.serve` with models of tensors: any callable, over the Open Inference Protocol."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

np = pytest.importorskip("numpy")

import onelane  # noqa: E402
from onelane import Predictor  # noqa: E402

pytestmark = pytest.mark.timeout(300)


def started(models, **settings):
    settings = {"device": "cpu", "port": 0, "drain_delay": 0.0, "block": False, **settings}
    return onelane.serve(models, **settings)


def post(server, body, model="model", headers=()):
    """Return the status of a call in JSON, and its answer."""
    host = server.address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body), dict(headers))
        answer = connection.getresponse()
        return answer.status, json.load(answer)
    finally:
        connection.close()


def get(server, path):
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def tensor(name, datatype, data):
    array = np.asarray(data, dtype=object)
    return {
        "name": name,
        "datatype": datatype,
        "shape": [*array.shape],
        "data": array.reshape(-1).tolist(),
    }


def infer(server, *inputs, model="model", **more):
    """Return the outputs of a call by name, as lists."""
    status, answer = post(server, {"inputs": [*inputs], **more}, model)
    assert status == 200, answer
    return {
        output["name"]: np.array(output["data"], dtype=object).reshape(output["shape"]).tolist()
        for output in answer["outputs"]
    }


def waits(server, count):
    """Wait until so many rows wait."""
    while True:
        lines = get(server, "/metrics").splitlines()
        waiting = [line for line in lines if line.startswith("onelane_waiting{")]
        if waiting and sum(float(line.rpartition(" ")[2]) for line in waiting) == count:
            return


class Doubles:
    """Doubles numbers, and notes its batches and threads; -1 fails, and so does who is told to."""

    def __init__(self):
        self.batches, self.threads = [], set()
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, x):
        self.batches.append(x[:, 0].tolist())
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.go.wait(60)
        if (x == -1).any():
            raise ValueError("a bad row")
        x *= 2  # What it is given is its own.
        return x


def doubles(run):
    return Predictor(run, {"x": ("FP32", [-1, 2])}, {"y": ("FP32", [-1, 2])})


def rows(*firsts):
    return tensor("x", "FP32", [[first, 10.0] for first in firsts])


def test_rows_of_many_clients_run_in_one_batch_and_each_gets_its_own():
    run = Doubles()
    with started(doubles(run)) as server, ThreadPoolExecutor(9) as pool:
        run.go.clear()
        first = pool.submit(infer, server, rows(0))
        assert run.entered.wait(60)
        barrier = threading.Barrier(8)

        def client(number):
            barrier.wait(60)
            return infer(server, rows(number, number + 0.5))

        clients = [pool.submit(client, number) for number in range(1, 9)]
        waits(server, 16)
        run.go.set()
        assert first.result() == {"y": [[0, 20]]}
        for number, answer in enumerate(clients, 1):
            assert answer.result() == {"y": [[2 * number, 20], [2 * number + 1, 20]]}
        assert [len(batch) for batch in run.batches] == [1, 16]
        assert len(run.threads) == 1


def test_urgent_rows_go_first_and_a_late_one_is_not_computed():
    run = Doubles()
    with started(doubles(run), max_batch_requests=1) as server, ThreadPoolExecutor(3) as pool:
        run.go.clear()
        calls = [pool.submit(infer, server, rows(0))]
        assert run.entered.wait(60)
        calls.append(pool.submit(infer, server, rows(1), parameters={"priority": 3}))
        waits(server, 1)
        calls.append(pool.submit(infer, server, rows(2), parameters={"priority": 1}))
        waits(server, 2)
        late, answer = post(server, {"inputs": [rows(3)], "parameters": {"timeout": 1000}})
        assert (late, "deadline" in answer["error"]) == (504, True), answer
        run.go.set()
        assert [call.result()["y"][0][0] for call in calls] == [0, 2, 4]
        assert run.batches == [[0], [2], [1]]


def test_a_bad_row_fails_alone_and_is_named():
    with started(doubles(Doubles())) as server:
        status, answer = post(server, {"inputs": [rows(1, -1, 2)]})
        assert status == 500
        assert answer["error"].startswith("row[1]: ")
        assert "a bad row" in answer["error"]
        assert infer(server, rows(1, 2)) == {"y": [[2, 20], [4, 20]]}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "x: is missing: the model takes x, text"),
        ([("x", "FP32", [[1, 2]])], "text: is missing: the model takes x, text"),
        ([("x", "FP64", [[1, 2]]), ("text", "BYTES", ["a"])], "x: must be of type FP32, not FP64"),
        ([("x", "FP32", [1, 2]), ("text", "BYTES", ["a"])], "x: must have the shape [-1, 2], not"),
        ([("x", "FP32", [[1, 2]]), ("text", "BYTES", ["a", "b"])], "text: has 2 rows, and x has 1"),
        (
            [("x", "FP32", [[1, 2]]), ("text", "BYTES", ["a"]), ("z", "INT8", [1])],
            "z: is no input of the model, which takes x, text",
        ),
    ],
)
def test_wrong_inputs_are_named(inputs, said):
    calls = []
    declared = {"x": ("FP32", [-1, 2]), "text": ("BYTES", [-1])}
    with started(Predictor(lambda x, text: calls.append(x) or x, declared)) as server:
        status, answer = post(server, {"inputs": [tensor(*one) for one in inputs]})
        assert status == 400, answer
        assert answer["error"].startswith(said)
        good = [tensor("x", "FP32", [[1, 2]]), tensor("text", "BYTES", ["a"])]
        status, answer = post(server, {"inputs": good, "outputs": [{"name": "other"}]})
        assert (status, 'not "other"' in answer["error"]) == (400, True), answer
    assert len(calls) == 1, "only the last call was asked of the model: its outputs are undeclared"


def test_what_is_declared_is_told():
    with started({"double": doubles(Doubles()), "bare": lambda x: x}) as server:
        told = json.loads(get(server, "/v2/models/double"))
        assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
        assert told["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
        config = json.loads(get(server, "/v2/models/double/config"))
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 2]}]
        bare = json.loads(get(server, "/v2/models/bare"))
        assert (bare["inputs"], bare["outputs"]) == ([], [])


TYPES = {
    "BOOL": ("?", [True, False]),
    "UINT8": ("u1", [0, 255]),
    "UINT16": ("u2", [0, 65535]),
    "UINT32": ("u4", [0, 2**32 - 1]),
    "UINT64": ("u8", [0, 2**64 - 1]),
    "INT8": ("i1", [-128, 127]),
    "INT16": ("i2", [-(2**15), 1]),
    "INT32": ("i4", [-(2**31), 1]),
    "INT64": ("i8", [-(2**63), 1]),
    "FP16": ("f2", [-0.5, 2.0]),
    "FP32": ("f4", [-0.5, 2.0]),
    "FP64": ("f8", [0.1, 1e300]),
}


def test_every_type_comes_as_its_own_dtype_and_goes_back():
    seen = {}

    def run(**inputs):
        seen.update({name: array.dtype for name, array in inputs.items()})
        return inputs

    with started(Predictor(run)) as server:
        for datatype, (dtype, data) in TYPES.items():
            assert infer(server, tensor(datatype, datatype, data)) == {datatype: data}
            assert seen[datatype] == np.dtype(dtype)
        # NumPy has none of 16 bits with eight for the exponent: floats of 32 bits have the numbers.
        sent = tensor("x", "BF16", [-0.5, 256.0])
        assert infer(server, sent) == {"x": [-0.5, 256.0]}
        assert seen["x"] == np.float32
        assert infer(server, tensor("text", "BYTES", [["a", "é"]])) == {"text": [["a", "é"]]}


def test_outputs_become_what_is_declared():
    def run(x):
        return np.array([1 / 3, np.nan]), x.astype(np.float64), ["a", b"b"]

    outputs = {"half": ("BF16", [-1]), "y": ("FP32", [-1]), "text": ("BYTES", [-1])}
    with started(Predictor(run, {"x": ("INT64", [-1])}, outputs)) as server:
        x = tensor("x", "INT64", [1, 2])
        wanted = [{"name": "text"}, {"name": "y"}]
        assert infer(server, x, outputs=wanted) == {"text": ["a", "b"], "y": [1.0, 2.0]}
        status, answer = post(server, {"inputs": [x]})
        assert status == 500
        assert "half: has a number that is not finite" in answer["error"]
    with started(Predictor(lambda x: x, outputs={"y": ("INT8", [-1])})) as server:
        status, answer = post(server, {"inputs": [tensor("x", "FP32", [1.5])]})
        assert status == 500
        assert "has the dtype float32, which does not become the declared INT8" in answer["error"]


def test_binary_tensors_in_and_out():
    x = np.array([[1, 2], [3, 4]], np.float32)
    head = {
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [2, 2],
                "parameters": {"binary_data_size": x.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    body = json.dumps(head).encode()
    with started(doubles(Doubles())) as server:
        host = server.address.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        headers = {"Inference-Header-Content-Length": str(len(body))}
        connection.request("POST", "/v2/models/model/infer", body + x.tobytes(), headers)
        answer = connection.getresponse()
        raw = answer.read()
        split = int(answer.headers["Inference-Header-Content-Length"])
        connection.close()
    assert json.loads(raw[:split])["outputs"][0]["shape"] == [2, 2]
    assert np.frombuffer(raw[split:], np.float32).tolist() == [2, 4, 6, 8]


def test_a_bare_callable_takes_what_comes():
    def product(a, b):
        return a @ b

    with started({"double": lambda x: x * 2, "product": product}) as server:
        assert infer(server, tensor("INPUT0", "INT32", [1, 2]), model="double") == {
            "output-0": [2, 4]
        }
        # No rows in common: a call of its own.
        a, b = tensor("a", "INT64", [[1, 2]]), tensor("b", "INT64", [[1], [2]])
        assert infer(server, b, a, model="product") == {"output-0": [[5]]}
        status, answer = post(server, {"inputs": [a, tensor("c", "INT64", [[1], [2]])]}, "product")
        assert status == 500
        assert "the model takes (a, b), and the call has the inputs a, c" in answer["error"]


def test_a_model_that_does_not_batch_gets_each_call_by_itself():
    shapes = []

    def run(x):
        shapes.append(x.shape)
        return {"sum": x.sum(), "shape": np.array(x.shape)}

    with started(Predictor(run, {"x": ("FP32", [2, -1])}, batch=False)) as server:
        answer = infer(server, tensor("x", "FP32", [[1, 2, 3], [4, 5, 6]]))
        assert answer == {"sum": 21, "shape": [2, 3]}
        status, answer = post(server, {"inputs": [tensor("x", "FP32", [[1]])]})
        assert (status, answer["error"]) == (400, "x: must have the shape [2, -1], not [1, 1]")
    assert shapes == [(2, 3)]


def test_torch_modules_get_tensors():
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(2, 1).train()
    declared = {"features": ("FP32", [-1, 2])}
    seen = []

    def halves(x):
        seen.append((x.dtype, torch.is_inference_mode_enabled()))
        return x / 2

    models = {
        "linear": linear,
        "declared": Predictor(linear, declared, {"score": ("FP32", [-1, 1])}),
        "halves": Predictor(halves, {"x": ("BF16", [-1])}, tensors="torch"),
    }
    with started(models) as server:
        x = [[1.0, 2.0], [3.0, 4.0]]
        expected = linear(torch.tensor(x)).tolist()
        found = infer(server, tensor("x", "FP32", x), model="linear")
        assert np.allclose(found["output-0"], expected)
        found = infer(server, tensor("features", "FP32", x), model="declared")
        assert np.allclose(found["score"], expected)
        found = infer(server, tensor("x", "BF16", [3.0]), model="halves")
        assert found == {"output-0": [1.5]}
    assert seen == [(torch.bfloat16, True)]
    assert not linear.training


def test_what_is_guarded_is_served_where_it_lives():
    run = Doubles()
    with onelane.DeviceExecutor("cpu") as device:
        with started({"bare": onelane.guard(run, device)}) as server:
            assert infer(server, rows(1), model="bare") == {"output-0": [[2, 20]]}
        worker = device.call(lambda: threading.current_thread().name)
    assert run.threads == {worker}


@pytest.mark.parametrize("model", ["dying_predictor", "dying_double"])
def test_an_isolated_model_may_die(model):
    with started(f"isolated_models:{model}", isolation="process") as server:
        assert infer(server, tensor("x", "INT64", [1, 2])) == {"output-0": [2, 4]}
        status, answer = post(server, {"inputs": [tensor("x", "INT64", [1, -1, 2])]})
        assert status == 500
        assert answer["error"].startswith("row[1]: ")
        assert infer(server, tensor("x", "INT64", [3, 4])) == {"output-0": [6, 8]}


def test_texts_that_are_none_are_refused_or_left_alone():
    def run(text):
        return np.array([len(one) for one in text.tolist()])

    head = {"name": "text", "datatype": "BYTES", "shape": [1]}
    raw = b"\x02\0\0\0\xff\xfe"
    body = json.dumps({"inputs": [{**head, "parameters": {"binary_data_size": len(raw)}}]})
    headers = {"Inference-Header-Content-Length": str(len(body))}
    found = []
    with started({"texts": Predictor(run), "bytes": Predictor(run, encoding=None)}) as server:
        host = server.address.removeprefix("http://")
        for model in ("texts", "bytes"):
            connection = http.client.HTTPConnection(host, timeout=60)
            path = f"/v2/models/{model}/infer"
            connection.request("POST", path, body.encode() + raw, headers)
            answer = connection.getresponse()
            found.append((answer.status, json.load(answer)))
            connection.close()
    assert found[0] == (400, {"error": "text: element 0 is not UTF-8"})
    assert found[1][1]["outputs"][0]["data"] == [2]


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"inputs": {}}, TypeError, "give a dict of types and shapes"),
        ({"inputs": {"x": "FP32"}}, TypeError, "give a type and a shape"),
        ({"inputs": {"x": ("FP32", 4)}}, TypeError, "give a type and a shape"),
        ({"outputs": {"y": ("FP31", [-1])}}, ValueError, "Did you mean 'FP3"),
        ({"outputs": {"y": ("text", [-1])}}, ValueError, "there is no type 'text'"),
        ({"tensors": "jax"}, ValueError, "use 'numpy' or 'torch'"),
        ({"batch": "no"}, TypeError, "use True or False"),
    ],
)
def test_a_wrong_declaration_is_named(settings, error, said):
    with pytest.raises(error, match=said):
        Predictor(abs, **settings)


def test_what_cannot_be_served_is_told():
    with pytest.raises(TypeError, match="cannot be called"):
        Predictor(7)
    with pytest.raises(
        ValueError, match="'m': the input \"x\" must have -1 as its first size".replace("'", '"')
    ):
        started({"m": Predictor(abs, {"x": ("FP32", [4])})})


@pytest.mark.parametrize("model", ["dying_predictor", "dying_double"])
def test_the_command(model):
    command = [sys.executable, "-m", "onelane", "serve", f"m=isolated_models:{model}"]
    command += ["--device", "cpu", "--port", "0", "--drain-delay", "0"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        line = child.stderr.readline()
        assert "listening on" in line
        address = line.split()[-1]

        class At:
            pass

        At.address = address
        while "true" not in _ready(At):
            pass
        assert infer(At, tensor("x", "INT64", [1]), model="m") == {"output-0": [2]}
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def _ready(server):
    return "true" if json.loads(get(server, "/stats"))["ready"] else "false"
