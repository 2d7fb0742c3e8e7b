"""onelane behind KServe's real ModelServer, over HTTP and gRPC."""

import signal
import subprocess
import sys

import grpc
import httpx
import numpy
import pytest

from conftest import HERE, until


def data(response, name="output-0"):
    """The numbers of an output of a JSON response, in its shape."""
    assert response.status_code == 200, response.text
    (found,) = (output for output in response.json()["outputs"] if output["name"] == name)
    return numpy.array(found["data"]).reshape(found["shape"])


def fill(server, calls):
    """Have one call wait at the gate, and so many behind it. Returns what each will come to."""
    first = server.crew.submit(server.infer, "gated", [-1.0], shape=[1, 1])
    server.arrived("gated", 1)
    rest = [
        server.crew.submit(server.infer, "gated", [float(i)], shape=[1, 1]) for i in range(calls)
    ]
    server.arrived("gated", 1 + calls)
    return [first, *rest]


def test_concurrent_calls_share_batches_and_get_their_own_answers(server):
    calls = fill(server, 8)
    server.open_gate()
    answers = [data(call.result())[0] for call in calls]
    assert [double for double, _ in answers] == [-2, *(2 * i for i in range(8))]
    # Four is the most, and all eight waited.
    assert [size for _, size in answers] == [1] + [4] * 8


def test_where_there_is_no_room_a_call_is_refused_at_once_and_costs_nobody_anything(server):
    calls = fill(server, 8)
    refused = server.infer("gated", [1.0], shape=[1, 1])
    assert refused.status_code == 429, refused.text
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json() == {"error": "the queue of gated is full"}
    with pytest.raises(grpc.RpcError) as failed:
        server.infer_grpc("gated", [1.0], [1, 1])
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.open_gate()
    assert [data(call.result())[0][0] for call in calls] == [-2, *(2 * i for i in range(8))]


def test_a_call_that_does_not_fit_goes_in_whole_or_not_at_all(server):
    calls = fill(server, 6)
    refused = server.infer("gated", [1.0, 2.0, 3.0], shape=[3, 1])
    assert refused.status_code == 429, refused.text
    server.arrived("gated", 7)
    server.open_gate()
    assert all(call.result().status_code == 200 for call in calls)
    never = server.infer("gated", [1.0] * 9, shape=[9, 1])
    assert never.status_code == 400
    assert "9 rows are more than the queue holds, 8" in never.json()["error"]


def test_what_has_not_started_by_its_deadline_is_told_so_while_the_device_is_busy(server):
    calls = fill(server, 0)
    one = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    late = server.post("gated", {"inputs": [one], "parameters": {"timeout": 1000}})
    assert late.status_code == 504, late.text
    late = server.post("gated", {"inputs": [one]}, headers={"x-request-timeout-ms": "1"})
    assert late.status_code == 504, late.text
    with pytest.raises(grpc.RpcError) as failed:
        server.infer_grpc("gated", [1.0], [1, 1], {"timeout": 1000})
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.arrived("gated", 1)
    server.open_gate()
    assert calls[0].result().status_code == 200


def test_an_urgent_call_goes_before_those_that_wait(server):
    calls = fill(server, 4)
    urgent = server.crew.submit(
        server.infer, "gated", [-1.0], shape=[1, 1], parameters={"priority": 1}
    )
    server.arrived("gated", 6)
    server.open_gate()
    # It waits at the gate as one of the next four: of the others one is left for the last batch.
    server.arrived("gated", 5)
    server.open_gate()
    assert data(urgent.result())[0][1] == 4
    assert sorted(data(call.result())[0][1] for call in calls[1:]) == [1, 4, 4, 4]


def test_a_cancelled_call_leaves_the_queue(server):
    calls = fill(server, 0)
    with server.channel() as stub:
        call = stub.ModelInfer.future(server.message("gated", [1.0], [1, 1]), timeout=60)
        server.arrived("gated", 2)
        call.cancel()
        server.arrived("gated", 1)
    server.open_gate()
    assert calls[0].result().status_code == 200


def test_a_poisoned_request_fails_alone(server):
    texts = ["a", "bb", "poison", "dddd"] * 5
    calls = [server.crew.submit(server.infer, "texts", [text], datatype="BYTES") for text in texts]
    for text, call in zip(texts, calls, strict=True):
        response = call.result()
        if text == "poison":
            assert response.status_code == 500
            assert response.json()["error"].startswith("row 0: EngineCrashed: ")
        else:
            assert data(response, "length").tolist() == [len(text)]


def test_the_row_that_fails_is_named(server):
    failed = server.infer("picky", [1.0, 2.0, -1.0, 3.0], shape=[4, 1])
    assert failed.status_code == 500
    assert failed.json() == {"error": "row 2: ArithmeticError: no negative numbers"}
    assert data(server.infer("picky", [1.0, 2.0], shape=[2, 1])).tolist() == [[2], [4]]
    with pytest.raises(grpc.RpcError) as error:
        server.infer_grpc("picky", [1.0, -1.0], [2, 1])
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert error.value.details() == "row 1: ArithmeticError: no negative numbers"


def test_a_call_is_one_request_of_tensors(server):
    response = server.infer("tensors", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], shape=[3, 2])
    assert data(response, "double").tolist() == [[2, 4], [6, 8], [10, 12]]
    assert data(response, "rows").tolist() == [3, 3, 3]


def test_several_inputs_are_arguments_by_name(server):
    left = {"name": "left", "shape": [2, 1], "datatype": "FP64", "data": [5, 7]}
    right = {"name": "right", "shape": [2, 1], "datatype": "FP64", "data": [1, 2]}
    response = server.post("named", {"inputs": [left, right], "id": "seven"})
    assert data(response).tolist() == [[4], [5]]
    assert response.json()["id"] == "seven"


@pytest.mark.parametrize(
    ("model", "given", "says"),
    [
        ("tensors", {"shape": [2, 2], "data": [1.0]}, "input 'x' cannot be read"),
        ("tensors", {"shape": [], "data": [1.0]}, "the first dimension has to be the batch's"),
        ("gated", {"shape": [], "data": [1.0]}, "every input needs the same first dimension"),
        ("gated", {"shape": [0, 1], "data": []}, "of at least 1"),
        ("tensors", {"shape": [1], "datatype": "BF16", "data": [1]}, "datatype"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(server, model, given, says):
    body = {"inputs": [{"name": "x", "datatype": "FP32", **given}]}
    refused = server.post(model, body)
    assert refused.status_code == 400, refused.text
    assert says in refused.json()["error"]


@pytest.mark.parametrize(
    ("parameters", "headers", "says"),
    [
        ({"timeout": -1}, {}, "timeout: -1"),
        ({"priority": "high"}, {}, "priority: 'high'"),
        ({}, {"x-priority": "high"}, "x-priority: high"),
        ({}, {"x-request-timeout-ms": "soon"}, "x-request-timeout-ms: 'soon'"),
    ],
)
def test_terms_that_make_no_sense_are_refused(server, parameters, headers, says):
    one = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    refused = server.post("picky", {"inputs": [one], "parameters": parameters}, headers)
    assert refused.status_code == 400
    assert says in refused.json()["error"]


def test_the_first_protocol_is_refused_with_a_pointer(server):
    url = f"http://127.0.0.1:{server.http}/v1/models/picky:predict"
    refused = httpx.post(url, json={"instances": [[1.0]]})
    assert refused.status_code == 400
    assert "/v2/models/picky/infer" in refused.json()["error"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritons_client_speaks_to_it(server, protocol):
    port = server.http if protocol == "http" else server.grpc
    command = [sys.executable, HERE / "triton_client.py", protocol, str(port)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.stdout == "all well\n", ran.stderr


def test_it_is_not_ready_while_the_model_loads(start):
    server = start("loading").started()
    not_ready = server.get("/v2/models/loading/ready")
    assert not_ready.status_code == 503
    assert server.infer("loading", [1.0], shape=[1, 1]).status_code == 503
    with pytest.raises(grpc.RpcError) as failed:
        server.infer_grpc("loading", [1.0], [1, 1])
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failed.value.details() == "loading is not ready: it is loading"
    server.open_gate()
    server.loaded("loading")
    assert data(server.infer("loading", [1.0], shape=[1, 1])).tolist() == [[2]]


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(start):
    server = start("broken")
    assert server.process.wait(60) != 0
    assert "the weights are not there" in server.stderr.read_text()


def test_sigterm_loses_nothing_that_was_accepted(start):
    server = start("gated").loaded("gated")
    calls = fill(server, 4)
    over_grpc = [
        server.crew.submit(server.infer_grpc, "gated", [float(i)], [1, 1]) for i in range(4)
    ]
    server.arrived("gated", 9)
    server.process.send_signal(signal.SIGTERM)
    until(server, lambda: not server.listens())
    server.open_gate()
    assert [data(call.result())[0][0] for call in calls] == [-2, 0, 2, 4, 6]
    doubles = [numpy.frombuffer(c.result().raw_output_contents[0], "f8")[0] for c in over_grpc]
    assert doubles == [0, 2, 4, 6]
    assert server.process.wait(60) == 0, server.stderr.read_text()[-2000:]


def test_a_queue_that_is_told_to_stop_runs_what_it_has_accepted(start):
    server = start("gated").loaded("gated")
    first = server.crew.submit(server.infer_grpc, "gated", [-1.0], [1, 1])
    server.arrived("gated", 1)
    rest = [server.crew.submit(server.infer_grpc, "gated", [float(i)], [1, 1]) for i in range(3)]
    server.arrived("gated", 4)
    server.process.send_signal(signal.SIGTERM)

    def refused():
        # No call over HTTP is open, so that KServe stops the model and then refuses over gRPC.
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            stub = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            try:
                stub(b"", timeout=5)
            except grpc.RpcError:
                return True
            return False

    until(server, refused)
    server.open_gate()
    answers = [numpy.frombuffer(c.result().raw_output_contents[0], "f8")[0] for c in [first, *rest]]
    assert answers == [-2, 0, 2, 4]
    assert server.process.wait(60) == 0, server.stderr.read_text()[-2000:]
