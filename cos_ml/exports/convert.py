"""Convert a SavedModel to ONNX or LiteRT (a process of its own, which the driver starts).

    python -P convert.py FORMAT FOLDER TARGET METADATA REPORT

It imports the converters alone. What they print, patch and crash stays in this process. REPORT is a file of JSON:
``unsupported``, pairs of an operator and its place in the graph, and ``error``, what a converter says.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

__all__ = ["main"]

OPSET = 18  # of ONNX: the newest that tf2onnx 1.17 converts to

Unsupported = list[tuple[str, str]]


def main(kind: str, folder: str, target: str, metadata: str, report: str) -> None:
    """Convert, and write the report."""
    unsupported: Unsupported = []
    error = ""
    try:
        unsupported = {"onnx": to_onnx, "litert": to_litert}[kind](folder, target, metadata)
    except Exception as raised:  # converters raise whatever they like
        error = f"{type(raised).__name__}: {raised}"
        unsupported = named_in(error)
    Path(report).write_text(json.dumps({"unsupported": unsupported, "error": error}))


def to_onnx(folder: str, target: str, metadata: str) -> Unsupported:
    """Write an ONNX file, unless ONNX lacks operators, which are returned."""
    import onnx
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx

    graph, inputs, outputs, tables, names = tf_loader.from_saved_model(
        folder, None, None, ["serve"], ["serving_default"], return_initialized_tables=True,
        return_tensors_to_rename=True,
    )  # fmt: skip
    with tf.Graph().as_default() as whole:
        tf.import_graph_def(graph, name="")
        converted = tfonnx.process_tf_graph(
            whole, continue_on_error=True, opset=OPSET, input_names=inputs, output_names=outputs,
            tensors_to_rename=names, initialized_tables=tables,
            custom_op_handlers={"Erfc": (erfc, []), "Bucketize": (bucketize, [])},
        )  # fmt: skip
    model = optimizer.optimize_graph(converted).make_model("cos_ml")
    if lacking := [(one.op_type, one.name) for one in nodes(model.graph) if not is_known(one)]:
        return lacking
    name_sides(model.graph)
    model.metadata_props.add(key="cos_ml", value=metadata)
    onnx.checker.check_model(model)
    Path(target).write_bytes(model.SerializeToString())
    return []


def erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """1 - erf(x), for the gelu of Keras: tf2onnx does not convert TensorFlow's Erfc."""
    import numpy as np
    from tf2onnx import utils

    kind = utils.map_onnx_to_numpy_type(context.get_dtype(node.input[0]))
    one = context.make_const(utils.make_name(name), np.array(1, kind)).output[0]
    found = context.make_node("Erf", node.input).output[0]
    context.replace_all_inputs(node.output[0], context.make_node("Sub", [one, found]).output[0])


def bucketize(context: Any, node: Any, name: str, args: Any) -> None:
    """The number of boundaries that are not above each value, for Keras's Discretization."""
    import numpy as np
    from onnx import TensorProto
    from tf2onnx import utils

    bounds = np.array(node.get_attr_value("boundaries"), np.float32)
    make, const = context.make_node, lambda value: context.make_const(utils.make_name(name), value).output[0]
    values = make("Cast", node.input, attr={"to": TensorProto.FLOAT}).output[0]
    values = make("Unsqueeze", [values, const(np.array([-1]))]).output[0]
    above = make("Cast", make("GreaterOrEqual", [values, const(bounds)]).output, attr={"to": TensorProto.INT32})
    count = make("ReduceSum", [above.output[0], const(np.array([-1]))], attr={"keepdims": 0})
    context.replace_all_inputs(node.output[0], count.output[0])


def nodes(graph: Any) -> list[Any]:
    """The nodes of an ONNX graph, with those of loops and branches."""
    inner = [one.g for node in graph.node for one in node.attribute if one.HasField("g")]
    return [*graph.node, *(node for one in inner for node in nodes(one))]


def is_known(node: Any) -> bool:
    """Whether ONNX has the operator of a node."""
    import onnx

    return bool(onnx.defs.has(node.op_type, node.domain))


def name_sides(graph: Any) -> None:
    """Name free dimensions: "rows", the first of all inputs and outputs, and others by their tensor and axis."""
    for tensor in (*graph.input, *graph.output):
        for axis, side in enumerate(tensor.type.tensor_type.shape.dim):
            if side.WhichOneof("value") != "dim_value":
                side.dim_param = f"{tensor.name}_{axis}" if axis else "rows"


def to_litert(folder: str, target: str, metadata: str) -> Unsupported:
    """Write a LiteRT file of LiteRT's own operators, with the metadata as an associated file, in a ZIP at its end."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.experimental_enable_resource_variables = True
    Path(target).write_bytes(converter.convert())
    with zipfile.ZipFile(target, "a") as file:
        file.writestr("cos_ml.json", metadata)
    return []


def named_in(error: str) -> Unsupported:
    """The operators that LiteRT's converter names, with their places."""
    places = re.findall(r'fused\["(\w+):", "([^"@]+)', error)
    return [(kind, place) for kind, place in dict.fromkeys(places) if not kind.endswith("PartitionedCall")]


if __name__ == "__main__":
    main(*sys.argv[1:])
