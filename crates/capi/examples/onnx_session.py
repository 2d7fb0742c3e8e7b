"""Writes a small model, the sum of each row, to argv[1]; prints where ONNX Runtime's library is."""

import sys
from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto, helper


def main() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows"])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    graph = helper.make_graph([node], "sum", [x], [y], [axes])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), sys.argv[1])
    folder = Path(onnxruntime.__file__).parent / "capi"
    libraries = [*folder.glob("libonnxruntime.so*"), *folder.glob("libonnxruntime*.dylib")]
    # Newer wheels have the library inside the module.
    print((libraries or [*folder.glob("onnxruntime_pybind11_state*")])[0])


if __name__ == "__main__":
    main()
