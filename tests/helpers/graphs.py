"""Small ONNX graphs of known arithmetic."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from labelmill.schemas.network import NetworkConfig


def graph_file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str] = ("batch", 3, "height", "width"),
    output: int = TensorProto.FLOAT,
    rank: int = 4,
    weights: Sequence[onnx.TensorProto] = (),
    **metadata: str,
) -> NetworkConfig:
    """A graph from `x` to `y`."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", output, [None] * rank)]
    model = helper.make_model(
        helper.make_graph(nodes, "test", inputs, outputs, list(weights)),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return NetworkConfig(model=str(path))


def identity_file(path: Path, **metadata: str) -> NetworkConfig:
    """Scores are the image's channels."""
    return graph_file(path, [helper.make_node("Identity", ["x"], ["y"])], **metadata)
