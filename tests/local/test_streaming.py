"""transform on a stream."""

from __future__ import annotations

import numpy as np
import pytest

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.errors import InvalidInputError
from tests.support import reference
from tests.support.sessions import frame, rows_of


@pytest.mark.parametrize("handle_invalid", ["error", "skip"])
def test_a_stream_gives_the_rows_of_a_batch(spark, tmp_path, handle_invalid):
    source, sink = str(tmp_path / "source"), str(tmp_path / "sink")
    df = frame(spark, [rows_of(*reference.data(60))]).selectExpr("*", "monotonically_increasing_id() id")
    df.repartition(3).write.parquet(source)
    model = DeepNetModel(model=reference.network(), featureLayers=["hidden"], handleInvalid=handle_invalid)
    stream = spark.readStream.schema(df.schema).option("maxFilesPerTrigger", 1).parquet(source)
    scored = model.transform(stream)
    assert scored.isStreaming
    query = (
        scored.writeStream.format("parquet")
        .option("checkpointLocation", str(tmp_path / "checkpoint"))
        .trigger(availableNow=True)
        .start(sink)
    )
    assert query.awaitTermination(120)
    assert query.lastProgress["batchId"] == 2
    batch = model.transform(df).orderBy("id").collect()
    assert len(batch) == 60
    streamed = spark.read.parquet(sink).select(*scored.columns).orderBy("id").collect()
    for column in scored.columns:  # the last bit of a product may depend on the rows beside it
        np.testing.assert_allclose([row[column] for row in streamed], [row[column] for row in batch], atol=1e-6)


def test_fit_refuses_a_stream(spark):
    stream = spark.readStream.format("rate").load().selectExpr("array(1.0f) features", "0.0 label")
    with pytest.raises(InvalidInputError, match=r"this one is streaming"):
        DeepNetEstimator(model=reference.network(), loss="mse").fit(stream)
