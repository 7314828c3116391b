"""The summaries of a fit and of an evaluation (driver side)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from cos_ml.data.names import resolve
from cos_ml.errors import SetupError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pyspark.sql import Column, DataFrame, SparkSession

__all__ = ["EvaluationSummary", "TrainingSummary"]

# The attributes of Spark's summaries of a regression, and what its evaluator calls them.
REGRESSION = {
    "meanSquaredError": "mse",
    "rootMeanSquaredError": "rmse",
    "meanAbsoluteError": "mae",
    "r2": "r2",
    "explainedVariance": "var",
}
COLUMNS = ("featuresCol", "labelCol", "weightCol", "predictionCol", "probabilityCol", "rawPredictionCol")


@dataclass(frozen=True)
class TrainingSummary:
    """The history of one fit, and where and how it ran.

    Attributes:
        history: metric name -> its value over all ranks at each epoch; metrics of validation rows start with "val_".
            With validationSteps also at each validation within an epoch, and "step" with the number of steps so far.
        rows: number of training rows per epoch, over all ranks.
        validationRows: number of validation rows, over all ranks.
        steps: number of steps per epoch, the same on all ranks.
        ranks: where each rank ran: host, local rank and so on.
        seconds: for each rank, seconds per phase: "start" (load the network), "read" (until all rows are on local disk
            and all ranks are ready), "join" (initialize Horovod), "compile" (until the first steps, which TensorFlow
            traces, are done) and "train". All candidates of a grid share the first three.
        epochSeconds: seconds per epoch, measured by rank 0.
        logs: the tail of each rank's output.
        resumedAt: the epochs, and the steps of the next one, that a checkpoint provided; (0, 0) without one.
        failures: errors of earlier attempts at the same fit, as far as Spark reports them.
        notes: warnings, for example about a damaged checkpoint, one that could not be written, or little memory.
        cacheUrl: URL of the cached rows if keepCache is set, else None.
        initialWeights: what the Param of that name did: "taken" maps each layer that took weights to where they
            came from, "notTaken" maps the other layers, of both sides, to the reason. None if the Param is not set.
        rankServers: bytes of memory that the rank servers of each host hold, of which its ranks were forks; empty where
            ranks were new processes.
        totalSteps: number of steps of the whole training, whose last epoch maxSteps may have ended early.
        droppedAt: the rung of successive halving (1, 2, ...) after which this candidate of a grid was dropped, or None.
            ``totalIterations`` is the number of epochs that it trained.
    """

    history: dict[str, list[Any]]
    rows: int
    validationRows: int
    steps: int
    ranks: list[dict[str, Any]]
    seconds: list[dict[str, float]]
    epochSeconds: list[float]
    logs: list[str]
    resumedAt: tuple[int, int] = (0, 0)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cacheUrl: str | None = None
    initialWeights: dict[str, dict[str, str]] | None = None
    totalSteps: int | None = None
    rankServers: dict[str, int] = field(default_factory=dict)
    droppedAt: int | None = None

    def __str__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4f}" for name, values in self._curves().items())
        whole = len(self.epochSeconds) * self.steps
        total = f" ({self.totalSteps:,} in all)" if self.totalSteps and self.totalSteps < whole else ""
        seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in self.seconds[0].items())
        dropped = f", dropped after rung {self.droppedAt}" if self.droppedAt else ""
        validation = f" and {self.validationRows:,} validation rows" if self.validationRows else ""
        return (
            f"{len(self.epochSeconds)} epochs of {self.rows:,} rows{validation}, {self.steps:,} steps each{total}, on "
            f"{len(self.ranks)} ranks{dropped}\nlast epoch: {last}\nseconds of rank 0: {seconds}"
        )

    def _repr_html_(self) -> str:
        from cos_ml.display import summary_html

        return summary_html(self, self._curves())

    def _curves(self) -> dict[str, list[float]]:
        """The metrics by name, one number each: F1Score, with one per class, becomes "f1_score_0" and so on."""
        curves: dict[str, list[float]] = {}
        for name, values in self.history.items():
            if name == "step":
                continue
            arrays = np.asarray(values, float)
            if arrays.ndim == 1:
                curves[name] = values
                continue
            flat = arrays.reshape(len(arrays), -1)
            curves |= {f"{name}_{index}": flat[:, index].tolist() for index in range(flat.shape[1])}
        return curves

    @property
    def objectiveHistory(self) -> list[float]:
        """The loss of each epoch."""
        losses = self.history["loss"]
        steps = self.history.get("step", [0] * len(losses))
        last = len(losses) - 1
        return [loss for at, loss in enumerate(losses) if steps[at] % self.steps == 0 or at == last]

    @property
    def totalIterations(self) -> int:
        """The number of epochs."""
        return len(self.epochSeconds)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Plot the history: one panel per metric, with its values on training and validation rows.

        Args:
            path: file to write; its extension decides the format (.png, .svg, .pdf ...). None writes no file.

        Returns:
            matplotlib.figure.Figure: the plot, for a notebook to show or for changes.

        Raises:
            SetupError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise SetupError('summary.plot() needs matplotlib: pip install "cos-ml[plot]"') from error
        history = self._curves()
        names = sorted((name for name in history if not name.startswith("val_")), key=lambda name: name != "loss")
        figure = Figure(figsize=(4.5 * len(names), 3.5), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            curves = {"training": history[name], "validation": history.get(f"val_{name}")}
            for label, values in curves.items():
                if values:
                    places = self.history.get("step", range(1, len(values) + 1))
                    axes.plot(places, values, label=label, marker="o" if len(values) < 10 else None)
            axes.set(title=name.replace("_", " "), xlabel="step" if "step" in self.history else "epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            if curves["validation"]:
                axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure

    def toDataFrame(self, spark: SparkSession) -> DataFrame:
        """The history as a DataFrame: one row per epoch, counted from 1, and one double column per metric.

        With validationSteps also one row per validation within an epoch, and the column "step", the number of steps
        so far.
        """
        curves = self._curves()
        metrics = list(zip(*curves.values(), strict=True))
        places: dict[str, list[int]] = {"epoch int": list(range(1, len(metrics) + 1))}
        if "step" in self.history:
            steps = self.history["step"]
            places = {"epoch int": [-(-step // self.steps) for step in steps], "step long": steps}
        rows = [
            (*place, *map(float, row)) for place, row in zip(zip(*places.values(), strict=True), metrics, strict=True)
        ]
        return spark.createDataFrame(rows, ", ".join([*places, *(f"`{name}` double" for name in curves)]))


class EvaluationSummary(dict[str, Any]):
    """What ``DeepNetModel.evaluate`` returns: the loss and Keras's metrics by name, as a dict.

    Beside it, what Spark's own summaries of a classification or a regression have, about the network's first output:
    the DataFrame ``predictions`` and the names of its columns (``labelCol``, ``predictionCol`` and so on), and metrics
    of its predictions, computed by a Spark job when they are first read: ``accuracy``, ``weightedPrecision``,
    ``weightedRecall``, ``weightedFMeasure()``, ``precisionByLabel`` and so on; ``areaUnderROC`` of two classes;
    ``rootMeanSquaredError``, ``r2`` and so on of a regression.
    """

    def __init__(self, values: dict[str, Any], model: Any, dataset: DataFrame) -> None:
        super().__init__(values)
        for key in ("predictionCol", "probabilityCol", "rawPredictionCol"):  # omitted ones have names of their own here
            if not model.getOrDefault(key):
                model._set(**{key: f"{key.removesuffix('Col')}_{model.uid}"})
        self._model, self._dataset = model, dataset
        self._known: dict[str, float] = {}

    def _repr_html_(self) -> str:
        from cos_ml.display import values_html

        return values_html(self)

    @cached_property
    def predictions(self) -> DataFrame:
        """The rows, with the columns of the model's ``transform``."""
        return self._model.transform(self._dataset)  # type: ignore[no-any-return]

    @cached_property
    def labels(self) -> list[float]:
        """The labels that occur, in ascending order."""
        return self._counts[0].tolist()  # type: ignore[no-any-return]

    def fMeasureByLabel(self, beta: float = 1.0) -> list[float]:
        """The F measure of each of ``labels``."""
        precision, recall = np.array(self.precisionByLabel), np.array(self.recallByLabel)
        return _divided((1 + beta**2) * precision * recall, beta**2 * precision + recall).tolist()

    def weightedFMeasure(self, beta: float = 1.0) -> float:
        """The F measure of each label, weighted by how often it occurs."""
        return self._weighted(self.fMeasureByLabel(beta))

    def __getattr__(self, name: str) -> Any:
        metrics = {} if name.startswith("_") else self._metrics()
        if name not in metrics:
            raise AttributeError(f"This summary has no {name!r}.")
        return metrics[name]()

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._metrics()]

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # the values alone: a DataFrame belongs to its session

    def _metrics(self) -> dict[str, Callable[[], Any]]:
        """What the attributes of the model's kind are computed by."""
        found: dict[str, Callable[[], Any]] = {
            name: partial(self._model.getOrDefault, name)
            for name in COLUMNS
            if self._model.isDefined(name) and (self._classes or not name.startswith(("prob", "raw")))
        }
        if self._model.isSet("labelCols"):
            found["labelCol"] = lambda: self._model.getLabelCols()[0]
        if not self._classes:
            return found | {name: partial(self._value, "Regression", metric) for name, metric in REGRESSION.items()}
        by_label = {
            "truePositiveRate": lambda: self._by_label(lambda right, actual, _: _divided(right, actual, np.nan)),
            "falsePositiveRate": lambda: self._by_label(lambda r, a, p: _divided(p - r, a.sum() - a, np.nan)),
            "precision": lambda: self._by_label(lambda right, _, predicted: _divided(right, predicted)),
        }
        by_label["recall"] = by_label["truePositiveRate"]
        for name, values in by_label.items():
            found[f"{name}ByLabel"] = values
            found[f"weighted{name[0].upper()}{name[1:]}"] = partial(self._weighted, values)
        found["accuracy"] = found["weightedRecall"]
        return found | ({"areaUnderROC": partial(self._value, "Binary", "areaUnderROC")} if self._classes == 2 else {})

    @cached_property
    def _classes(self) -> int | None:
        return getattr(self._model, "numClasses", None)

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The labels that occur, and weights of their rows: those predicted right, those that have it, that get it."""
        from pyspark.sql import functions as F

        scored = self.predictions
        weight = resolve(scored, self.weightCol).values if self._model.isDefined("weightCol") else F.lit(1.0)
        columns = [_class_of(scored, self.labelCol), resolve(scored, self.predictionCol).values]
        rows = scored.groupBy(*columns).agg(F.sum(weight.cast("double"))).collect()
        actual, predicted, weights = np.array([tuple(row) for row in rows], float).reshape(-1, 3).T
        labels = np.unique(actual)
        chosen = (actual == predicted, True, True)
        keys = (actual, actual, predicted)
        sums = [(weights * of * (key == labels[:, None])).sum(axis=1) for of, key in zip(chosen, keys, strict=True)]
        return labels, sums[0], sums[1], sums[2]

    def _by_label(self, metric: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> list[float]:
        return metric(*self._counts[1:]).tolist()  # type: ignore[no-any-return]

    def _weighted(self, values: list[float] | Callable[[], list[float]]) -> float:
        """The mean of a metric over the labels, weighted by how often they occur."""
        actual = self._counts[2]
        return float(np.dot(values() if callable(values) else values, actual) / (actual.sum() or np.nan))

    def _value(self, kind: str, metric: str) -> float:
        """What one of Spark's evaluators computes of the predictions."""
        from pyspark.ml import evaluation

        if metric not in self._known:
            column = "rawPredictionCol" if kind == "Binary" else "predictionCol"
            options: dict[str, Any] = {"labelCol": self.labelCol, column: self._model.getOrDefault(column)}
            if self._model.isDefined("weightCol"):
                options["weightCol"] = self.weightCol
            name = "RegressionEvaluator" if kind == "Regression" else f"{kind}ClassificationEvaluator"
            self._known[metric] = getattr(evaluation, name)(metricName=metric, **options).evaluate(self.predictions)
        return self._known[metric]


def _class_of(df: DataFrame, name: str) -> Column:
    """The labels of a column as numbers: the position of the largest number of a one-hot Vector or array."""
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as F

    label = resolve(df, name)
    kind = label.data_type.typeName()
    if kind not in ("array", "vectorudt"):
        return label.values.cast("double")
    numbers = label.values if kind == "array" else vector_to_array(label.values)
    return (F.array_position(numbers, F.array_max(numbers)) - 1).cast("double")


def _divided(part: np.ndarray, whole: np.ndarray, nothing: float = 0.0) -> np.ndarray:
    """The quotients; ``nothing`` where the divisor is 0."""
    return np.divide(part, whole, out=np.full(len(part), nothing), where=whole != 0)
