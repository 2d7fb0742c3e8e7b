"""Servers of KServe's for the tests, each a process of its own."""

import concurrent.futures
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, ready):
    """Ask until the answer is yes; the test's own timeout is the limit."""
    while not ready():
        threading.Event().wait(0.02)
    return what


class Server:
    """A server with some of the models of kserve_app.py."""

    def __init__(self, folder, *models):
        self.gate, self.stderr = folder / "gate", folder / "stderr"
        os.mkfifo(self.gate)
        self.http, self.grpc = free_port(), free_port()
        paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "GATE": str(self.gate),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        command = [sys.executable, HERE / "kserve_app.py", str(self.http), str(self.grpc), *models]
        with open(self.stderr, "w") as stderr:
            self.process = subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr)
        self.crew = concurrent.futures.ThreadPoolExecutor(64)

    def listens(self):
        """Whether its HTTP port takes connections."""
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", self.http)) == 0

    def until(self, ready):
        """Wait for something of a server that lives."""

        def look():
            assert self.process.poll() is None, self.stderr.read_text()[-4000:]
            return ready()

        return until(self, look)

    def started(self):
        return self.until(self.listens)

    def is_ready(self, model):
        return self.get(f"/v2/models/{model}/ready").status_code == 200

    def loaded(self, *models):
        self.started()
        return self.until(lambda: all(self.is_ready(model) for model in models))

    def get(self, path):
        return httpx.get(f"http://127.0.0.1:{self.http}{path}", timeout=60)

    def infer(self, model, values, datatype="FP32", shape=None, name="x", **more):
        """Call over HTTP with one input."""
        shape = [len(values)] if shape is None else shape
        given = {"name": name, "shape": shape, "datatype": datatype, "data": values}
        return self.post(model, {"inputs": [given], **more})

    def post(self, model, body, headers=None):
        url = f"http://127.0.0.1:{self.http}/v2/models/{model}/infer"
        return httpx.post(url, json=body, headers=headers, timeout=60)

    @contextlib.contextmanager
    def channel(self):
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc}") as channel:
            yield GRPCInferenceServiceStub(channel)

    def message(self, model, values, shape, parameters=None):
        """A call over gRPC with one input of FP32."""
        tensor = pb.ModelInferRequest.InferInputTensor(
            name="x",
            datatype="FP32",
            shape=shape,
            contents=pb.InferTensorContents(fp32_contents=values),
        )
        request = pb.ModelInferRequest(model_name=model, inputs=[tensor])
        for key, value in (parameters or {}).items():
            request.parameters[key].int64_param = value
        return request

    def infer_grpc(self, model, values, shape, parameters=None):
        """Make that call."""
        with self.channel() as stub:
            return stub.ModelInfer(self.message(model, values, shape, parameters), timeout=60)

    def arrived(self, model, count):
        """Wait until so many requests wait or run in the queue of a model."""
        self.until(lambda: self.get("/waiting").json().get(model) == count)

    def open_gate(self):
        """Let what waits at the gate go on; blocks until something does."""
        self.gate.write_text("open")

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)
        self.crew.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def start(tmp_path):
    """Starts servers that end with the test."""
    servers = []

    def start(*models):
        folder = tmp_path / str(len(servers))
        folder.mkdir()
        servers.append(Server(folder, *models))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server with the models that no test harms."""
    names = ("texts", "gated", "picky", "tensors", "named")
    server = Server(tmp_path_factory.mktemp("server"), *names)
    try:
        yield server.loaded(*names)
    finally:
        server.end()
