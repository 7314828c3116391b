"""Stages are pickled and deeply copied as Spark's stages that are written in Python."""

import copy
import pickle

import pytest
from pyspark import cloudpickle
from pyspark.ml import Pipeline, PipelineModel

from cos_ml import DeepNetEstimator, DeepNetModel, ImageAssembler, callback
from cos_ml.network.keras_import import import_keras

keras = import_keras()
WAYS = [
    lambda one: pickle.loads(pickle.dumps(one)),
    lambda one: cloudpickle.loads(cloudpickle.dumps(one)),
    copy.deepcopy,
]


def stages(network):
    return [
        DeepNetEstimator(
            model=network, loss=keras.losses.Huber(), epochs=3, callbacks=[callback("TerminateOnNaN")],
            optimizer=keras.optimizers.SGD(0.1), featureLayers=["hidden"],
        ),
        DeepNetModel(model=network, featureLayers=["hidden"], predictBatchSize=7),
        ImageAssembler(height=3, width=4, channels=1),
        DeepNetEstimator(), DeepNetModel(), ImageAssembler(),
    ]  # fmt: skip


def values(stage):
    return {param.name: stage.getOrDefault(param) for param in stage.params if stage.isDefined(param)}


def same(one, other):
    found, expected = values(other), values(one)
    for inner in (found, expected):
        if isinstance(inner.get("model"), DeepNetModel):
            inner["model"] = values(inner["model"]) | {"uid": inner["model"].uid}
    assert (type(other), other.uid, found) == (type(one), one.uid, expected)
    assert other.params == one.params
    assert other.explainParams() == one.explainParams()


@pytest.mark.parametrize("way", WAYS, ids=["pickle", "cloudpickle", "deepcopy"])
def test_stages(way, classifier):
    for stage in stages(classifier):
        other = way(stage)
        same(stage, other)
        other.setHandleInvalid("skip")  # its converters work, and the two share nothing
        assert stage.getHandleInvalid() == "error"
        with pytest.raises(TypeError):
            other.setHandleInvalid(3)


@pytest.mark.parametrize("way", WAYS, ids=["pickle", "cloudpickle", "deepcopy"])
def test_pipelines(way, classifier):
    estimator, model, images = stages(classifier)[:3]
    pipeline = way(Pipeline(stages=[images, model, estimator]))
    for one, other in zip([images, model, estimator], pipeline.getStages(), strict=True):
        same(one, other)
    for one, other in zip([images, model], way(PipelineModel([images, model])).stages, strict=True):
        same(one, other)


def test_a_trained_model_keeps_what_its_training_left(classifier):
    model = DeepNetModel(model=classifier)
    model.compiled = {"loss": "mse"}
    again = pickle.loads(pickle.dumps(model))
    assert again.compiled == {"loss": "mse"}
    assert not again.hasSummary
    weights = again.toKeras().get_weights()
    assert all((one == other).all() for one, other in zip(weights, classifier.get_weights(), strict=True))


def test_a_stage_does_not_hold_what_it_was_made_of(classifier):
    held = pickle.dumps(DeepNetModel(model=classifier))
    assert len(held) < 2 * len(DeepNetModel(model=classifier).getOrDefault("model").archive)
