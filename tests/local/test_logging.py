"""A fit logs what it decides, one line each; docs/training.md lists them."""

from __future__ import annotations

import logging
import re

import pytest

from cos_ml import DeepNetEstimator
from tests.support import reference
from tests.support.sessions import ROOT, frame, rows_of

pytestmark = pytest.mark.once

LOGGER = "cos_ml"


def test_decisions_of_a_fit(spark, tmp_path, caplog):
    df = frame(spark, [rows_of(*reference.data(40))])
    est = DeepNetEstimator(
        model=reference.network(), loss="sparse_categorical_crossentropy", checkpointDir=str(tmp_path), progress=False
    )
    lines = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger=LOGGER):
            est.fit(df)
        lines.append([record.getMessage() for record in caplog.records if record.name.startswith(LOGGER)])
    first, second = lines
    patterns = (
        r"GPUs: .*CPUs.*", r"Versions: .*Keras 3\.\d+.*", r"Feed: arrow", r"Ranks: 1, from rank servers",
        r"Rows .*", r"Processor: .+ here, .+ where ranks ran", r"Trained on 1 ranks?; hosts: .+",
        r"Checkpoint: none found",
    )  # fmt: skip
    assert len(first) == len(patterns)
    for line, pattern in zip(first, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    assert second[-1] == "Checkpoint: resumed after epoch 1, step 0"
    documented = (ROOT / "docs/training.md").read_text()
    assert all(f"`{line.split()[0]}" in documented for line in first)


def test_quiet_by_default(spark, caplog):
    df = frame(spark, [rows_of(*reference.data(40))])
    DeepNetEstimator(model=reference.network(), loss="sparse_categorical_crossentropy", progress=False).fit(df)
    assert not [record for record in caplog.records if record.name.startswith(LOGGER)]
