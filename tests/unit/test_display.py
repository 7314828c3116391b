"""What notebooks are shown: of rows, networks and summaries, without a session."""

import base64
import io
import re
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import types as T

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.display import show, show_network
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.summary import EvaluationSummary
from tests.unit.test_summary import summary_of

GENERATOR = np.random.default_rng(0)
GRAY = GENERATOR.integers(0, 256, (8, 8), np.uint8)
COLOR = GENERATOR.integers(0, 256, (9, 12, 3), np.uint8)
INT, DOUBLE, BINARY, STRING = T.IntegerType(), T.DoubleType(), T.BinaryType(), T.StringType()
FLOATS = T.ArrayType(T.FloatType())


class Rows:
    """What ``show`` uses of a DataFrame."""

    isStreaming = False

    def __init__(self, rows, **types):
        metadata = {"named": {"ml_attr": {"num_attrs": 64}}, "nominal": {"ml_attr": {"type": "nominal"}}}
        self.schema = T.StructType(
            [
                T.StructField(name, *(kind if isinstance(kind, tuple) else (kind, True, metadata.get(name))))
                for name, kind in types.items()
            ]
        )
        self.rows, self.limited = rows, None

    @property
    def sparkSession(self):
        return self

    @property
    def conf(self):
        return {"spark.sql.caseSensitive": "false"}

    def limit(self, count):
        self.limited = count
        return self

    def collect(self):
        return self.rows[: self.limited]


def images_in(shown):
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', shown._repr_html_())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def file_of(pixels, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def classes(*names):
    return DOUBLE, True, {"ml_attr": {"type": "nominal", **({"vals": list(names)} if names else {"num_vals": 10})}}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (file_of(COLOR), BINARY, COLOR),
        (GRAY.tobytes(), BINARY, GRAY),
        (COLOR[:, :9].tobytes(), BINARY, COLOR[:, :9]),
        (COLOR.tobytes(), (BINARY, True, {"image": {"height": 9, "width": 12, "channels": 3}}), COLOR),
        (GRAY.ravel().tolist(), FLOATS, GRAY),
        (Vectors.dense(GRAY.ravel() / 255), VectorUDT(), np.rint(GRAY / 255 / GRAY.max() * 255 * GRAY.max())),
        (COLOR.tolist(), T.ArrayType(T.ArrayType(FLOATS)), COLOR),
        (COLOR.transpose(2, 0, 1).tolist(), T.ArrayType(T.ArrayType(FLOATS)), COLOR),
    ],
)
def test_thumbnails_have_the_pixels_of_the_column(value, kind, expected):
    (found, brightest) = images_in(show(Rows([(value,), (None,), (value,)], picture=kind)))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, brightest)


def test_columns_of_lmdb_are_planes_of_blue_green_red():
    planes = COLOR[:, :, ::-1].transpose(2, 0, 1)
    columns = {"id": STRING, "channels": INT, "height": INT, "width": INT, "data": BINARY}
    rows = [("a", 3, 9, 12, planes.tobytes()), ("b", 0, 0, 0, file_of(COLOR))]
    for found in images_in(show(Rows(rows, **columns))):
        np.testing.assert_array_equal(found, COLOR)


def test_structs_of_sparks_image_format():
    kind = T.StructType([T.StructField(name, INT) for name in ("height", "width", "nChannels", "mode")])
    kind = kind.add("data", BINARY)
    row = dict(zip(kind.names, (9, 12, 3, 16, COLOR[:, :, ::-1].tobytes()), strict=True))
    np.testing.assert_array_equal(images_in(show(Rows([(row,)], image=kind)))[0], COLOR)


def test_a_large_photo_becomes_small():
    photo = np.kron(GRAY, np.ones((100, 150), np.uint8))
    shown = show(Rows([(file_of(photo, "JPEG"),)], data=BINARY))
    assert images_in(shown)[0].shape == (75, 112)
    assert len(shown._repr_html_()) < 20_000


@pytest.mark.parametrize(
    ("value", "column"),
    [
        (Vectors.dense(np.abs(GRAY.ravel())), {"named": VectorUDT()}),  # features of a layer
        (Vectors.dense(GRAY.ravel() - 128.0), {"embedding": VectorUDT()}),
        ([1.0, 2.0, 3.0, 4.0], {"small": FLOATS}),
        (b"no file", {"data": BINARY}),
        (file_of(GRAY)[:40], {"data": BINARY}),
    ],
)
def test_what_is_no_image_by_itself(value, column):
    shown = show(Rows([(value,)], **column))
    assert not images_in(shown)
    assert re.search(r"… \d+ in all|bytes|4\]", repr(shown))


def test_images_that_are_named():
    rows = Rows([(Vectors.dense(np.arange(24.0)), 1)], named=VectorUDT(), label=INT)
    (found,) = images_in(show(rows, images={"Named": (4, 6)}))
    np.testing.assert_array_equal(found, np.rint(np.arange(24).reshape(4, 6) * 255 / 23))
    assert not images_in(show(Rows([(file_of(GRAY),)], data=BINARY), images=[]))
    with pytest.raises(InvalidInputError, match=r"Column 'named' .*images=\{'named': \(height, width, channels\)\}"):
        show(rows, images=["named"])
    with pytest.raises(InvalidInputError, match=r"no column 'other' in \['named', 'label'\]"):
        show(rows, images=["other"])
    with pytest.raises(InvalidInputError, match="expected \\(height, width\\)"):
        show(rows, images={"named": (24,)})


def test_without_pillow(monkeypatch):
    rows = Rows([(file_of(GRAY),)], data=BINARY)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "bytes" in repr(show(rows))
    with pytest.raises(SetupError, match=r"cos-ml\[images\]"):
        show(rows, images=["data"])


def test_wrong_predictions_are_marked():
    rows = [(3, "x", 3.0, 5.0), (4, "y", 9.0, 4.0), (5, "z", 5.0, 6.0)]
    shown = show(Rows(rows, label=INT, note=STRING, prediction=classes(), lr_prediction=DOUBLE))
    assert repr(shown).splitlines() == [
        "label  prediction  lr_prediction  note",
        "3      3           5 ✗            x",
        "4      9 ✗         4              y",
        "5      5           6 ✗            z",
        "3 rows, 1 wrong in prediction, 2 wrong in lr_prediction",
    ]
    assert shown._repr_html_().count("✗") == 3


def test_names_of_classes():
    rows = [(0, 0.0, "cat"), (1, 0.0, "cat")]
    shown = repr(show(Rows(rows, label=INT, prediction=classes("cat", "dog"), predictedLabel=STRING)))
    assert "0 (cat) ✗" in shown
    assert shown.endswith("2 rows, 1 wrong in prediction, 1 wrong in predictedLabel")
    rows = [("dog", 1.0), ("cat", 1.0)]
    assert repr(show(Rows(rows, label=STRING, prediction=classes("cat", "dog")))).endswith("1 wrong in prediction")


def test_one_hot_labels_and_regressions():
    assert "1 wrong" in repr(show(Rows([([0.0, 1.0], 1.0), ([1.0, 0.0], 1.0)], label=FLOATS, prediction=classes())))
    assert "✗" not in repr(show(Rows([(1.5, 1.0), (2.0, 2.25)], label=DOUBLE, prediction=DOUBLE)))
    assert "✗" not in repr(show(Rows([(1, 1.1), (2, 2.25)], label=INT, prediction=DOUBLE)))


def test_values_are_escaped_and_short():
    evil = "<script>alert('x')</script>" + "y" * 100
    field = T.StructType([T.StructField("<b>", STRING)])
    frame = Rows([(evil, None, True, 0.123456, list(range(9)), {"a": evil})])
    frame.schema = T.StructType([
        field.fields[0], *(T.StructField(name, STRING) for name in ("null", "flag", "number", "list", "map")),
    ])  # fmt: skip
    markup = show(frame)._repr_html_()
    assert "<script" not in markup
    assert "&lt;script&gt;" in markup
    assert "&lt;b&gt;" in markup
    assert "y" * 60 not in markup
    assert {"null", "true", "0.1235", "[0, 1, 2, 3, … 9 in all]"} <= set(re.findall(r">([^<>]+)</td>", markup))
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="<i>")])
    assert "<i>" not in show_network(network)._repr_html_()


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", True])
def test_n_is_a_number_of_rows(n):
    with pytest.raises(InvalidInputError, match=r"^n: expected an integer >= 1"):
        show(Rows([(1,)], label=INT), n)


def test_only_n_rows_are_asked_for():
    frame = Rows([(row,) for row in range(30)], label=INT)
    assert repr(show(frame, 7)).endswith("7 rows")
    assert frame.limited == 7
    assert repr(show(Rows([], label=INT))).endswith("0 rows")


def network():
    backbone = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="inner")], name="backbone")
    inputs = keras.Input((8,), name="pixels")
    hidden = keras.layers.BatchNormalization(name="normal")(backbone(inputs))
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="scores")(hidden), name="net")


def test_layers_of_a_network():
    lines = [line.split() for line in repr(show_network(network())).splitlines()]
    assert ["scores", "Dense", "3", "15"] in lines
    assert ["backbone/inner", "Dense", "4", "36"] in lines
    assert ["normal", "BatchNormalization", "4", "16"] in lines
    assert " ".join(lines[-1]) == "net: 67 parameters, of which 8 are frozen or statistics"


@pytest.mark.parametrize("stage", [DeepNetModel, DeepNetEstimator])
def test_frozen_layers_are_marked(stage):
    one = stage(model=network())
    text = repr(show_network(one._set(frozenLayers=["backbone"])))
    assert [line.split()[0] for line in text.splitlines() if line.endswith("frozen")] == ["backbone", "backbone/inner"]
    assert text.endswith("of which 44 are frozen or statistics")


def test_a_model_shows_its_layers():
    model = DeepNetModel(model=network())
    markup = model._repr_html_()
    assert "numClasses=3" in markup
    assert "backbone/inner" in markup
    assert "<table" not in DeepNetModel()._repr_html_()
    with pytest.raises(InvalidInputError, match="Param model is not set"):
        show_network(DeepNetModel())
    with pytest.raises(InvalidInputError, match="received str"):
        show_network("net.keras")


@keras.saving.register_keras_serializable(package="test_display")
class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.shift = self.add_weight(shape=(3,))

    def call(self, inputs):
        return self.dense(self.dense(inputs))


def test_a_subclassed_network():
    own = Own()
    assert "not built" in repr(show_network(own))
    own(np.zeros((1, 2)))
    assert "9 parameters" in repr(show_network(own))


def test_a_summary_has_curves_and_values():
    markup = summary_of(notes_are_escaped=[0.1] * 3)._repr_html_()
    assert 'alt="curves of loss, accuracy, notes are escaped"' in markup
    assert re.findall(r">([^<>]*)</td>", markup)[:3] == ["accuracy", "0.5", "0.4"]
    assert "3 epochs of 1,200 rows" in markup
    assert len(markup) < 60_000


def test_a_summary_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    markup = summary_of()._repr_html_()
    assert "<img" not in markup
    assert "0.3333" in markup


def test_an_evaluation():
    summary = EvaluationSummary({"loss": 0.25, "f1": [0.5, 1.0]}, DeepNetModel(model=network()), None)
    assert re.findall(r">([^<>]*)</td>", summary._repr_html_()) == ["loss", "0.25", "f1", "[0.5, 1]"]
