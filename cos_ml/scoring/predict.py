"""Load a network once per Python worker, and predict batches (scoring task side)."""

from __future__ import annotations

import functools
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
from cos_ml.data.spool import raise_on_invalid
from cos_ml.network.archive import load_model
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.network.outputs import predictions

if TYPE_CHECKING:
    import pandas as pd
from cos_ml.network.forward import forward_pass

__all__ = ["Scorer", "score"]

KEPT = 4  # networks that a Python worker holds at a time: a pipeline's, a cross-validation's


@dataclass(frozen=True)
class Scorer:
    """All that a scoring task knows: plain values.

    Attributes:
        archive, digest, modules: the network, what tells it from others, and the modules of its custom layers.
        inputs: the columns that it takes.
        layers: full names of the layers to tap.
        heads: the kind of prediction of each output, as ``outputs.head_of`` names it.
        wanted: the prediction columns to compute: the index of an output, and "prediction", "probability" or
            "rawPrediction".
        batch_size: rows per forward pass.
        handle_invalid: "error", "skip" (an empty row comes out) or "keep".
    """

    archive: bytes
    digest: str
    modules: tuple[str, ...]
    inputs: tuple[Column, ...]
    layers: tuple[str, ...]
    heads: tuple[str, ...]
    wanted: tuple[tuple[int, str], ...]
    batch_size: int
    handle_invalid: str

    @property
    def fields(self) -> list[str]:
        """The names of what comes out, in order: f0, f1, ... for the layers, then prediction, prediction1 and so on."""
        taps = [f"f{index}" for index in range(len(self.layers))]
        return taps + [f"{kind}{index or ''}" for index, kind in self.wanted]


def score(scorer: Scorer, batches: Iterator[pd.Series | tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
    """Score Arrow batches, in order: one row of ``scorer.fields`` for every row."""
    import pandas as pd

    forward = _loaded(scorer)
    first_row = 0
    for batch in batches:
        columns = (batch,) if isinstance(batch, pd.Series) else batch  # Spark gives one column without its tuple
        arrays, bad = _arrays(scorer, columns, first_row)
        outputs = _forward(scorer, forward, arrays)
        yield _frame(scorer, outputs, bad)
        first_row += len(bad)


def _arrays(scorer: Scorer, columns: tuple[pd.Series, ...], first_row: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The inputs' arrays, and which of their rows can't be used."""
    arrays, row_errors = [], []
    for series, column in zip(columns, scorer.inputs, strict=True):
        array, found = decode(_arrow(series, column), column)
        arrays.append(array)
        row_errors += found
    if row_errors:
        raise_on_invalid(renumber(row_errors, first_row), scorer.handle_invalid)
    bad = np.zeros(len(columns[0]), bool)
    bad[[problem.row for problem in row_errors]] = True
    return arrays, bad


def _arrow(series: pd.Series, column: Column) -> pa.Array:
    """A column as Spark hands it over, in Arrow's form again."""
    import pandas as pd

    if isinstance(series.dtype, pd.StringDtype):  # of pandas 3, where a missing text is NaN
        return pa.Array.from_pandas(series, type=pa.large_string())
    rows = series.to_numpy()
    if rows.dtype != object:
        return pa.array(rows)
    first = next((row for row in rows if row is not None), None)
    if first is None:
        kind = pa.string() if column.dtype == "string" else pa.from_numpy_dtype(np.dtype(column.dtype))
        return pa.nulls(len(rows), pa.list_(kind))
    if not isinstance(first, np.ndarray):
        kinds: dict[type, pa.DataType] = {bytes: pa.binary(), bytearray: pa.binary(), str: pa.large_string()}
        return pa.array(rows, kinds.get(type(first)))
    if first.dtype == object or any(row is None for row in rows):
        return pa.array(list(rows), from_pandas=False)
    # A tenth of the time of from_pandas, and mostly no copy: Spark's rows are slices of one array.
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    whole = first.base
    if not isinstance(whole, np.ndarray) or whole.size != offsets[-1] or any(row.base is not whole for row in rows):
        whole = np.concatenate(rows)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(whole.reshape(-1)))


def _forward(scorer: Scorer, forward: Callable[..., list[Any]], arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What comes out, by field; arrays of [rows, ...]."""
    parts: list[list[np.ndarray]] = []
    for start in range(0, max(len(arrays[0]), 1), scorer.batch_size):
        batch = [array[start : start + scorer.batch_size] for array in arrays]
        tensors = [tensor.numpy() for tensor in forward(*batch)]
        outputs, taps = tensors[: len(scorer.heads)], tensors[len(scorer.heads) :]
        columns = [tap.reshape(len(tap), math.prod(tap.shape[1:])).astype(np.float64) for tap in taps]
        wanted = {index for index, _ in scorer.wanted}
        predicted = {index: predictions(scorer.heads[index], outputs[index]) for index in wanted}
        parts.append(columns + [predicted[index][kind] for index, kind in scorer.wanted])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _frame(scorer: Scorer, outputs: list[np.ndarray], bad: np.ndarray) -> pd.DataFrame:
    """What comes out as Spark takes it: bad rows are empty where they are to be skipped, else NaN."""
    skip = scorer.handle_invalid == "skip"
    if bad.any() and not skip:
        for values in outputs:
            values[bad] = np.nan
    frame = _arrow_frame()
    return frame({name: _arrow_series(values, bad & skip) for name, values in zip(scorer.fields, outputs, strict=True)})


def _arrow_series(values: np.ndarray, empty: np.ndarray) -> pd.api.extensions.ExtensionArray:
    import pandas as pd

    array = as_list_array(values, empty) if values.ndim > 1 else pa.array(values, mask=empty, from_pandas=False)
    return pd.arrays.ArrowExtensionArray(array)


@functools.cache
def _arrow_frame() -> type[pd.DataFrame]:
    """A DataFrame whose Arrow columns Spark takes as they are.

    Spark turns every row of an array column into a Python list first, by Series.apply, which takes more time than the
    network; Arrow arrays need none of it, and keep NaN apart from null.
    """
    import pandas as pd

    class ArrowSeries(pd.Series):
        @property
        def _constructor(self) -> Any:
            return ArrowSeries

        def apply(self, *_: Any, **__: Any) -> Any:
            return self

    class ArrowFrame(pd.DataFrame):
        @property
        def _constructor(self) -> Any:  # Spark 4.3 puts the columns in its own order first, which makes a new frame
            return ArrowFrame

        @property
        def _constructor_sliced(self) -> Any:
            return ArrowSeries

    return ArrowFrame


# ── the network ───────────────────────────────────────────────────────────────────────────────────────────────────────

_networks: OrderedDict[tuple[str, tuple[str, ...]], Callable[..., list[Any]]] = OrderedDict()
_loading = threading.Lock()


def _loaded(scorer: Scorer) -> Callable[..., list[Any]]:
    """The network's forward pass: loaded by the first task of this Python worker, kept for the next ones."""
    key = (scorer.digest, scorer.layers)
    with _loading:
        if key not in _networks:
            _networks[key] = _load(scorer)
            while len(_networks) > KEPT:
                _networks.popitem(last=False)
        _networks.move_to_end(key)
        return _networks[key]


def _load(scorer: Scorer) -> Callable[..., list[Any]]:
    limit_devices()
    return forward_pass(load_model(scorer.archive, scorer.modules), scorer.layers)


def limit_devices() -> None:
    """Let TensorFlow use this task's cores, and the GPU that Spark gave the task, and no more."""
    visible = gpus.show_to_task()
    tf = import_tensorflow()

    try:  # a task takes spark.task.cpus cores, which Spark tells its Python workers by this name
        tf.config.threading.set_intra_op_parallelism_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
        tf.config.threading.set_inter_op_parallelism_threads(1)
        if not visible:
            tf.config.set_visible_devices([], "GPU")  # they may be those of ranks
    except RuntimeError:
        pass  # TensorFlow runs in this worker already
