"""A network as a TensorFlow function of columns: what ``transform`` computes, without Spark (driver side)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cos_ml.errors import ExportError
from cos_ml.exports.formats import layer_at
from cos_ml.exports.pixels import decode_files
from cos_ml.exports.signature import ExportedTensor, Source
from cos_ml.network.forward import ForwardPass
from cos_ml.network.keras_import import import_keras, import_tensorflow
from cos_ml.network.outputs import OutputKind
from cos_ml.network.structure import input_tensors

__all__ = ["predictions", "serving_function", "write_saved_model"]

TINY = np.finfo(np.float32).tiny

Columns = dict[str, Any]


def serving_function(
    forward: ForwardPass,
    feeds: Sequence[Sequence[Source]],
    kinds: Sequence[OutputKind],
    outputs: Mapping[str, str | tuple[int, str]],
    thresholds: Sequence[float],
    labels: Sequence[str],
) -> Callable[[Columns], Columns]:
    """A function of tensors by the names of inputs, which returns tensors by the names of output columns.

    Args:
        forward: the network's forward pass, with the layers whose outputs are returned.
        feeds: the sources of each input of the network.
        kinds: the kind of prediction of each output of the network.
        outputs: by column, the name of a layer, or the index of an output and "prediction", "probability",
            "rawPrediction" or "predictedLabel".
        thresholds: those of the classes of the first output, or none.
        labels: the names of the classes of the first output, or none.
    """

    shapes = [tensor.shape for tensor in input_tensors(forward.network)]

    def serve(columns: Columns) -> Columns:
        inputs = [_input(columns, sources, shape) for sources, shape in zip(feeds, shapes, strict=True)]
        results = [_number(one) for one in forward.compute(*inputs)]
        layers = [one for one in outputs.values() if isinstance(one, str)]
        found: dict[Any, Any] = dict(zip(layers, results[len(kinds) :], strict=True))
        for index, kind in enumerate(kinds):
            predicted = predictions(kind, results[index], () if index else thresholds)
            found |= {(index, what): value for what, value in predicted.items()}
        if labels:
            found[0, "predictedLabel"] = _label(found[0, "prediction"], labels)
        return {name: found[key] for name, key in outputs.items()}

    return serve


def write_saved_model(
    network: Any,
    layers: Iterable[str],
    serve: Callable[[Columns], Columns],
    inputs: Sequence[ExportedTensor],
    folder: str,
) -> list[ExportedTensor]:
    """Write a network's function as a SavedModel, and return its outputs.

    Args:
        network: the ``keras.Model``.
        layers: the names of its layers, for errors.
        serve: the function of ``serving_function``.
        inputs: its inputs.
        folder: the folder to write.

    Raises:
        ExportError: a layer is random at inference.
    """
    tf = import_tensorflow()
    specs = {one.name: tf.TensorSpec(one.shape, one.dtype, name=one.name) for one in inputs}
    archive = import_keras().export.ExportArchive()
    archive.track(network)
    traced = archive.add_endpoint("serve", serve, [specs]).get_concrete_function(specs)
    if places := [one.name for one in traced.graph.get_operations() if "Random" in one.type]:
        names = sorted({layer_at(place, layers) for place in places})
        raise ExportError(f"Layers {names} are random at inference: an exported file can't draw the same numbers.")
    archive.write_out(folder, verbose=False)
    return [
        ExportedTensor(name, name, "string" if one.dtype == tf.string else one.dtype.name, tuple(one.shape))
        for name, one in traced.structured_outputs.items()
    ]


def _input(columns: Columns, sources: Sequence[Source], shape: Any) -> Any:
    """One input of the network, of this shape: a column, or several that are joined."""
    tf = import_tensorflow()
    if len(sources) > 1:
        flat = [tf.reshape(columns[one.name], (-1, one.column.known_size)) for one in sources]
        return _shaped(tf.concat(flat, 1), shape)
    tensor = columns[sources[0].name]
    return _shaped(decode_files(tensor, sources[0].images.spec), shape) if sources[0].images else tensor


def _shaped(tensor: Any, shape: Any) -> Any:
    """Rows in the shape of an input, which may have a dimension of None."""
    tf = import_tensorflow()
    return tensor if len(shape) == tensor.shape.rank else tf.reshape(tensor, [-1, *shape[1:]])


def _number(result: Any) -> Any:
    """A result of the network as what transform returns: single precision at least."""
    tf = import_tensorflow()
    return tf.cast(result, tf.float32) if result.dtype in (tf.float16, tf.bfloat16) else result


def predictions(kind: OutputKind, output: Any, thresholds: Sequence[float]) -> dict[str, Any]:
    """``network.outputs.predictions`` as a graph; outputs with several axes keep their shape."""
    tf = import_tensorflow()
    if kind == OutputKind.VECTOR:
        return {"prediction": output}
    if kind == OutputKind.NUMBER:
        return {"prediction": tf.reshape(output, (-1,))}
    if kind == OutputKind.CLASS_PROBABILITIES:
        probability, raw = output, _log(output)
    elif kind == OutputKind.CLASS_LOGITS:
        exponents = tf.exp(output - tf.reduce_max(output, axis=1, keepdims=True))  # TensorFlow's softmax hides a NaN
        probability, raw = exponents / tf.reduce_sum(exponents, axis=1, keepdims=True), output
    else:
        output = tf.reshape(output, (-1, 1))
        logit = output if kind == OutputKind.LOGIT else _log(output) - _log(1 - output)
        positive = tf.sigmoid(output) if kind == OutputKind.LOGIT else output
        probability, raw = tf.concat([1 - positive, positive], 1), tf.concat([-logit, logit], 1)
    chosen = tf.cast(_chosen(probability, thresholds), output.dtype)
    is_nan = tf.reduce_any(tf.not_equal(output, output), axis=1)
    prediction = tf.where(is_nan, tf.constant(np.nan, output.dtype), chosen)
    return {"prediction": prediction, "probability": probability, "rawPrediction": raw}


def _chosen(probability: Any, thresholds: Sequence[float]) -> Any:
    """The predicted class of each row; a threshold of 0 wins, but not if the probability is 0 as well."""
    tf = import_tensorflow()
    if not len(thresholds):
        return tf.argmax(probability, axis=1, output_type=tf.int32)
    divisors = np.array(thresholds, probability.dtype.as_numpy_dtype)
    scaled = probability / np.where(divisors == 0, 1, divisors)
    if not divisors.all():
        scaled = tf.where((divisors == 0)[None] & (probability > 0), np.inf, scaled)
    return tf.argmax(scaled, axis=1, output_type=tf.int32)


def _label(prediction: Any, labels: Sequence[str]) -> Any:
    """The name of each predicted class; empty where none is."""
    tf = import_tensorflow()
    is_nan = tf.not_equal(prediction, prediction)
    number = tf.cast(tf.where(is_nan, tf.constant(len(labels), prediction.dtype), prediction), tf.int32)
    return tf.gather(tf.constant([*labels, ""]), number)


def _log(values: Any) -> Any:
    tf = import_tensorflow()
    return tf.math.log(tf.maximum(values, tf.constant(TINY, values.dtype)))
