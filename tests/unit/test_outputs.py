import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Tensor
from cos_ml.network.keras_import import import_keras
from cos_ml.network.losses import loss_family
from cos_ml.network.outputs import (
    OutputKind,
    check_loss,
    is_classifier,
    label_classes,
    names_of,
    num_classes,
    output_kind,
    output_kinds,
    predictions,
)

losses = import_keras().losses


def serialized(loss):
    return import_keras().saving.serialize_keras_object(loss)


def output(units, activation="linear", name="out"):
    return Tensor(name, (units,), "float32", activation)


SPARSE_LOGITS = serialized(losses.SparseCategoricalCrossentropy(from_logits=True))
LOGITS = serialized(losses.CategoricalCrossentropy(from_logits=True))
BINARY_LOGITS = serialized(losses.BinaryCrossentropy(from_logits=True))
BINARY = serialized(losses.BinaryCrossentropy())
SPARSE = serialized(losses.SparseCategoricalCrossentropy())


# ── the kind of prediction ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("tensor", "loss", "kind"),
    [
        (output(10, "softmax"), None, "classes"),
        (output(10, "softmax"), "sparse_categorical_crossentropy", "classes"),
        (output(10, "softmax"), SPARSE, "classes"),
        (output(10, None), "categorical_crossentropy", "classes"),
        (output(10), SPARSE_LOGITS, "class_logits"),
        (output(10), LOGITS, "class_logits"),
        (output(1, "sigmoid"), None, "probability"),
        (output(1, "sigmoid"), "binary_crossentropy", "probability"),
        (output(1, None), BINARY, "probability"),
        (output(1), BINARY_LOGITS, "logit"),
        (output(1), None, "number"),
        (output(1), "mse", "number"),
        (output(1, "relu"), serialized(losses.Huber()), "number"),
        (Tensor("out", (), "float32", "linear"), "mse", "number"),
        (output(4), "mse", "vector"),
        (output(4), None, "vector"),
        (output(4, "sigmoid"), "binary_crossentropy", "vector"),
        (output(4), BINARY_LOGITS, "vector"),
        (Tensor("out", (8, 3), "float32", "softmax"), "sparse_categorical_crossentropy", "vector"),
    ],
)
def test_output_kind(tensor, loss, kind):
    assert output_kind(tensor, loss) == kind


def test_is_classifier():
    assert [kind for kind in ("classes", "class_logits", "probability", "logit") if not is_classifier(kind)] == []
    assert not is_classifier("number")
    assert not is_classifier("vector")


def test_loss_family():
    assert loss_family("sparse_categorical_crossentropy") == loss_family(SPARSE) == "sparse"
    assert loss_family("mse") is loss_family(None) is None


def test_label_classes():
    assert label_classes(output(10, "softmax"), SPARSE) == 10
    assert label_classes(output(1, "sigmoid"), "binary_crossentropy") is None  # soft labels are labels
    assert label_classes(output(10, "softmax"), "categorical_crossentropy") is None
    assert label_classes(output(4, "sigmoid"), "binary_crossentropy") is None
    assert label_classes(output(1), "mse") is None


# ── losses that can't be meant ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("tensor", "loss"),
    [
        (output(10, "softmax"), SPARSE),
        (output(10), SPARSE_LOGITS),
        (output(10, "sigmoid"), "binary_crossentropy"),
        (output(1, "sigmoid"), BINARY),
        (output(10, None), "sparse_categorical_crossentropy"),  # a layer that says nothing may compute probabilities
        (output(1), "mse"),
        (output(10, "softmax"), "kl_divergence"),
    ],
)
def test_losses_that_fit(tensor, loss):
    check_loss(tensor, loss)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy", SPARSE_LOGITS])
def test_one_unit_for_several_classes(loss):
    with pytest.raises(InvalidInputError, match=r"one unit per class, received output 'digit' with 1 unit. .*binary_"):
        check_loss(output(1, "softmax", "digit"), loss)


@pytest.mark.parametrize(
    ("units", "loss", "shown", "wanted", "instead"),
    [
        (10, "sparse_categorical_crossentropy", "sparse_categorical_crossentropy", "softmax",
         "SparseCategoricalCrossentropy"),
        (10, SPARSE, "SparseCategoricalCrossentropy", "softmax", "SparseCategoricalCrossentropy"),
        (10, "categorical_crossentropy", "categorical_crossentropy", "softmax", "CategoricalCrossentropy"),
        (1, BINARY, "BinaryCrossentropy", "sigmoid", "BinaryCrossentropy"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_no_probabilities(units, loss, shown, wanted, instead, activation):
    with pytest.raises(InvalidInputError) as error:
        check_loss(output(units, activation, "digit"), loss)
    assert f"Param loss: {shown} expects probabilities" in str(error.value)
    assert f"received output 'digit' with {units} unit{'s' * (units > 1)} and activation '{activation}'" in str(
        error.value
    )
    assert f"activation='{wanted}', or use keras.losses.{instead}(from_logits=True)" in str(error.value)


def test_sigmoids_do_not_sum_to_1():
    with pytest.raises(InvalidInputError, match=r"sum to 1, received output 'out' with 10 units.*'sigmoid'"):
        check_loss(output(10, "sigmoid"), SPARSE)


# ── predictions ───────────────────────────────────────────────────────────────────────────────────────────────────────

NUMBERS = st.floats(-50, 50, width=32)


def test_classes():
    found = predictions("classes", np.array([[0.1, 0.7, 0.2], [1.0, 0.0, 0.0]], np.float32))
    assert found["prediction"].tolist() == [1, 0]
    assert found["prediction"].dtype == np.float64
    assert np.allclose(found["probability"], [[0.1, 0.7, 0.2], [1, 0, 0]])
    assert np.allclose(found["rawPrediction"][0], np.log([0.1, 0.7, 0.2]))
    assert np.isfinite(found["rawPrediction"]).all()  # the log of nothing too


@given(arrays(np.float32, (3, 4), elements=NUMBERS))
def test_class_logits(logits):
    found = predictions("class_logits", logits)
    assert np.allclose(found["probability"].sum(axis=1), 1)
    assert (found["probability"] >= 0).all()
    assert (found["prediction"] == found["probability"].argmax(axis=1)).all()
    chosen = np.take_along_axis(logits, found["prediction"].astype(int)[:, None], axis=1)
    assert np.allclose(chosen[:, 0], logits.max(axis=1))
    assert (found["rawPrediction"] == logits).all()


def test_large_logits():
    found = predictions("class_logits", np.array([[1e30, 0.0], [-1e30, 0.0]], np.float32))
    assert found["probability"].tolist() == [[1, 0], [0, 1]]


@given(arrays(np.float32, (3, 1), elements=NUMBERS))
def test_logit(logits):
    found = predictions("logit", logits)
    assert (found["rawPrediction"] == np.hstack([-logits, logits])).all()
    assert np.allclose(found["probability"].sum(axis=1), 1)
    assert np.allclose(found["probability"][:, 1], 1 / (1 + np.exp(-logits[:, 0].astype(float))))
    assert (found["prediction"] == found["probability"].argmax(axis=1)).all()


def test_large_logits_of_one_unit():
    found = predictions("logit", np.array([[1000.0], [-1000.0]], np.float32))
    assert found["probability"].tolist() == [[0, 1], [1, 0]]
    assert found["prediction"].tolist() == [1, 0]


def test_probability():
    found = predictions("probability", np.array([[0.75], [0.25], [1.0], [0.0]], np.float32))
    assert found["prediction"].tolist() == [1, 0, 1, 0]
    assert found["probability"].tolist() == [[0.25, 0.75], [0.75, 0.25], [0, 1], [1, 0]]
    assert np.allclose(found["rawPrediction"][:2], [[-np.log(3), np.log(3)], [np.log(3), -np.log(3)]])
    assert np.isfinite(found["rawPrediction"]).all()
    assert (found["rawPrediction"][:, 0] == -found["rawPrediction"][:, 1]).all()


@pytest.mark.parametrize(("kind", "units"), [("classes", 3), ("class_logits", 3), ("probability", 1), ("logit", 1)])
def test_nan_gives_nan(kind, units):
    values = np.full((2, units), 0.5, np.float32)
    values[0, -1] = np.nan
    found = predictions(kind, values)
    assert np.isnan(found["prediction"]).tolist() == [True, False]
    assert np.isnan(found["probability"][0]).any()
    assert np.isnan(found["rawPrediction"][0]).any()


def test_number_and_vector():
    assert predictions("number", np.array([[1.5], [2.5]], np.float32))["prediction"].tolist() == [1.5, 2.5]
    assert predictions("number", np.array([1.5, 2.5], np.float32))["prediction"].tolist() == [1.5, 2.5]
    found = predictions("vector", np.arange(12, dtype=np.float32).reshape(2, 3, 2))
    assert list(found) == ["prediction"]
    assert found["prediction"].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize(
    ("kind", "shape"), [("classes", (0, 3)), ("class_logits", (0, 3)), ("probability", (0, 1)), ("logit", (0, 1)),
                        ("number", (0, 1)), ("vector", (0, 3))]
)  # fmt: skip
def test_no_rows(kind, shape):
    assert {len(values) for values in predictions(kind, np.empty(shape, np.float32)).values()} == {0}


def test_num_classes():
    assert num_classes(output(10, "softmax"), OutputKind.CLASS_PROBABILITIES) == 10
    assert num_classes(output(3), OutputKind.CLASS_LOGITS) == 3
    assert num_classes(output(1), OutputKind.LOGIT) == num_classes(output(1), OutputKind.PROBABILITY) == 2
    assert num_classes(output(1), OutputKind.NUMBER) is num_classes(output(4), OutputKind.VECTOR) is None


def test_kinds_of_several_outputs():
    outputs = [output(3, "softmax", "digit"), output(1, "linear", "size"), output(1, "linear", "odd")]
    assert output_kinds(outputs, {"size": "mse", "odd": BINARY_LOGITS}) == ("classes", "number", "logit")
    assert output_kinds(outputs[1:], "mse") == ("number", "number")


# ── thresholds: what Spark's ProbabilisticClassificationModel does ────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ((), [1, 0, 1]),
        ((0.2, 0.2, 0.2), [1, 0, 1]),
        ((0.2, 0.7, 0.5), [0, 0, 1]),
        ((0.5, 0.5, 0.1), [2, 0, 2]),
        ((0.5, 0.5, 0.0), [2, 0, 2]),  # 0 wins, but not for a class of probability 0
        ((0.5, 1.0, 0.5), [0, 0, 1]),  # a tie: the first class
    ],
)
def test_thresholds(thresholds, expected):
    probability = np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0], [0.0, 0.75, 0.25]], np.float32)
    found = predictions("classes", probability, thresholds)
    assert found["prediction"].tolist() == expected
    assert (found["probability"] == probability).all()


def test_thresholds_of_one_unit():
    values = np.array([[0.25], [0.5], [0.75], [np.nan]], np.float32)
    assert predictions("probability", values)["prediction"][:3].tolist() == [0, 0, 1]
    found = predictions("probability", values, (0.8, 0.2))["prediction"]
    assert found[:3].tolist() == [1, 1, 1]
    assert np.isnan(found[3])
    assert predictions("probability", values, (0.25, 0.75))["prediction"][:3].tolist() == [0, 0, 0]
    assert predictions("logit", np.array([[-1.0], [1.0]]), (0.0, 1.0))["prediction"].tolist() == [0, 0]


# ── several outputs ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_outputs_of_one_layer_are_told_apart():
    of_a_dict = [Tensor("lstm", (4,), "float32", key=key) for key in ("state", "carry")]
    of_a_list = [Tensor("lstm", (4,), "float32") for _ in range(2)]
    assert names_of([output(1, name="a"), output(1, name="b")]) == ["a", "b"]
    assert names_of([*of_a_dict, output(1)]) == ["state", "carry", "out"]
    assert names_of([output(1), *of_a_list]) == ["out", "lstm_1", "lstm_2"]
