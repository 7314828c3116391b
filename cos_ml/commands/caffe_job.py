"""What ``cos-ml caffe`` runs: a fit, then features or a test (driver side)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras

from cos_ml import caffe
from cos_ml.caffe import prototxt
from cos_ml.caffe.prototxt import spelled
from cos_ml.commands import caffe_data, data, network
from cos_ml.commands.session import write_json
from cos_ml.commands.settings import split
from cos_ml.commands.stages import VALIDATES, save, with_validation
from cos_ml.data.names import quoted
from cos_ml.errors import InvalidInputError
from cos_ml.paths import local_path, qualified_file

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["run"]

NO_COLUMNS: dict[str, Any] = {"predictionCol": "", "probabilityCol": "", "rawPredictionCol": ""}


@dataclass
class Job:
    """A run of ``cos-ml caffe``.

    Attributes:
        spark: the session.
        given: CaffeOnSpark's flags.
        solver: the message of ``-conf``.
        net: the network's file, or its message.
        sources: the rows of each phase that were read.
    """

    spark: SparkSession
    given: dict[str, Any]
    solver: Any
    net: Any
    sources: dict[str, caffe_data.Source] = field(default_factory=dict)

    def stages(self, phase: str) -> list[str]:
        """The stages of the network in a phase."""
        states = [self.solver.train_state] if phase == "TRAIN" else list(self.solver.test_state[:1])
        return [stage for state in states for stage in state.stage]

    def level(self, phase: str) -> int:
        """The level of the network in a phase."""
        if phase == "TRAIN":
            return int(self.solver.train_state.level)
        return int(self.solver.test_state[0].level) if self.solver.test_state else 0

    def layers(self, phase: str) -> list[Any]:
        """The network's layers in a phase."""
        return prototxt.selected(prototxt.network(self.net), phase, self.stages(phase), self.level(phase))

    def source(self, phase: str) -> caffe_data.Source:
        """The rows of the network's data layer in a phase."""
        if phase not in self.sources:
            layer = caffe_data.data_layer(self.layers(phase), phase)
            beside = self.net if isinstance(self.net, str) else self.given["conf"]
            given = self.given
            found = caffe_data.read(self.spark, layer, beside, given["resize"], given["lmdb_partitions"])
            self.sources[phase] = found
        return self.sources[phase]

    def scoring(self, weights: str | None) -> keras.Model:
        """The network of the phase TEST, for rows as the data layers give them."""
        stages, level = self.stages("TEST"), self.level("TEST")
        shapes = self.source("TEST").shapes
        return caffe.read(self.net, weights, "TEST", shapes, stages, level, "channels_first", transform=True)


def run(spark: SparkSession, given: dict[str, Any], ranks: int) -> None:
    """Do what the flags say, in CaffeOnSpark's order."""
    solver = prototxt.solver(given["conf"])
    named = [name for name in ("net", "train_net", "net_param", "train_net_param") if solver.HasField(name)]
    if not named:
        raise InvalidInputError(f"-conf {given['conf']}: it names no network: expected net: FILE.")
    net = getattr(solver, named[0])
    job = Job(spark, given, solver, prototxt.resolve(net, given["conf"]) if isinstance(net, str) else net)
    trained = _train(job, ranks) if given["train"] else None
    if given["features"] or given["test"]:
        scoring = _scoring_network(job, trained)
        (_features if given["features"] else _test)(job, scoring)


def _train(job: Job, ranks: int) -> keras.Model:
    """Fit the network of the phase TRAIN, and save it."""
    from cos_ml import DeepNetEstimator

    given, source = job.given, job.source("TRAIN")
    keywords = caffe.read_solver(
        given["conf"], weights=given["weights"], inputs=source.shapes, data_format="channels_first"
    )
    rows = source.rows
    interval = keywords.pop("validationSteps", None)
    if interval and job.solver.test_iter and job.solver.test_iter[0]:
        rows = with_validation(rows, job.source("TEST").rows)
        keywords |= {"validationIndicatorCol": VALIDATES, "validationSteps": interval}
    columns, rows = _columns(job, "TRAIN", keywords["model"], rows)
    if prefix := keywords.get("checkpointDir"):
        keywords["checkpointDir"] = _absolute(prefix)
    has_gpus = job.spark.conf.get("spark.task.resource.gpu.amount", None) is not None
    model = DeepNetEstimator(numTrainWorkers=ranks, useGpu=has_gpus, **keywords | columns).fit(rows)
    if path := given["model"]:
        as_file = path.endswith((".keras", ".h5"))
        save(model, None if as_file else path, path if as_file else None, overwrite=True)
    return model.toKeras()


def _columns(job: Job, phase: str, model: keras.Model, rows: DataFrame) -> tuple[dict[str, Any], DataFrame]:
    """The Params that name columns: of inputs by the tops' names, of labels by what the losses read."""
    from pyspark.sql import functions as F

    tops = {spelled(top): top for top in job.source(phase).tops}
    inputs = [tops[one.name] for one in model.inputs]
    read = [layer.bottom[-1] for layer in job.layers(phase) if layer.type.endswith("Loss") and len(layer.bottom) > 1]
    labels = [blob for blob in read if blob in tops.values() and blob not in inputs]
    own: list[str] = []
    for blob in labels:  # a column for each loss: GoogLeNet's three read one label
        name = blob if blob not in own else f"{blob}_{len(own) + 1}"
        rows = rows if name == blob else rows.withColumn(name, F.col(blob))
        own.append(name)
    columns: dict[str, Any] = {"featuresCol": inputs[0]} if len(inputs) == 1 else {"inputCols": inputs}
    if own:
        columns |= {"labelCol": own[0]} if len(own) == 1 else {"labelCols": own}
    return columns, rows


def _scoring_network(job: Job, trained: keras.Model | None) -> keras.Model:
    """The network of the phase TEST with the weights that were trained, or those of -model or -weights."""
    path = job.given["model"] or job.given["weights"]
    if trained is None and path.endswith((".caffemodel", ".caffemodel.h5")):
        return job.scoring(local_path(path) or path)
    if trained is None:
        trained = network.load_model(path, None, {}).toKeras()
    found = job.scoring(None)
    given = {layer.name: layer for layer in trained.layers}
    for layer in found.layers:
        if layer.weights and layer.name not in given:
            raise InvalidInputError(f"-model: it has no layer {layer.name!r}, which the TEST network has.")
        if layer.weights:
            layer.set_weights(given[layer.name].get_weights())
    return found


def _features(job: Job, scoring: keras.Model) -> None:
    """Write SampleID and blobs, each as an array of floats in Caffe's order, as CaffeOnSpark did."""
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as F

    from cos_ml import DeepNetModel

    source = job.source("TEST")
    label = [job.given["label"]] if job.given["label"] else []
    blobs = list(dict.fromkeys([*split(job.given["features"]), *label]))
    columns, rows = _columns(job, "TEST", scoring, source.rows)
    inputs = [columns["featuresCol"]] if "featuresCol" in columns else columns["inputCols"]
    computed = [blob for blob in blobs if blob not in source.tops or blob in inputs]
    wanted = {blob: F.array(F.col(quoted(blob)).cast("float")) for blob in blobs if blob not in computed}
    if computed:
        stages, level = job.stages("TEST"), job.level("TEST")
        names = [caffe.layer_of_blob(job.net, blob, "TEST", stages, level, transform=True) for blob in computed]
        flat = [_in_caffe_order(scoring, name, f"blob_{at}") for at, name in enumerate(names)]
        given = {name: value for name, value in columns.items() if not name.startswith("label")} | NO_COLUMNS
        layers = [f"blob_{at}" for at in range(len(flat))]
        model = DeepNetModel(model=keras.Model(scoring.inputs, flat), featureLayers=layers, **given)
        rows = model.transform(rows)
        wanted |= {blob: vector_to_array(F.col(f"blob_{at}"), "float32") for at, blob in enumerate(computed)}
    chosen = rows.select(caffe_data.SAMPLE_ID, *(wanted[blob].alias(blob) for blob in blobs))
    data.write(chosen, _absolute(job.given["output"] or "output"), job.given["outputFormat"] or "json", overwrite=False)


def _in_caffe_order(network: keras.Model, layer: str, name: str) -> Any:
    """A layer's output, flat: images have their channels first in Caffe and in inputs, and last in other layers."""
    tensor = network.get_layer(layer).output
    if len(tensor.shape) == 4 and layer not in [one.name for one in network.inputs]:
        tensor = keras.layers.Permute((3, 1, 2), name=f"{name}_permute")(tensor)
    return keras.layers.Flatten(name=name)(tensor)


def _test(job: Job, scoring: keras.Model) -> None:
    """Write the loss and the metrics, or where the network has no loss the means of its outputs, as JSON."""
    from cos_ml import DeepNetModel

    columns, rows = _columns(job, "TEST", scoring, job.source("TEST").rows)
    model = DeepNetModel(model=scoring, **columns)
    compiled = any(layer.type.endswith("Loss") for layer in job.layers("TEST"))
    found = dict(model.evaluate(rows)) if compiled else model.mean(rows).collect()[0].asDict()
    write_json(found, None)
    if job.given["output"]:
        write_json(found, job.given["output"])


def _absolute(path: str) -> str:
    """What Spark means by a path; on this machine a relative one is in the working folder."""
    url = qualified_file(path)
    return os.path.abspath(url) if local_path(url) == url else url
