"""What listeners are told of real fits."""

import keras
import numpy as np
import pytest

from cos_ml import DeepNetEstimator, listeners
from cos_ml.listeners import FitListener
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once


class Recorder(FitListener):
    def __init__(self):
        self.fits, self.begun, self.epochs, self.ended = [], [], [], []

    def on_fit_begin(self, fit):
        self.fits.append(fit)

    def on_train_begin(self, fit, begin):
        self.begun.append(begin.candidate)

    def on_epoch_end(self, fit, progress):
        self.epochs.append(progress)

    def on_fit_end(self, fit, models, error):
        self.ended.append((models, error))


def test_a_grid_tells_of_every_epoch_of_every_candidate_without_a_progress_bar(spark):
    x = np.random.default_rng(0).normal(size=(24, 3))
    rows = rows_of(x, np.arange(24) % 2)
    train = frame(spark, [rows[:12], rows[12:]])
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    est = DeepNetEstimator(
        model=net, loss="sparse_categorical_crossentropy", batchSize=4, numTrainWorkers=2, progress=False,
        metrics=["accuracy"], validationFraction=0.3,
    )  # fmt: skip
    maps = [{est.epochs: 2}, {est.epochs: 1, est.learningRate: 0.1}, {est.epochs: 1, est.featuresCol: "missing"}]
    listeners.add(recorder := Recorder())
    try:
        models = dict(est.fitMultiple(train, maps[:2]))
        with pytest.raises(Exception, match="missing"):
            est.fit(train, maps[2])  # fails before it begins: no listener learns of it
    finally:
        listeners.remove(recorder)
    [fit], [(ended, error)] = recorder.fits, recorder.ended
    assert fit.positions == (0, 1)
    assert [one.getEpochs() for one in fit.estimators] == [2, 1]
    assert fit.dataset is train
    assert sorted(recorder.begun) == [0, 1]
    assert error is None
    assert [model.uid for model in ended] == [models[0].uid, models[1].uid]
    for index, model in enumerate(ended):
        epochs = [one for one in recorder.epochs if one.candidate == index]
        history = model.summary.history
        assert [one.epoch for one in epochs] == list(range(1, len(history["loss"]) + 1))
        assert {name: [one.metrics[name] for one in epochs] for name in history} == history
        assert {(one.rows, one.candidates) for one in epochs} == {(model.summary.rows, 2)}
