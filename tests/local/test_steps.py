"""A fit that counts steps: its history as a DataFrame, its lines, and TensorBoard's files."""

import numpy as np
import pytest

from cos_ml import callback
from tests.local.test_training_params import frame, make, parts  # noqa: F401  # a fixture


@pytest.mark.once
def test_a_fit_by_steps(spark, parts, tmp_path, capfd):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    df = frame(spark, [parts[:150], parts[150:]]).selectExpr("*", "rand(1) < 0.3 AS held")
    board = callback("TensorBoard", log_dir=str(tmp_path / "logs"))
    est = make(maxSteps=7, validationSteps=3, validationIndicatorCol="held", callbacks=[board], progress=True)
    summary = est.fit(df).summary
    assert summary.totalSteps == 7
    assert summary.history["step"][-1] == 7
    table = summary.toDataFrame(spark).toPandas()
    assert table["step"].tolist() == summary.history["step"]
    assert {3, 6} <= set(table["step"])
    (file,) = (tmp_path / "logs" / "validation").iterdir()
    events = EventAccumulator(str(file)).Reload().Tensors("evaluation_loss_vs_iterations")
    assert [event.step for event in events] == summary.history["step"]
    logged = [float(make_ndarray(event.tensor_proto)) for event in events]
    np.testing.assert_allclose(logged, summary.history["val_loss"], rtol=1e-6)
    assert capfd.readouterr().err.count("val_loss") == len(table)
