"""A GPU that is asked for and not there."""

import pytest

from cos_ml import DeepNetEstimator
from cos_ml.errors import RankError
from tests.support import reference
from tests.support.processes import assert_nothing_left
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once


def test_no_gpu_is_an_error_and_no_silent_cpu_run(spark):
    data = frame(spark, [rows_of(*reference.data(32))] * 2)
    estimator = DeepNetEstimator(
        model=reference.network(),
        loss="sparse_categorical_crossentropy",
        numTrainWorkers=2,
        useGpu=True,
        progress=False,
    )
    with pytest.raises(RankError, match=r"sees no GPU \(CUDA_VISIBLE_DEVICES=[01]; .*nvidia-smi.*useGpu=False"):
        estimator.fit(data)
    assert_nothing_left(spark)
