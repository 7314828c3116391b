"""Cases: the metrics of ``keras.metrics``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import metrics as M

from tests.conformance import userlib
from tests.conformance.case import Case, Data, In, L, Seq, classes, compiled, floats, ids, one_hot

CE = "sparse_categorical_crossentropy"


def positive(random: Any, count: int) -> Data:
    weights = random.uniform(0, 3, count).astype("float32")
    return Data(floats(random, count, 4), np.abs(floats(random, count, 4)) + 0.1, weights)


def numbers(name: str, make: Callable[[], list[Any]], weighted: bool = False, **options: Any) -> Case:
    """A case of metrics of four positive numbers for each row."""

    def build() -> Any:
        model = Seq([In((4,)), L.Dense(6, "tanh"), L.Dense(4, "softplus")])
        return compiled(model, **{"weighted_metrics" if weighted else "metrics": make()})

    return Case(name, build, positive if weighted else lambda r, n: Data(*vars(positive(r, n)).values()), **options)


def binary(name: str, make: Callable[[], list[Any]], **options: Any) -> Case:
    """A case of metrics of one of two classes for each row."""

    def build() -> Any:
        model = Seq([In((4,)), L.Dense(6, "tanh"), L.Dense(1, "sigmoid")])
        return compiled(model, "binary_crossentropy", keras.optimizers.SGD(0.5), metrics=make())

    return Case(name, build, lambda r, n: Data(floats(r, n, 4), ids(r, n, 2, 1).astype("float32")), **options)


def hot(name: str, make: Callable[[], list[Any]]) -> Case:
    """A case of metrics of one of three classes for each row, as three numbers."""

    def build() -> Any:
        model = Seq([In((4,)), L.Dense(6, "tanh"), L.Dense(3, "softmax")])
        return compiled(model, "categorical_crossentropy", keras.optimizers.SGD(0.5), metrics=make())

    return Case(name, build, lambda r, n: Data(floats(r, n, 4), one_hot(r, n, 3)))


def indexed(name: str, make: Callable[[], list[Any]], **more: Any) -> Case:
    """A case of metrics of one of three classes for each row, as its index."""

    def build() -> Any:
        model = Seq([In((4,)), L.Dense(6, "tanh"), L.Dense(3, "softmax")])
        return compiled(model, CE, keras.optimizers.SGD(0.5), metrics=make(), **more)

    return Case(name, build, classes(3, 4, weighted="weighted_metrics" in more))


def labelled() -> Any:
    """The metrics of two outputs, in a dict by output."""
    x = In((4,))
    hidden = L.Dense(6, "tanh")(x)
    outputs = {"a": L.Dense(3, "softmax", name="a")(hidden), "b": L.Dense(1, "sigmoid", name="b")(hidden)}
    metrics = {
        "a": [M.SparseCategoricalAccuracy(), M.MeanIoU(3, sparse_y_pred=False, name="iou")],
        "b": [M.AUC(name="auc")],
    }
    return compiled(keras.Model(x, outputs), {"a": CE, "b": "bce"}, metrics=metrics)


def both(random: Any, count: int) -> Data:
    y = {"a": ids(random, count, 3), "b": ids(random, count, 2, 1).astype("float32")}
    return Data(floats(random, count, 4), y)


CASES = [
    numbers("errors", lambda: ["mse", M.MeanAbsoluteError(), M.RootMeanSquaredError(),
            M.MeanSquaredLogarithmicError(), "mape", M.LogCoshError(), M.CosineSimilarity()]),
    numbers("errors, weighted", lambda: ["mae", M.RootMeanSquaredError(), M.R2Score(name="r2")], weighted=True),
    numbers("R2Score", lambda: [M.R2Score(), M.R2Score("variance_weighted_average", name="weighted")]),
    numbers("correlations", lambda: [M.PearsonCorrelation(), M.ConcordanceCorrelation()]),
    numbers("poisson, KL divergence", lambda: [M.Poisson(), M.KLDivergence(),
            M.MeanMetricWrapper(userlib.largest_error)]),
    numbers("functions", lambda: [keras.losses.mean_squared_error, userlib.largest_error, "cosine_similarity"]),
    binary("accuracy, thresholds", lambda: ["accuracy", M.BinaryAccuracy(threshold=0.4, name="b"), M.Accuracy()]),
    binary("AUC", lambda: [M.AUC(name="roc"), M.AUC(50, curve="PR", name="pr")]),
    binary("precision, recall", lambda: [M.Precision(), M.Recall(0.3, name="r")]),
    binary("metrics of several numbers", lambda: [M.Recall([0.3, 0.6], name="r"), M.F1Score(threshold=0.5, name="f1")]),
    binary("counts", lambda: [M.TruePositives(), M.TrueNegatives(), M.FalsePositives(), M.FalseNegatives()]),
    binary("at a threshold of another", lambda: [M.SensitivityAtSpecificity(0.5), M.SpecificityAtSensitivity(0.5),
           M.PrecisionAtRecall(0.5), M.RecallAtPrecision(0.5)]),
    binary("binary IoU, crossentropy, hinges", lambda: [M.BinaryIoU(name="iou"), M.BinaryCrossentropy(), M.Hinge(),
           M.SquaredHinge()]),
    binary("own metrics, whole-number state", lambda: [userlib.Hits(), userlib.MeanError()]),
    hot("categorical accuracies", lambda: ["accuracy", M.CategoricalAccuracy(name="c"), M.TopKCategoricalAccuracy(2),
        M.CategoricalCrossentropy(), M.CategoricalHinge()]),
    hot("F-scores", lambda: [M.F1Score("macro", name="f1"), M.FBetaScore("weighted", beta=2.0, name="f2")]),
    hot("one-hot IoUs", lambda: [M.OneHotIoU(3, [0, 2], name="iou"), M.OneHotMeanIoU(3, name="mean_iou")]),
    indexed("sparse accuracies", lambda: ["accuracy", "sparse_top_k_categorical_accuracy",
            M.SparseTopKCategoricalAccuracy(2, name="top")]),
    indexed("MeanIoU, IoU", lambda: [M.MeanIoU(3, sparse_y_pred=False, name="mean"),
            M.IoU(3, [1], sparse_y_pred=False, name="one"), M.SparseCategoricalCrossentropy(name="ce")]),
    indexed("metrics, and weighted ones", lambda: ["accuracy"], weighted_metrics=["accuracy"]),
    Case("metrics in a dict by output", labelled, both),
]  # fmt: skip
