"""Triton's client against the server: `triton_client.py http|grpc PORT`. A process of its own: its
gRPC messages and KServe's have the same names, and one process has room for one of them."""

import importlib
import sys

import numpy


def main(protocol, port):
    client_of = importlib.import_module(f"tritonclient.{protocol}")
    with client_of.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_model_ready("tensors")

        def ask(model, array, datatype):
            given = client_of.InferInput("x", list(array.shape), datatype)
            given.set_data_from_numpy(array)
            return client.infer(model, [given])

        x = numpy.arange(6, dtype=numpy.float32).reshape(3, 2)
        numpy.testing.assert_array_equal(ask("tensors", x, "FP32").as_numpy("double"), 2 * x)
        words = numpy.array(["one", "drei"], dtype=object)
        assert ask("texts", words, "BYTES").as_numpy("length").tolist() == [3, 4]
        said = "nothing"
        try:
            ask("picky", x - 1, "FP32")
        except client_of.InferenceServerException as error:
            said = str(error)
        assert "row 0: ArithmeticError: no negative numbers" in said, said


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("all well")
