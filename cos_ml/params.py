"""How Params are declared, and the Params that estimator and model share (driver side)."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any, TypeVar

from pyspark.ml.param import Param, Params, shared
from pyspark.sql import DataFrame

from cos_ml.accessors import ModelAccessors
from cos_ml.converters import class_labels, class_thresholds, finite_number, integer, names, one_of, string
from cos_ml.data.columns import Column
from cos_ml.data.names import find
from cos_ml.errors import InvalidInputError, ParamTypeError
from cos_ml.network import checks
from cos_ml.network.archive import Network, load_model, network_from_file
from cos_ml.network.signature import label_columns

__all__ = ["DeclaredParam", "ModelParams", "StageParams"]

T = TypeVar("T")


class DeclaredParam(Param[T]):
    """A Spark Param with everything that follows from it, declared once as an attribute of a StageParams class.

    The attribute names the Param and gives its class a getter and a setter, unless the class defines them; a class
    with ``setters=False`` leaves the setters to a subclass with ``setters=True``. ``docs/params.md`` and
    ``accessors.pyi`` are generated from the declarations; a test compares the constructors' signatures.

    Args:
        convert: converts what a user sets, or raises TypeError or ValueError with what it expected; its return
            annotation is the type of the value.
        doc: what the Param means, for ``explainParams``, the reference and docstrings.
        default: the default value; None for a Param that is unset by default.
        accepts: the type that users may set, as source text, where it is wider than that of the value.
        spec: the field of TrainSpec that takes the value unchanged.
        identifies: whether the Param decides what a fit computes: a fit resumes only from checkpoints of a fit that had
            the same value.
    """

    def __init__(
        self,
        convert: Callable[[Any], T],
        doc: str,
        default: Any = None,
        *,
        accepts: str | None = None,
        spec: str | None = None,
        identifies: bool = False,
    ) -> None:
        super().__init__(Params._dummy(), "", doc, self._converted)
        self.convert, self.default, self.spec, self.identifies = convert, default, spec, identifies
        self.returns = str(convert.__annotations__["return"])
        self.accepts = accepts or self.returns
        self.generated: tuple[str, ...] = ()  # names of the methods that the class does not define itself

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name
        self.add_accessor(owner, "get", lambda stage: copy.deepcopy(stage.getOrDefault(name)))

    def __copy__(self) -> DeclaredParam[T]:
        copied: DeclaredParam[T] = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:  # converters are closures, which pickle can't write
        return _declared, (self.owner, self.name, self.parent)

    def add_accessor(self, owner: type, verb: str, method: Callable[..., Any]) -> None:
        """Adds a getter or a setter to a class that does not define it."""
        method.__name__ = f"{verb}{self.name[0].upper()}{self.name[1:]}"
        method.__doc__ = f"{verb.capitalize()}s {self.name}: {self.doc}."
        if method.__name__ not in vars(owner):
            setattr(owner, method.__name__, method)
            self.generated = (*self.generated, method.__name__)

    def add_setter(self, owner: type) -> None:
        """Adds the setter to a class that declares this Param, or inherits it without one."""
        name = self.name
        if name in vars(owner) or not hasattr(owner, f"set{name[0].upper()}{name[1:]}"):
            self.add_accessor(owner, "set", lambda stage, value: stage._set(**{name: value}))

    def _converted(self, value: Any) -> T:
        try:
            return self.convert(value)
        except InvalidInputError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            kind = ParamTypeError if isinstance(error, TypeError) else InvalidInputError
            raise kind(f"Param {self.name}: {error}, received {value!r}.") from error


def _declared(owner: type, name: str, parent: str) -> DeclaredParam[Any]:
    """The Param of the stage ``parent`` that a class declares."""
    param: DeclaredParam[Any] = copy.copy(vars(owner)[name])
    param.parent = parent
    return param


class StageParams(Params):
    """Base class of stages whose Params are DeclaredParams."""

    def __init_subclass__(cls, setters: bool | None = None, **kwargs: Any) -> None:
        """Adds setters of the Params that a class declares; if True, also of inherited ones without; if False, none."""
        super().__init_subclass__(**kwargs)
        names = [] if setters is False else dir(cls) if setters else list(vars(cls))
        for param in [getattr(cls, name, None) for name in names]:
            if isinstance(param, DeclaredParam):
                param.add_setter(cls)

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(**{param.name: param.default for param in self.declarations() if param.default is not None})

    def declarations(self) -> list[DeclaredParam[Any]]:
        """The declarations of this stage's Params, by name."""
        return [param for param in self.params if isinstance(param, DeclaredParam)]

    def _set(self, **kwargs: Any) -> Any:
        """Sets Params by keyword; None unsets one, as the constructors' signatures promise."""
        for name, value in kwargs.items():
            param = self.getParam(name)
            if value is None:
                self.clear(param)
            else:  # converted before, because Spark would replace a ParamTypeError by its own TypeError
                super()._set(**{name: param.typeConverter(value)})
        return self

    def set(self, param: Param, value: Any) -> None:
        """Sets a Param of this stage."""
        if param not in self.params:
            raise ValueError(f"{param!r} is not a Param of {self.uid}.")
        self._set(**{param.name: value})

    def value_or_none(self, param: Param[T]) -> T | None:
        """The value of a Param or its default; None where it has neither."""
        return self.getOrDefault(param) if self.isDefined(param) else None


def _network(value: Any) -> Network:
    """The network of a ``keras.Model``, of a ``.keras`` file, or of a DeepNetModel."""
    if isinstance(value, ModelParams):
        value = value.getOrDefault(value.model)
    if isinstance(value, (str, os.PathLike)):
        return network_from_file(value)
    return value if isinstance(value, Network) else Network.of(value)


class ModelParams(
    ModelAccessors,
    StageParams,
    shared.HasLabelCol,  # these three in the order of Spark's own Predictor
    shared.HasFeaturesCol,
    shared.HasPredictionCol,
    shared.HasInputCols,
    shared.HasOutputCols,
    shared.HasProbabilityCol,
    shared.HasRawPredictionCol,
    shared.HasThresholds,
    shared.HasHandleInvalid,
    shared.HasWeightCol,
):
    """The Params that DeepNetEstimator and DeepNetModel share."""

    model: DeclaredParam[Any] = DeclaredParam(
        _network, "the network: a built keras.Model, the path of a .keras file, or another DeepNetModel", accepts="Any"
    )
    featuresCol = DeclaredParam(
        string,
        "input column of a network with one input: a Vector, an array of numbers (nested too), a number, binary "
        "(uint8) or a string. Flat rows take the input's shape",
        "features",
    )
    inputCols = DeclaredParam(
        names,
        "input columns in place of featuresCol, one per input of the network: matched by the inputs' names, else in "
        "their order. Several columns of a network with one input are joined, as VectorAssembler does",
    )
    labelCol = DeclaredParam(string, "label column: a number, a Vector or an array", "label")
    labelCols = DeclaredParam(
        names,
        "label columns in place of labelCol, one per output of the network, or per output that has a loss: matched by "
        "the outputs' keys or names, else in their order",
    )
    weightCol = DeclaredParam(string, "column of row weights (>= 0), for the loss and weighted metrics")
    featureLayers = DeclaredParam(
        names,
        "layers whose activations become Vector columns, computed in one forward pass with the predictions. A layer of "
        "a nested model is named 'outer/inner', or 'inner' where that is unique",
        [],
    )
    outputCols = DeclaredParam(names, "names of the columns of featureLayers, one each. Unset: the layers' names")
    predictionCol = DeclaredParam(string, "output column of the predictions; '' omits it", "prediction")
    probabilityCol = DeclaredParam(string, "output column of a classifier's probabilities; '' omits it", "probability")
    rawPredictionCol = DeclaredParam(
        string, "output column of a classifier's logits or log-probabilities; '' omits it", "rawPrediction"
    )
    vectorType = DeclaredParam(
        one_of("vector", "array"),
        "type of output columns with several numbers: 'vector' (Spark ML's, which its evaluators and stages take) or "
        "'array' (array<float>, half the bytes, for tables and SQL)",
        "vector",
    )
    predictedLabelCol = DeclaredParam(
        string, "output column of the name of the predicted class, a string, of the first output. Unset: none"
    )
    labels = DeclaredParam(
        class_labels,
        "names of the classes of the first output, in their order. Unset: those that StringIndexer has left in the "
        "metadata of the label column of a fit",
    )
    thresholds = DeclaredParam(
        class_thresholds,
        "a number (>= 0, at most one of them 0) per class of the first output: the class with the largest probability "
        "/ threshold is predicted. Unset: the most probable class",
    )
    handleInvalid = DeclaredParam(
        one_of("error", "skip", "keep"),
        "what to do with rows that contain a null, a NaN, an infinite number, one that the network's input can't hold, "
        "or the wrong number of values: 'error' (raise an error that names row and column), 'skip' (drop them) or "
        "'keep' (NaN in, NaN out)",
        "error",
        spec="handle_invalid",
        identifies=True,
    )
    paddingValue = DeclaredParam(
        finite_number,
        "number at the end of rows that are shorter than the longest of their batch, for inputs with an unknown "
        "dimension; strings are padded with ''. A Masking layer's mask_value lets the network ignore it",
        0.0,
        identifies=True,
    )
    predictBatchSize = DeclaredParam(integer(1), "rows per forward pass in transform (>= 1)", 1024)
    handleMismatch = DeclaredParam(
        one_of("warn", "error", "ignore"),
        "what to do when the outputs of a loaded model differ from those recorded when it was saved: 'warn', 'error' "
        "or 'ignore' (no check)",
        "warn",
    )

    def getModel(self) -> Any:
        """The network, as a ``keras.Model`` of the caller's own."""
        return load_model(self.getOrDefault(self.model).archive)

    def getLabelCols(self) -> list[str]:
        """The label columns: labelCols where it is set, else labelCol alone."""
        return copy.copy(self.getOrDefault(self.labelCols)) if self.isSet(self.labelCols) else [self.getLabelCol()]

    def label_columns(self, dataset: DataFrame, network: Network, loss: Any) -> tuple[Column, ...]:
        """The label columns that a training or an evaluation reads; none where the network looks at no labels.

        Args:
            dataset: the rows.
            network: the network.
            loss: the argument ``loss`` of ``keras.Model.compile``; None if the network has a loss of its own.
        """
        names = self.getLabelCols()
        found = {name: find(dataset, name) for name in names}
        types = {name: column.data_type for name, column in found.items() if column is not None}
        chosen = self.isSet(self.labelCol) or self.isSet(self.labelCols)
        if not (loss or chosen or (names[0] in types and checks.takes_labels(network))):
            return ()
        return label_columns(network, names, loss or None, types)

    def input_columns(self) -> list[str]:
        """The input columns: inputCols where it is set, else featuresCol alone."""
        return self.getInputCols() if self.isSet(self.inputCols) else [self.getFeaturesCol()]
