"""A case, trained by plain Keras and by ranks of the product: from Params and a schema to the archive that comes back.

The way through the product is a fit's own, without Spark: ``DeepNetEstimator`` checks the Params and makes the spec,
the rows are spooled as Arrow batches, and the rank trains what the spec says.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import types as T

from cos_ml import DeepNetEstimator, callback
from cos_ml.data import frames
from cos_ml.data.columns import Column, as_list_array
from cos_ml.data.spool import PARTS, Spool
from cos_ml.network.archive import dump_model, load_model
from cos_ml.rank import train
from cos_ml.rank.callbacks import ReseedCallback
from cos_ml.rank.candidate import Candidate
from cos_ml.rank.context import PhaseTimer, RankContext
from cos_ml.rank.feed import spooled_rows
from cos_ml.rank.grid import KeptTrainers
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.spec import TrainSpec
from tests.conformance.case import BATCH, Case, Data
from tests.support.spools import inherited

EPOCHS = 2

SPARK = {
    "f4": T.FloatType(), "f8": T.DoubleType(), "f2": T.FloatType(), "i1": T.ByteType(), "i2": T.ShortType(),
    "i4": T.IntegerType(), "i8": T.LongType(), "u1": T.ShortType(), "u2": T.IntegerType(), "u4": T.LongType(),
    "b1": T.BooleanType(),
}  # fmt: skip
SENT = {"float16": "float32", "uint8": "int16", "uint16": "int32", "uint32": "int64"}  # as Spark hands them over


class Session:
    """What the driver asks of Spark before the job: settings, which are the default, and where files are."""

    conf: ClassVar[dict[str, str]] = {}

    @property
    def read(self) -> Session:
        return self

    def text(self, names: list[str]) -> Any:
        raise AnalysisException(f"Path does not exist: file:{os.getcwd()}/{names[0]}.")


@dataclass(frozen=True)
class Frame:
    """What the driver looks at in a DataFrame before the job."""

    schema: T.StructType
    isStreaming: bool = False
    sparkSession = Session()

    @property
    def columns(self) -> list[str]:
        return self.schema.fieldNames()

    @property
    def dtypes(self) -> list[tuple[str, str]]:
        return [(one.name, one.dataType.simpleString()) for one in self.schema]


def named(data: Data) -> tuple[list[str], list[str], dict[str, np.ndarray]]:
    """The names of the input and label columns, and all columns by name."""
    inputs, labels = _by_name(data.x, "c"), _by_name(data.y, "t")
    columns = {name: rows for name, rows in (inputs | labels).items() if rows is not None}
    if data.w is not None:
        columns["w"] = data.w
    return list(inputs), [name for name, rows in labels.items() if rows is not None], columns


def _by_name(arrays: Any, prefix: str) -> dict[str, Any]:
    if arrays is None:
        return {}
    if isinstance(arrays, dict):
        return dict(arrays)
    arrays = arrays if isinstance(arrays, (list, tuple)) else [arrays]
    return {f"{prefix}{index}": rows for index, rows in enumerate(arrays)}


def frame(columns: dict[str, np.ndarray]) -> Frame:
    """The schema that a user's DataFrame of these columns has: numbers, or flat arrays of numbers."""
    fields = [T.StructField("held", T.BooleanType())]
    for name, rows in columns.items():
        first = np.asarray(rows[0])
        element = T.StringType() if first.dtype.kind in "OU" else SPARK[first.dtype.str[1:]]
        single = first.size == 1 and rows.dtype != object
        fields.append(T.StructField(name, element if single else T.ArrayType(element)))
    return Frame(T.StructType(fields))


def arrow(column: Column, rows: np.ndarray) -> pa.Array:
    """The rows of a column as Spark sends them: a number each, or flat lists of numbers."""
    dtype = SENT.get(column.dtype, column.dtype)
    if column.dtype == "string":
        return pa.array([row.tolist() for row in rows] if rows.ndim > 1 else rows.tolist())
    if rows.dtype == object:
        return pa.array([row.astype(dtype).ravel() for row in rows], pa.list_(pa.from_numpy_dtype(dtype)))
    flat = rows.astype(dtype).reshape(len(rows), math.prod(rows.shape[1:]))
    return pa.array(flat[:, 0]) if flat.shape[1] == 1 else as_list_array(np.ascontiguousarray(flat))


# ── the product ───────────────────────────────────────────────────────────────────────────────────────────────────────


def without_spark() -> None:
    """Leave out the one check of the driver that builds Spark expressions, which needs a JVM."""
    frames.select_columns = lambda df, spec: None


def estimator(case: Case, ranks: int, folder: Path) -> DeepNetEstimator:
    """The estimator that trains a case as plain Keras does."""
    inputs, labels, columns = named(case.data(np.random.default_rng(0), 4))
    params: dict[str, Any] = {
        "inputCols": inputs, "validationIndicatorCol": "held" if case.valid else None, "shuffle": False,
        "batchSize": global_batch(case) // ranks if case.split == "even" else global_batch(case),
        "epochs": EPOCHS, "numTrainWorkers": ranks, "weightCol": "w" if "w" in columns else None,
        "callbacks": [callback(kind, **arguments) for kind, arguments in case.callbacks(str(folder))],
    }  # fmt: skip
    if labels:
        params["labelCols"] = labels
    if case.steps is not None:
        params["stepsPerExecution"] = case.steps
    return DeepNetEstimator(**params | {"model": fresh(case.build)} | case.params())


def candidate(case: Case, ranks: int, folder: Path) -> tuple[TrainSpec, Any]:
    """What the driver sends to the ranks: the spec, as they read it, and the network; after all of its checks."""
    _, _, columns = named(case.data(np.random.default_rng(0), 4))
    made = estimator(case, ranks, folder)._candidate(frame(columns))
    return TrainSpec.loads(made.spec.dumps()), made.network


def fresh(build: Any) -> Any:
    """A network with the weights and the automatic names that it has in a new process."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(7)
    return build()


def global_batch(case: Case) -> int:
    return 2 * BATCH if case.split == "even" else BATCH


def owners(count: int, ranks: int, case: Case) -> np.ndarray:
    """The rank of each row: of each global batch the first rank has the first rows, up to its batch size."""
    if ranks == 1 or case.split == "first":
        return np.zeros(count, int)
    return (np.arange(count) % (2 * BATCH)) // BATCH


def shares(case: Case, ranks: int) -> list[dict[str, np.ndarray]]:
    """The rows of each rank, by column; "held" marks validation rows."""
    _, _, columns = named(case.data(np.random.default_rng(1), case.train + case.valid))
    parts = np.append(owners(case.train, ranks, case), owners(case.valid, ranks, case))
    columns["held"] = np.arange(case.train + case.valid) >= case.train
    return [{name: rows[parts == rank] for name, rows in columns.items()} for rank in range(ranks)]


def spooled(case: Case, spec: TrainSpec, ranks: int) -> list[Spool]:
    """The rows of each rank, as its barrier task spools them."""
    spools = []
    for rows in shares(case, ranks):
        arrays = {column.field: arrow(column, rows[column.name]) for column in spec.columns}
        if spec.validation:
            arrays[spec.validation.field] = pa.array(rows[spec.validation.name])
        batch = pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))
        spools.append(Spool(spec))
        spools[-1].fill([batch] if batch.num_rows else [])
    return spools


def product(case: Case, communicator: Any, rank: int, folder: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The weights and the history after training as one of ``communicator.size`` ranks."""
    spec, network = candidate(case, communicator.size, folder)
    with contextlib.ExitStack() as stack:
        spools = [stack.enter_context(contextlib.closing(one)) for one in spooled(case, spec, communicator.size)]
        tasks = [
            {
                "rank": index, "partition": index, "rows": spool.rows, "digest": spool.digest,
                "skipped": spool.skipped, "shapes": spool.shapes, "dtypes": spool.dtypes,
            }
            for index, spool in enumerate(spools)
        ]  # fmt: skip
        heartbeat = stack.enter_context(contextlib.closing(Heartbeat(io.StringIO())))
        context = RankContext(communicator, rank, tasks, PhaseTimer(), heartbeat, {"candidate": 1})
        archives = {str(spec.network): network.archive}
        rows = {part: spooled_rows(part, tasks, rank, inherited(spools[rank], part)) for part in PARTS}
        load = functools.partial(train._load, spec, archives)
        one = stack.enter_context(contextlib.closing(Candidate(load, spec, context, rows, KeptTrainers([spec]))))
        one.advance(sys.maxsize)
        model, summary = one.end()
    returned = load_model(dump_model(model, like=network.archive), spec.modules)  # as the driver does
    return weights_of(returned), json.loads(json.dumps(summary))["history"]


# ── plain Keras ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Batches(keras.utils.PyDataset):
    """Global batches; rows of different lengths are padded to the longest of the batch."""

    def __init__(self, data: Data, size: int, padding: float = 0.0) -> None:
        super().__init__()
        self.data, self.size, self.padding = data, size, padding

    def __len__(self) -> int:
        return -(-len(_first(self.data.x)) // self.size)

    def __getitem__(self, index: int) -> Any:
        part = slice(index * self.size, (index + 1) * self.size)
        cut = _mapped(lambda rows: padded(rows[part]), self.data)
        return tuple(one for one in (cut.x, cut.y, cut.w) if one is not None)


def padded(rows: np.ndarray) -> np.ndarray:
    """Rows of one length: zeros at the end of the shorter ones."""
    if rows.dtype != object:
        return rows
    found = np.zeros((len(rows), max(map(len, rows)), *rows[0].shape[1:]), rows[0].dtype)
    for index, row in enumerate(rows):
        found[index, : len(row)] = row
    return found


def _first(arrays: Any) -> Any:
    return keras.tree.flatten(arrays)[0]


def _by_batch(arrays: Any) -> bool:
    """Whether Keras has to be given batches: of rows of different lengths, and of float64, which it else rounds."""
    found = [] if arrays is None else keras.tree.flatten(arrays)
    return any(one.dtype == "float64" or (one.dtype == object and not isinstance(one[0], str)) for one in found)


def _mapped(change: Any, data: Data) -> Data:
    return Data(*(None if one is None else keras.tree.map_structure(change, one) for one in (data.x, data.y, data.w)))


def plain(case: Case, folder: Path) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, Any]]:
    """The weights before and after, and the history, of Keras's own ``fit`` on the global batches."""
    model = fresh(case.plain or case.build)
    before = weights_of(model)
    # Nothing to trace, and the same numbers but for losses of single outputs, which then go by rows.
    model.run_eagerly = model.run_eagerly or (case.steps == 1 and len(getattr(model, "outputs", None) or "12") == 1)
    data = case.data(np.random.default_rng(1), case.train + case.valid)
    unused = np.zeros((case.train + case.valid, 1), "float32")  # Keras wants a label for each output
    data = Data(data.x, [unused if y is None else y for y in data.y] if isinstance(data.y, list) else data.y, data.w)
    training = _weighted(model, _mapped(lambda rows: rows[: case.train], data))
    validation = _weighted(model, _mapped(lambda rows: rows[case.train :], data)) if case.valid else None
    size = global_batch(case)
    callbacks = [made(kind, arguments) for kind, arguments in case.callbacks(str(folder))]
    if case.reseeded:
        callbacks.append(ReseedCallback(0, 0, None))
    options = {"epochs": EPOCHS, "verbose": 0, "callbacks": callbacks, "shuffle": False}
    if _by_batch(data.x) or _by_batch(data.y):
        history = model.fit(
            Batches(training, size), validation_data=validation and Batches(validation, size), **options
        )
    else:
        given = validation and tuple(one for one in (validation.x, validation.y, validation.w) if one is not None)
        history = model.fit(
            training.x, training.y, sample_weight=training.w, batch_size=size, validation_data=given,
            validation_batch_size=size, **options,
        )  # fmt: skip
    return before, weights_of(model), {name: np.asarray(found).tolist() for name, found in history.history.items()}


def made(kind: Any, arguments: dict[str, Any]) -> Any:
    """A callback of plain Keras."""
    arguments = {name: value for name, value in arguments.items() if name != "ranks"}
    return (getattr(keras.callbacks, kind) if isinstance(kind, str) else kind)(**arguments)


def _weighted(model: Any, data: Data) -> Data:
    """The rows with weights whose mean is 1, one array for each output, of the rank of its loss."""
    if data.w is None:
        return data
    weights = (data.w.astype("float64") / data.w.astype("float64").mean()).astype("float32")
    outputs = model.outputs if isinstance(getattr(model, "outputs", None), list) else data.y
    shaped = [weights.reshape(-1, *[1] * max(len(one.shape) - 2, 0)) for one in keras.tree.flatten(outputs)]
    return Data(data.x, data.y, shaped[0] if len(shaped) == 1 else keras.tree.pack_sequence_as(data.y, shaped))


def weights_of(model: Any) -> list[np.ndarray]:
    """The weights as float64, which holds those of any type."""
    return [np.asarray(keras.ops.cast(weight.value, "float64")) for weight in model.weights]
