import math

import numpy as np
import pytest

from cos_ml import DeepNetModel
from cos_ml.data.columns import Column, decode
from cos_ml.errors import InvalidInputError, ParamTypeError
from cos_ml.prediction import _arrow, labels_in_metadata
from cos_ml.summary import EvaluationSummary

VALUES = ["a", "b"]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"vals": VALUES, "type": "nominal"}, VALUES),
        ({"vals": [*VALUES, "__unknown"], "type": "nominal"}, None),  # StringIndexer with handleInvalid="keep"
        ({"vals": ["a", "a"], "type": "nominal"}, None),
        ({"num_vals": 2, "type": "nominal"}, None),
        ({"type": "numeric"}, None),
        ({"attrs": {"binary": [{"idx": 1, "name": "b"}, {"idx": 0, "name": "a"}]}, "num_attrs": 2}, VALUES),
        ({"attrs": {"binary": [{"idx": 1}, {"idx": 0, "name": "a"}]}, "num_attrs": 2}, None),
        ({"num_attrs": 2}, None),
        ({}, None),
    ],
)
def test_names_of_two_classes_in_metadata(attributes, expected):
    assert labels_in_metadata({"ml_attr": attributes}, 2) == expected


def test_metadata_of_others():
    assert labels_in_metadata({}, 2) is labels_in_metadata({"comment": "of the table"}, 2) is None


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_a_row_of_integers_holds_the_whole_range_and_no_more(dtype):
    column, limits = Column("x", "x0", (2,), dtype), np.iinfo(dtype)
    array, errors = decode(_arrow([int(limits.min), int(limits.max)], column), column)
    assert not errors
    assert array.dtype == dtype
    assert array.tolist() == [[limits.min, limits.max]]
    for bad in (limits.min - 1, limits.max + 1, 1.5, math.nan, math.inf):
        if -(2**63) <= bad < 2**64 or not math.isfinite(bad):
            assert len(decode(_arrow(np.array([bad, 0]), column), column)[1]) == 1


def test_a_row_of_numbers_has_the_type_of_the_input():
    for value in ([1, 2], [1.0, 2.0], (True, False), np.array([1, 2], np.float16)):
        array, errors = decode(_arrow(value, Column("x", "x0", (2,))), Column("x", "x0", (2,)))
        assert array.dtype == np.float32
        assert not errors
    assert decode(_arrow(1e300, Column("x", "x0")), Column("x", "x0"))[1]  # infinite as float32
    assert decode(_arrow(None, Column("x", "x0")), Column("x", "x0"))[1]
    for bad in ("a", object(), [[1], [1, 2]], ["1", "2"]):
        with pytest.raises(InvalidInputError, match="Expected a Vector or numbers for 'x'"):
            _arrow(bad, Column("x", "x0", (2,)))
    with pytest.raises(InvalidInputError, match="Expected strings for 'x'"):
        _arrow([1.0], Column("x", "x0", (1,), "string"))


def test_values_of_the_params():
    model = DeepNetModel(thresholds=np.array([1, 0]), labels=("a", ""), predictedLabelCol="name")
    assert (model.getThresholds(), model.getLabels(), model.getPredictedLabelCol()) == ([1.0, 0.0], ["a", ""], "name")
    assert not DeepNetModel(thresholds=None).isSet("thresholds")
    for name, bad in (("thresholds", ["a"]), ("thresholds", 0.5), ("labels", "ab"), ("labels", [1.0])):
        with pytest.raises(ParamTypeError, match=f"Param {name}: expected a list of"):
            DeepNetModel(**{name: bad})
    for name, bad in (("thresholds", [0.0, 0.0]), ("thresholds", [-1.0, 2.0]), ("labels", ["a", "a"])):
        with pytest.raises(InvalidInputError, match=f"Param {name}: expected a list of"):
            DeepNetModel(**{name: bad})


def test_a_summary_computes_nothing_before_it_is_asked():
    found = EvaluationSummary({"loss": 1.0}, DeepNetModel(predictionCol=""), None)
    assert found == {"loss": 1.0}
    assert found.predictionCol.startswith("prediction_DeepNetModel_")
    assert "r2" in dir(found)
    with pytest.raises(AttributeError, match="This summary has no 'accuracy'"):
        _ = found.accuracy
