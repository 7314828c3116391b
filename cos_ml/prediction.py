"""What a model predicts of one row on the driver, and what it knows of its classes (driver side)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
from pyspark.ml import PredictionModel
from pyspark.ml.linalg import DenseVector, SparseVector, Vector

from cos_ml.data.columns import Column, decode, match_lengths
from cos_ml.data.names import VECTOR_PARTS
from cos_ml.data.ragged import cut
from cos_ml.data.spool import raise_on_invalid
from cos_ml.errors import InvalidInputError
from cos_ml.network import checks
from cos_ml.network.archive import Network, Tensor, load_model
from cos_ml.network.forward import ForwardPass
from cos_ml.network.outputs import OutputKind, num_classes, output_kinds, predictions
from cos_ml.network.signature import input_columns, vector_inputs, with_vectors

if TYPE_CHECKING:
    from cos_ml.params import ModelParams

__all__ = ["RowPredictor", "class_labels", "kinds_of", "labels_in_metadata"]

# Of networks that have predicted a row, for as long as a model has them.
_loaded: WeakKeyDictionary[Network, ForwardPass] = WeakKeyDictionary()


class RowPredictor(PredictionModel[Any]):
    """The methods that Spark's models of a regression or a classification have besides ``transform``.

    They are about the network's first output, that of ``predictionCol``.
    """

    @property
    def numFeatures(self) -> int:
        """The number of values in a row of the network's inputs; -1 if it is unknown."""
        shapes = [tensor.shape for tensor in self._network().inputs] if self.isSet("model") else [(None,)]
        known = [[side for side in shape if side is not None] for shape in shapes]
        return sum(map(math.prod, known)) if known == [list(shape) for shape in shapes] else -1

    @property
    def numClasses(self) -> int:
        """The number of classes; as Spark's regression models, a model that is no classifier has no such attribute."""
        classes = self._num_classes()
        if classes is None:
            raise AttributeError(f"{self.uid} has no numClasses: it is no classifier.")
        return classes

    def predict(self, value: Any) -> Any:
        """The prediction for one row, computed on the driver.

        Args:
            value: the features: a Vector, an array of numbers, a number, bytes or a string, as in a column; for a
                network of several inputs a tuple with one for each.

        Returns:
            float: the class, or a regressor's number; a Vector where ``transform`` writes one.

        Raises:
            InvalidInputError: the features do not fit the network; with ``handleInvalid="keep"`` NaN is returned for
                what ``transform`` takes for an invalid row.
        """
        prediction = self._predicted(value)["prediction"]
        return DenseVector(prediction) if prediction.ndim else float(prediction)

    def predictRaw(self, value: Any) -> DenseVector:
        """A classifier's logits or log-probabilities for one row; see ``predict``."""
        return DenseVector(self._predicted(value, "predictRaw")["rawPrediction"])

    def predictProbability(self, value: Any) -> DenseVector:
        """A classifier's probabilities for one row; see ``predict``."""
        return DenseVector(self._predicted(value, "predictProbability")["probability"])

    def __repr__(self) -> str:
        classes = self._num_classes()
        facts = {"uid": self.uid, "numClasses": classes, "numFeatures": self.numFeatures}
        known = ", ".join(f"{name}={value}" for name, value in facts.items() if value not in (None, -1))
        return f"{type(self).__name__}: {known}"

    def _network(self) -> Network:
        """The network of this model, whose Param model is set."""
        raise NotImplementedError

    def _num_classes(self) -> int | None:
        network = self._network() if self.isSet("model") else None
        if network is None or not network.outputs:
            return None
        return num_classes(network.outputs[0], kinds_of(self, network)[0])

    def _predicted(self, value: Any, method: str = "") -> dict[str, np.ndarray]:
        """The values of the first output's columns for one row."""
        params: Any = self
        network = self._network()
        checks.check_call(network, "predict")
        kind = kinds_of(self, network)[0]
        class_labels(params, network.outputs[0], kind)
        if method and num_classes(network.outputs[0], kind) is None:
            raise InvalidInputError(f"{method} needs a classifier: output {network.outputs[0].name!r} is none.")
        names = params.input_columns()
        if len(network.inputs) > 1:
            names = with_vectors(network, list(vector_inputs(network)))
        elif len(names) > 1:  # which are joined
            names = [params.getFeaturesCol()]
        arrays, errors = _row(input_columns(network, names, params.getPaddingValue()), value)
        if errors:
            raise_on_invalid(errors, "keep" if params.getHandleInvalid() == "keep" else "error")
        if network not in _loaded:
            _loaded[network] = ForwardPass(load_model(network.archive, network.modules), ())
            _loaded[network].begin((params.getSeed(),))
        result = _loaded[network](*cut(arrays, slice(0, 1)).values())[0].numpy()
        found = predictions(kind, result, params.value_or_none(params.thresholds) or ())
        return {name: np.where(bool(errors), np.nan, values[0]) for name, values in found.items()}


def kinds_of(model: Any, network: Network) -> tuple[OutputKind, ...]:
    """The kind of prediction of each output of a model's network: a training's loss tells logits from numbers."""
    return output_kinds(network.outputs, checks.loss_of(network, model.compiled or {}))


def class_labels(
    params: ModelParams, output: Tensor, kind: str, metadata: dict[str, Any] | None = None
) -> list[str] | None:
    """The names of the classes: the Param labels, else those in the metadata of a label column that names each class.

    Raises:
        InvalidInputError: labels or thresholds are not one for each class of the output, or there are no labels for
            the Param predictedLabelCol.
    """
    classes = num_classes(output, kind)
    for param in (params.labels, params.thresholds):
        given = params.getOrDefault(param) if params.isDefined(param) else None
        if given is not None and classes is None:
            raise InvalidInputError(
                f"Param {param.name}: expected a classifier, but output {output.name!r} computes no probabilities of "
                f"classes, received {given}. Unset it."
            )
        if given is not None and len(given) != classes:
            raise InvalidInputError(
                f"Param {param.name}: expected one for each of the {classes} classes of output {output.name!r}, "
                f"received {len(given)}: {given}."
            )
    labels = params.value_or_none(params.labels)
    if labels is None and classes is not None:
        labels = labels_in_metadata(metadata or {}, classes)
    if labels is None and params.isDefined(params.predictedLabelCol) and params.getPredictedLabelCol():
        raise InvalidInputError(
            f"Param predictedLabelCol: there are no names of {classes or 'the'} classes. Set the Param labels, or fit "
            "to a label column from StringIndexer, whose metadata has them."
        )
    return labels


def labels_in_metadata(metadata: dict[str, Any], classes: int) -> list[str] | None:
    """The names of so many classes in the metadata of a column from StringIndexer or OneHotEncoder, if it has them."""
    attributes = metadata.get("ml_attr") or {}
    values = attributes.get("vals")
    if values is None and attributes.get("num_attrs") == classes:
        slots = [slot for kind in attributes.get("attrs", {}).values() for slot in kind]
        values = [slot.get("name") for slot in sorted(slots, key=lambda slot: slot["idx"])]
    if not values or None in values or len(values) != classes or len(set(values)) < classes:
        return None
    return [str(value) for value in values]


def _row(columns: tuple[Column, ...], value: Any) -> tuple[dict[str, Any], list[Any]]:
    """The arrays of one row by input, and what is wrong with it."""
    values = value if len(columns) > 1 and isinstance(value, (tuple, list)) else (value,)
    wholes = [column.name.removesuffix(".indices").removesuffix(".values") for column in columns]
    if len(values) == len(set(wholes)) < len(columns):  # a Vector for both its indices and its values
        by_name = dict(zip(dict.fromkeys(wholes), values, strict=True))
        values = [by_name[name] for name in wholes]
    if len(values) != len(columns):
        raise InvalidInputError(
            f"Expected a tuple of values for the network's inputs {list(dict.fromkeys(wholes))}, received "
            f"{type(value).__name__}."
        )
    arrays, errors = {}, []
    for column, one in zip(columns, values, strict=True):
        arrays[column.field], found = decode(_arrow(one, column), column)
        errors += found
    return arrays, errors + match_lengths(arrays, columns, errors)


def _arrow(value: Any, column: Column) -> pa.Array:
    """One value as the Arrow column that scoring tasks get."""
    if isinstance(value, Vector):
        value = _part(value, column.name.rpartition(".")[2])
    if value is None or (isinstance(value, str) and column.dtype == "string"):
        return pa.array([value], pa.large_string() if column.dtype == "string" else None)
    if isinstance(value, (bytes, bytearray)):
        return pa.array([bytes(value)], pa.binary())
    try:
        numbers = np.asarray(value)
    except ValueError:
        numbers = np.asarray(None)
    strings = column.dtype == "string"
    if numbers.dtype.kind not in ("U" if strings else "biuf"):
        raise InvalidInputError(
            f"Expected {'strings' if strings else 'a Vector or numbers'} for {column.name!r}, received {value!r:.60}."
        )
    if column.dtype.startswith(("int", "uint")):
        return _integers(np.asarray(value, object), column.dtype)  # as doubles they would lose digits
    if column.dtype.startswith("float"):
        with np.errstate(over="ignore"):
            numbers = numbers.astype(column.dtype)
    return pa.array([numbers.reshape(-1) if numbers.ndim else numbers.item()])


def _part(vector: Vector, part: str) -> np.ndarray:
    """The indices or the values of the entries of a Vector that are not 0; for another ``part`` all of its numbers."""
    if part not in VECTOR_PARTS:
        return vector.toArray()  # type: ignore[no-any-return]
    values = vector.values if isinstance(vector, SparseVector) else vector.toArray()
    indices = vector.indices if isinstance(vector, SparseVector) else np.arange(len(values))
    return np.asarray(indices if part == "indices" else values)[values != 0]


def _integers(numbers: np.ndarray, dtype: str) -> pa.Array:
    """Numbers as integers of a type; null for what it can't hold."""
    limits = np.iinfo(dtype)
    values = numbers.reshape(-1).tolist()
    held = [int(one) if limits.min <= one <= limits.max and one == int(one) else None for one in values]
    target = pa.from_numpy_dtype(np.dtype(dtype))
    return pa.array([held], pa.list_(target)) if numbers.ndim else pa.array(held, target)
