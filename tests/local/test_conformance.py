"""Cases of the conformance table through Spark: from a DataFrame to the model that ``fit`` returns.

All of them, without Spark, are in ``tests/conformance``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from tests.conformance.case import Case
from tests.conformance.pair import gap
from tests.conformance.table import CASES
from tests.conformance.training import estimator, frame, plain, shares, weights_of

pytestmark = pytest.mark.once

# The cases of a group read the same columns, so they train in one job.
GROUPS = [
    ["own train_step", "two optimizers", "own compute_metrics", "ModelCheckpoint"],
    ["gradient penalty", "own compile", "AdamW", "own schedule", "a kernel that is not trained"],
    ["mask", "LSTM tagger"],
    ["any length: tags, mask", "GRU tagger, any length"],
]  # fmt: skip


def case_of(name: str) -> Case:
    """A case with as many rows as all others: those of a group train on the same."""
    return replace(CASES[name], train=2 * 16 + 11, valid=16 + 5)


def data_frame(spark: SparkSession, name: str) -> DataFrame:
    """The rows of a case, in a partition for each rank."""
    parts = shares(case_of(name), 2)
    columns = {key: rows for key, rows in parts[0].items() if key != "held"}
    schema = frame(columns).schema
    rows = [[tuple(_plain(part[one.name][row], one.dataType) for one in schema) for row in range(len(part["held"]))]
            for part in parts]  # fmt: skip
    return spark.createDataFrame(spark.sparkContext.parallelize(rows, 2).flatMap(list), schema)


def _plain(value: np.ndarray, kind: T.DataType) -> object:
    numbers = np.asarray(value).ravel().tolist()
    return numbers if isinstance(kind, T.ArrayType) else numbers[0]


@pytest.mark.parametrize(
    "names", [pytest.param(one, id=one[0], marks=[pytest.mark.more] * (one[0] != "own train_step")) for one in GROUPS]
)
def test_cases_through_spark(spark, tmp_path, names):
    folders = [tmp_path / name.replace("/", " ") for name in names]
    for folder in folders:
        folder.mkdir()
    each = [estimator(case_of(name), 2, folder) for name, folder in zip(names, folders, strict=True)]
    maps = [{each[0].getParam(param.name): one.getOrDefault(param) for param in one.params if one.isSet(param)}
            for one in each]  # fmt: skip
    models = each[0].fit(data_frame(spark, names[0]), maps)
    for name, folder, model in zip(names, folders, models, strict=True):
        _, weights, history = plain(case_of(name), folder)
        got = {key: values for key, values in model.summary.history.items() if key in history}
        assert sorted(got) == sorted(history), name
        assert gap(weights_of(model.toKeras()), weights) <= max(case_of(name).tolerance, 1e-5), name
        assert gap(list(got.values()), [history[key] for key in got]) <= max(case_of(name).tolerance, 1e-5), name
