"""Load a network once per Python worker, and score batches of rows (scoring task side)."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext

from cos_ml import broadcasts, gpus, python_worker
from cos_ml.data.columns import Column, RowError, as_list_array, decode, match_lengths, renumber
from cos_ml.data.ragged import Ragged, cut, offsets_of
from cos_ml.data.raw_columns import convert_arguments
from cos_ml.data.spool import raise_on_invalid
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import load_model
from cos_ml.network.forward import ForwardPass
from cos_ml.network.integrated_gradients import Attribution, IntegratedGradients
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.network.outputs import OutputKind, predictions
from cos_ml.network.swap import depends_on_variables_alone, load_weights, shared_config
from cos_ml.network.untrusted import imported_on_demand
from cos_ml.scoring.ahead import Ahead

if TYPE_CHECKING:
    from cos_ml.broadcasts import Archive

__all__ = ["MAX_NETWORKS", "Scorer", "arrays_of", "in_use", "limit_devices", "partition", "score", "score_arguments"]

BATCH_BYTES = 16 << 20  # of rows that pass the network, and are returned to Spark, at a time
FIRST_ROWS = 64  # at first, while the size of the network's outputs is unknown
MAX_NETWORKS = 4  # that a Python worker keeps loaded, for pipelines and cross-validation


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
        thresholds: those of the classes of the first output, or none.
        seed: of the draws of layers that are random at inference.
        single: whether outputs with several numbers are returned as float32, not float64.
        attribution: what is attributed to inputs; None for nothing. ``wanted`` then has the place of each such input,
            and "attributions".
    """

    archive: Archive
    digest: str
    modules: tuple[str, ...]
    inputs: tuple[Column, ...]
    layers: tuple[str, ...]
    kinds: tuple[OutputKind, ...]
    wanted: tuple[tuple[int, str], ...]
    batch_size: int
    handle_invalid: str
    thresholds: tuple[float, ...] = ()
    seed: int = 0
    single: bool = False
    attribution: Attribution | None = None

    @property
    def fields(self) -> list[str]:
        """The names of the computed columns, in order: f0, f1, ... (layers), then prediction, prediction1 and so on."""
        features = [f"f{index}" for index in range(len(self.layers))]
        return features + [f"{what}{index or ''}" for index, what in self.wanted]


def score(scorer: Scorer, batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.StructArray]:
    """Score Arrow batches, in order: one row of ``scorer.fields`` for every row, in batches of a few MB."""
    with in_use(scorer) as forward, contextlib.closing(Ahead(_decoded(scorer, batches))) as rows:
        forward.begin((scorer.seed, partition()))
        row_bytes, fresh = 0.0, not forward.shapes
        rows.start()
        while (decoded := rows.result()) is not None:
            is_ahead = row_bytes > 0  # else it depends on these outputs how many rows come next
            if is_ahead:
                rows.start(row_bytes)
            outputs = _forward(scorer, forward, decoded[0])
            size = sum(one.values.nbytes if isinstance(one, Ragged) else one.nbytes for one in outputs)
            row_bytes = size / max(len(decoded[1]), 1)
            if not is_ahead:
                rows.start(row_bytes)
            if fresh:
                python_worker.freeze()
                fresh = False
            yield _struct(scorer, outputs, decoded[1])


def _decoded(
    scorer: Scorer, batches: Iterator[tuple[pa.Array, ...]]
) -> Generator[tuple[list[np.ndarray | Ragged], np.ndarray], float, None]:
    """What ``arrays_of`` makes of a few MB of rows at a time; it is sent the size of the outputs of a row."""
    first_row, row_bytes = 0, 0.0
    for values in batches:
        ends, start = np.sum([_ends(column) for column in values], axis=0), 0
        while start < len(ends) or not len(ends):
            stop = _stop(ends, start, row_bytes, scorer.batch_size)
            row_bytes = yield arrays_of(scorer, [column[start:stop] for column in values], first_row + start)
            start = stop
            if not len(ends):
                break
        first_row += len(ends)


def score_arguments(
    scorer: Scorer,
    names: tuple[str, ...],
    outputs: dict[str, str],
    named: tuple[str, ...],
    labels: tuple[str, ...],
    batches: Iterator[tuple[pa.Array, ...]],
) -> Iterator[pa.StructArray]:
    """``score`` for a SQL function, which gets its arguments as the query has them, not as ``expressions`` makes them.

    Args:
        scorer: what to compute.
        names: the names of the arguments.
        outputs: the fields to return, each with the one of ``scorer.fields`` that it is made of.
        named: those of them that hold the name of the predicted class, not its number.
        labels: the names of the classes.
        batches: the arguments' values.
    """

    def converted() -> Iterator[tuple[pa.Array, ...]]:
        for batch in batches:
            if len(batch) != len(names):
                raise InvalidInputError(
                    f"Wrong number of arguments: expected {len(names)} ({', '.join(names)}), received {len(batch)}."
                )
            yield convert_arguments(dict(zip(names, batch, strict=True)), scorer.inputs)

    for scored in score(scorer, converted()):
        arrays = [scored.field(scorer.fields.index(field)) for field in outputs.values()]
        found = [
            _labels(array, labels) if name in named else array for name, array in zip(outputs, arrays, strict=True)
        ]
        yield pa.StructArray.from_arrays(found, list(outputs))


def _labels(predictions: pa.Array, labels: tuple[str, ...]) -> pa.Array:
    """The names of predicted classes; null where none is."""
    numbers = predictions.to_numpy(zero_copy_only=False)
    none = np.isnan(numbers)
    return pa.array(labels, pa.string()).take(pa.array(np.where(none, 0, numbers).astype(np.int64), mask=none))


def partition() -> int:
    """The number of the partition that this task reads."""
    context = TaskContext.get()
    return context.partitionId() if context else 0


def _ends(values: pa.Array) -> np.ndarray:
    """int64 [rows]: where each row ends, if the rows' bytes lie end to end."""
    kind = values.type
    if pa.types.is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        ends = values.offsets.to_numpy()[1:].astype(np.int64)
        return (ends - values.offsets[0].as_py()) * kind.value_type.bit_width // 8
    if pa.types.is_binary(kind):
        return np.cumsum(pc.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.arange(1, len(values) + 1) * (values.nbytes // max(len(values), 1) + 1)


def _stop(ends: np.ndarray, start: int, row_bytes: float, batch_size: int) -> int:
    """Where to end the rows that begin at ``start``: neither they nor their outputs are much larger than BATCH_BYTES.

    Args:
        ends: where each row of the input ends, in bytes.
        start: the first row.
        row_bytes: the size of the outputs of a row; 0 for unknown.
        batch_size: rows per forward pass; more rows than that are a multiple of it.
    """
    before = ends[start - 1] if start else 0
    rows = int(np.searchsorted(ends, before + BATCH_BYTES, "right")) - start
    rows = min(rows, int(BATCH_BYTES / row_bytes) if row_bytes else FIRST_ROWS)
    if start + rows >= len(ends):
        return len(ends)
    return start + max(rows - rows % batch_size if rows > batch_size else rows, 1)


def arrays_of(
    scorer: Scorer, columns: Sequence[pa.Array], first_row: int
) -> tuple[list[np.ndarray | Ragged], np.ndarray]:
    """The inputs' arrays of [rows, ...], and a mask [rows] of the invalid rows."""
    arrays: dict[str, np.ndarray | Ragged] = {}
    errors: list[RowError] = []
    for values, column in zip(columns, scorer.inputs, strict=True):
        arrays[column.field], found = decode(_typed(values, column), column)
        errors += found
    errors += match_lengths(arrays, scorer.inputs, errors)
    if errors:
        raise_on_invalid(renumber(errors, first_row), scorer.handle_invalid)
    invalid = np.zeros(len(columns[0]), bool)
    invalid[[error.row for error in errors]] = True
    return list(arrays.values()), invalid


def _typed(values: pa.Array, column: Column) -> pa.Array:
    """The same values, with a type if they have none: a pandas UDF loses the type of a column of nulls."""
    if not pa.types.is_null(values.type):
        return values
    return pa.nulls(
        len(values), pa.list_(pa.string() if column.dtype == "string" else pa.from_numpy_dtype(np.dtype(column.dtype)))
    )


def _forward(scorer: Scorer, forward: ForwardPass, arrays: Sequence[np.ndarray | Ragged]) -> list[np.ndarray | Ragged]:
    """The values of ``scorer.fields``, each an array of [rows, ...], or a Ragged if rows have vectors of several sizes.

    Rows that differ in length are padded to the longest of their forward pass, and what the network computes for each
    step of theirs is cut to their own length again.
    """
    parts: list[list[np.ndarray | Ragged]] = []
    inputs = {str(index): array for index, array in enumerate(arrays)}
    for start in range(0, max(len(arrays[0]), 1), scorer.batch_size):
        rows = slice(start, start + scorer.batch_size)
        batch = list(cut(inputs, rows).values())
        tensors = [tensor.numpy() for tensor in forward(*batch)]
        lengths = [array[rows].lengths for array in arrays if isinstance(array, Ragged)]
        kinds = [*scorer.kinds, *[OutputKind.VECTOR] * len(scorer.layers)]
        wanted = {index for index, what in scorer.wanted if what != "attributions"}
        wanted |= set(range(len(scorer.kinds), len(kinds)))
        predicted: dict[int, dict[str, np.ndarray | Ragged]] = {}
        for index in wanted:
            thresholds = () if index else scorer.thresholds
            predicted[index] = _predictions(kinds[index], tensors[index], forward.shapes[index], lengths, thresholds)
        vectors = [predicted[index]["prediction"] for index in range(len(scorer.kinds), len(kinds))]
        for place, values in _attributions(scorer, forward, batch, [array[rows] for array in arrays], tensors[0]):
            predicted[place] = predicted.get(place, {}) | {"attributions": values}
        parts.append(vectors + [predicted[index][what] for index, what in scorer.wanted])
    return [_concatenated(column) for column in zip(*parts, strict=True)]


def _predictions(
    kind: OutputKind,
    result: np.ndarray,
    shape: tuple[int | None, ...],
    lengths: Sequence[np.ndarray],
    thresholds: Sequence[float],
) -> dict[str, np.ndarray | Ragged]:
    """``predictions`` without what was computed for padding, where a vector has a step for each step of its row.

    Args:
        kind: the kind of prediction.
        result: what the network has computed, [rows, ...].
        shape: the shape of a row, with None for a dimension that the network does not determine.
        lengths: the lengths of the rows of each input whose rows differ in length.
        thresholds: those of the classes.
    """
    same = len(lengths) > 0 and all((other == lengths[0]).all() for other in lengths)
    if kind == OutputKind.VECTOR and same and None in shape and len(result):
        axis, own = shape.index(None) + 1, lengths[0]
        count = result.shape[axis]
        if count == max(own.max(), 1) and not (own == count).all():
            sides = [count if side == axis else 1 for side in range(1, result.ndim)]
            real = (np.arange(count) < own[:, None]).reshape(len(own), *sides)
            sizes = own * (math.prod(result.shape[1:]) // count)
            values = result[np.broadcast_to(real, result.shape)].astype(np.float64)
            return {"prediction": Ragged(values, offsets_of(sizes), (None,))}
    return dict(predictions(kind, result, thresholds))


def _attributions(
    scorer: Scorer,
    forward: ForwardPass,
    batch: Sequence[np.ndarray],
    rows: Sequence[np.ndarray | Ragged],
    output: np.ndarray,
) -> Iterator[tuple[int, np.ndarray | Ragged]]:
    """What each value of the inputs contributes to the first output, by the place of the input.

    Args:
        scorer: what to compute.
        forward: the network's forward pass.
        batch: the inputs as the network takes them.
        rows: the same, before those of different lengths were padded.
        output: the network's first output, [rows, ...].
    """
    attribution = scorer.attribution
    if attribution is None:
        return
    if attribution not in (known := _explainers.setdefault(forward, {})):
        known[attribution] = IntegratedGradients(forward.network, attribution)
    targets = np.full(len(output), attribution.target or 0, np.int32)
    if attribution.target is None:
        predicted = predictions(scorer.kinds[0], output, scorer.thresholds)["prediction"]
        targets = np.nan_to_num(predicted).astype(np.int32)
    for place, found in zip(attribution.places, known[attribution](targets, *batch), strict=True):
        own = rows[place]
        lengths = [own.lengths] if isinstance(own, Ragged) else []
        shape = scorer.inputs[place].shape
        yield place, _predictions(OutputKind.VECTOR, found, shape, lengths, ())["prediction"]


def _concatenated(parts: Sequence[np.ndarray | Ragged]) -> np.ndarray | Ragged:
    """The rows of all parts; a Ragged if they have vectors of several sizes."""
    arrays = [part for part in parts if not isinstance(part, Ragged)]
    if len(arrays) == len(parts) and len({part.shape[1:] for part in arrays}) == 1:
        return np.concatenate(arrays)
    return Ragged.join([part if isinstance(part, Ragged) else _as_ragged(part) for part in parts])


def _as_ragged(rows: np.ndarray) -> Ragged:
    return Ragged(rows.reshape(-1), offsets_of(np.full(len(rows), math.prod(rows.shape[1:]))), (None,))


def _struct(scorer: Scorer, outputs: list[np.ndarray | Ragged], invalid: np.ndarray) -> pa.StructArray:
    """The outputs as Spark expects them; invalid rows are null if they are skipped, else NaN."""
    skip = scorer.handle_invalid == "skip"
    if invalid.any() and not skip:
        for values in outputs:
            if isinstance(values, Ragged):
                values.values[np.repeat(invalid, np.diff(values.offsets))] = np.nan
            else:
                values[invalid] = np.nan
    empty = invalid & skip
    arrays = [
        as_list_array(_single(values) if scorer.single else values, empty)
        if isinstance(values, Ragged) or values.ndim > 1
        else pa.array(values, mask=empty, from_pandas=False)
        for values in outputs
    ]
    return pa.StructArray.from_arrays(arrays, scorer.fields)


def _single(rows: np.ndarray | Ragged) -> np.ndarray | Ragged:
    with np.errstate(over="ignore"):
        if isinstance(rows, Ragged):
            return replace(rows, values=rows.values.astype(np.float32))
        return rows.astype(np.float32)


# ── the network ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Kept:
    """A network that a Python worker keeps loaded.

    Attributes:
        forward: its forward pass.
        config: its configuration, if networks with the same one differ in the values of variables alone; else empty.
        users: the number of tasks that use it now.
    """

    forward: ForwardPass
    config: str = ""
    users: int = 0


# The functions that explain predictions, for as long as their networks are kept.
_explainers: WeakKeyDictionary[ForwardPass, dict[Attribution, IntegratedGradients]] = WeakKeyDictionary()

networks: OrderedDict[tuple[str, tuple[str, ...]], _Kept] = OrderedDict()  # of this Python worker
_replaced: set[tuple[str, tuple[str, ...]]] = set()  # the networks whose place another one has taken
_loading = threading.RLock()  # a generator that is dropped may end anywhere, also while this thread holds it


@contextlib.contextmanager
def in_use(scorer: Scorer) -> Iterator[ForwardPass]:
    """The network's forward pass, loaded by the first task of this Python worker and kept for later ones.

    A new network takes the place of a loaded one that has the same configuration and that no task uses, as do the
    candidates of a grid: the graph stays, and is given the new weights. If the earlier network comes back, it is loaded
    beside the new one, so that two in turns both stay.
    """
    python_worker.spare_archives()
    key = (scorer.digest, scorer.layers)
    with _loading:
        if key not in networks:
            limit_devices()
            networks[key] = _load(key, broadcasts.read(scorer.archive), scorer.modules)
            if len(networks) > MAX_NETWORKS:
                networks.popitem(last=False)
        networks.move_to_end(key)
        kept = networks[key]
        kept.users += 1
    try:
        yield kept.forward
    finally:
        with _loading:
            kept.users -= 1


def _load(key: tuple[str, tuple[str, ...]], archive: bytes, modules: Sequence[str]) -> _Kept:
    config = "" if imported_on_demand(modules) else shared_config(archive)
    for other, kept in networks.items():
        if config and kept.config == config and other[1] == key[1] and not kept.users and key not in _replaced:
            del networks[other]
            _replaced.add(other)
            with contextlib.suppress(Exception):  # damage, about which load_model says more
                load_weights(archive, kept.forward.network)
                return kept
            break
    network = load_model(archive, modules)
    return _Kept(ForwardPass(network, key[1]), config if depends_on_variables_alone(network) else "")


def limit_devices() -> None:
    """Limit TensorFlow to this task's cores, and to the GPU that Spark assigned to it, if any."""
    visible = gpus.show_to_task()
    tf = import_tensorflow()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(python_worker.cores())
        tf.config.threading.set_inter_op_parallelism_threads(1)
        if not visible:
            tf.config.set_visible_devices([], "GPU")  # ranks may be using them
    except RuntimeError:
        pass  # TensorFlow has already started in this worker
