"""Load a network once per Python worker, and score batches of rows (scoring task side)."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cos_ml import gpus
from cos_ml.data.columns import Column, as_list_array, decode, renumber
from cos_ml.data.pandas_internals import arrow_frame
from cos_ml.data.spool import raise_on_invalid
from cos_ml.network.archive import load_model
from cos_ml.network.forward import forward_pass
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.network.outputs import OutputKind, predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MAX_NETWORKS", "Scorer", "limit_devices", "score"]

MAX_NETWORKS = 4  # that a Python worker keeps loaded, for pipelines and cross-validation
ARROW_TYPES: dict[type, pa.DataType] = {bytes: pa.binary(), bytearray: pa.binary(), str: pa.large_string()}


@dataclass(frozen=True)
class Scorer:
    """Everything that a scoring task needs, as plain values.

    Attributes:
        archive, digest, modules: the network, its SHA-256, and the modules of its custom layers.
        inputs: the columns of the network's inputs.
        layers: full names of the layers whose outputs are returned.
        kinds: the kind of prediction of each output.
        wanted: the prediction columns to compute, each as the index of an output, and "prediction", "probability" or
            "rawPrediction".
        batch_size: rows per forward pass.
        handle_invalid: "error", "skip" (null values for an invalid row) or "keep" (NaN).
    """

    archive: bytes
    digest: str
    modules: tuple[str, ...]
    inputs: tuple[Column, ...]
    layers: tuple[str, ...]
    kinds: tuple[OutputKind, ...]
    wanted: tuple[tuple[int, str], ...]
    batch_size: int
    handle_invalid: str

    @property
    def fields(self) -> list[str]:
        """The names of the computed columns, in order: f0, f1, ... (layers), then prediction, prediction1 and so on."""
        features = [f"f{index}" for index in range(len(self.layers))]
        return features + [f"{what}{index or ''}" for index, what in self.wanted]


def score(scorer: Scorer, batches: Iterator[pd.Series | tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
    """Score Arrow batches, in order: one row of ``scorer.fields`` for every row."""
    import pandas as pd

    forward = _loaded(scorer)
    first_row = 0
    for batch in batches:
        columns = (batch,) if isinstance(batch, pd.Series) else batch  # Spark passes a single column without a tuple
        arrays, invalid = _arrays(scorer, columns, first_row)
        yield _frame(scorer, _forward(scorer, forward, arrays), invalid)
        first_row += len(invalid)


def _arrays(scorer: Scorer, columns: tuple[pd.Series, ...], first_row: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The inputs' arrays of [rows, ...], and a mask [rows] of the invalid rows."""
    arrays, errors = [], []
    for series, column in zip(columns, scorer.inputs, strict=True):
        array, found = decode(_arrow(series, column), column)
        arrays.append(array)
        errors += found
    if errors:
        raise_on_invalid(renumber(errors, first_row), scorer.handle_invalid)
    invalid = np.zeros(len(columns[0]), bool)
    invalid[[error.row for error in errors]] = True
    return arrays, invalid


def _arrow(series: pd.Series, column: Column) -> pa.Array:
    """A column that Spark converted to pandas, as an Arrow array again."""
    import pandas as pd

    if isinstance(series.dtype, pd.StringDtype):  # of pandas 3, in which a missing string is NaN
        return pa.Array.from_pandas(series, type=pa.large_string())
    rows = series.to_numpy()
    if rows.dtype != object:
        return pa.array(rows)
    first = next((row for row in rows if row is not None), None)
    if first is None:
        element = pa.string() if column.dtype == "string" else pa.from_numpy_dtype(np.dtype(column.dtype))
        return pa.nulls(len(rows), pa.list_(element))
    if not isinstance(first, np.ndarray):
        return pa.array(rows, ARROW_TYPES.get(type(first)))
    if first.dtype == object or any(row is None for row in rows):
        return pa.array(list(rows), from_pandas=False)
    # Takes a tenth of the time of from_pandas, and mostly copies nothing: Spark's rows are slices of one array.
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = first.base
    if not isinstance(values, np.ndarray) or values.size != offsets[-1] or any(row.base is not values for row in rows):
        values = np.concatenate(rows)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def _forward(scorer: Scorer, forward: Callable[..., list[Any]], arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The values of ``scorer.fields``, each an array of [rows, ...]."""
    parts: list[list[np.ndarray]] = []
    for start in range(0, max(len(arrays[0]), 1), scorer.batch_size):
        batch = [array[start : start + scorer.batch_size] for array in arrays]
        tensors = [tensor.numpy() for tensor in forward(*batch)]
        outputs, features = tensors[: len(scorer.kinds)], tensors[len(scorer.kinds) :]
        flat = [values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float64) for values in features]
        wanted = {index for index, _ in scorer.wanted}
        predicted = {index: predictions(scorer.kinds[index], outputs[index]) for index in wanted}
        parts.append(flat + [predicted[index][what] for index, what in scorer.wanted])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _frame(scorer: Scorer, outputs: list[np.ndarray], invalid: np.ndarray) -> pd.DataFrame:
    """The outputs as Spark expects them; invalid rows are null if they are skipped, else NaN."""
    skip = scorer.handle_invalid == "skip"
    if invalid.any() and not skip:
        for values in outputs:
            values[invalid] = np.nan
    empty = invalid & skip
    return arrow_frame(
        {
            name: as_list_array(values, empty) if values.ndim > 1 else pa.array(values, mask=empty, from_pandas=False)
            for name, values in zip(scorer.fields, outputs, strict=True)
        }
    )


# ── the network ───────────────────────────────────────────────────────────────────────────────────────────────────────

networks: OrderedDict[tuple[str, tuple[str, ...]], Callable[..., list[Any]]] = OrderedDict()  # of this Python worker
_loading = threading.Lock()


def _loaded(scorer: Scorer) -> Callable[..., list[Any]]:
    """The network's forward pass, loaded by the first task of this Python worker and kept for later ones."""
    key = (scorer.digest, scorer.layers)
    with _loading:
        if key not in networks:
            limit_devices()
            networks[key] = forward_pass(load_model(scorer.archive, scorer.modules), scorer.layers)
            if len(networks) > MAX_NETWORKS:
                networks.popitem(last=False)
        networks.move_to_end(key)
        return networks[key]


def limit_devices() -> None:
    """Limit TensorFlow to this task's cores, and to the GPU that Spark assigned to it, if any."""
    visible = gpus.show_to_task()
    tf = import_tensorflow()
    try:  # OMP_NUM_THREADS is how Spark passes spark.task.cpus to its Python workers
        tf.config.threading.set_intra_op_parallelism_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
        tf.config.threading.set_inter_op_parallelism_threads(1)
        if not visible:
            tf.config.set_visible_devices([], "GPU")  # ranks may be using them
    except RuntimeError:
        pass  # TensorFlow has already started in this worker
