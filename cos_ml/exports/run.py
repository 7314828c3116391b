"""Compute the outputs of an exported file in its own runtime (a process of its own, which the driver starts).

    python -P run.py FORMAT PATH ARRAYS RESULTS

It imports NumPy and the runtime alone. ARRAYS and RESULTS are .npz files: ``names``, and an array for each, ``0``,
``1`` and so on. Each string in them is its bytes, and a byte after them: NumPy drops zeros at the end.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

__all__ = ["main", "read", "write"]

Arrays = dict[str, np.ndarray]


def main(kind: str, path: str, arrays: str, results: str) -> None:
    """Read the inputs, and write the outputs."""
    found = {"saved_model": saved_model, "onnx": onnx, "litert": litert}[kind](path, read(arrays))
    write(results, found)


def read(path: str) -> Arrays:
    """Arrays by name."""
    with np.load(path, allow_pickle=False) as file:
        arrays = [file[str(index)] for index in range(len(file["names"]))]
        return {str(name): decoded(array) for name, array in zip(file["names"], arrays, strict=True)}


def write(path: str, arrays: Arrays) -> None:
    """Write arrays by name."""
    numbered = {str(index): encoded(array) for index, array in enumerate(arrays.values())}
    np.savez(path, names=np.array(list(arrays)), **numbered)  # type: ignore[arg-type]


def encoded(array: np.ndarray) -> np.ndarray:
    """An array whose strings, which are bytes or text, keep zeros at their end."""
    if array.dtype.kind not in "OSU":
        return array
    flat = [one.encode() if isinstance(one, str) else bytes(one) for one in array.reshape(-1)]
    return np.array([one + b"." for one in flat], np.bytes_).reshape(array.shape)


def decoded(array: np.ndarray) -> np.ndarray:
    """What was ``encoded``: strings as objects of bytes."""
    if array.dtype.kind != "S":
        return array
    found = np.empty(array.size, object)
    found[:] = [one[:-1] for one in array.reshape(-1)]
    return found.reshape(array.shape)


def saved_model(path: str, arrays: Arrays) -> Arrays:
    """The outputs of the signature that TensorFlow Serving serves."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)  # which lives as long as its signatures are used
    found = loaded.signatures["serving_default"](**{name: tf.constant(array) for name, array in arrays.items()})
    return {name: one.numpy() for name, one in found.items()}


def onnx(path: str, arrays: Arrays) -> Arrays:
    """The outputs by ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {name: as_text(array) for name, array in arrays.items()}
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, feed), strict=True))


def as_text(array: np.ndarray) -> np.ndarray:
    """Strings as ONNX Runtime takes them."""
    if array.dtype != object:
        return array
    return np.array([one.decode() for one in array.reshape(-1)], object).reshape(array.shape)


def litert(path: str, arrays: Arrays) -> Arrays:
    """The outputs by the LiteRT interpreter: row by row, where the file has a batch of 1."""
    from ai_edge_litert.interpreter import Interpreter

    run: Any = Interpreter(path).get_signature_runner("serving_default")
    one_by_one = any(one["shape_signature"][0] == 1 for one in run.get_input_details().values())
    rows = len(next(iter(arrays.values())))
    pieces = [slice(row, row + 1) for row in range(rows)] if one_by_one else [slice(None)]
    parts = [run(**{name: array[piece] for name, array in arrays.items()}) for piece in pieces]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    main(*sys.argv[1:])
