"""``cos-ml caffe``: CaffeOnSpark's command line, and what each flag does here (driver side)."""

from __future__ import annotations

import os
from typing import Any

from cos_ml.commands.session import key_values, session
from cos_ml.errors import InvalidInputError
from cos_ml.paths import local_path
from cos_ml.terminal import tell

__all__ = ["FLAGS", "add", "mapping"]

# CaffeOnSpark's flag -> what to call its value (None for a switch), help.
FLAGS: dict[str, tuple[str | None, str]] = {
    "conf": ("FILE", "the solver, which names the network"),
    "train": (None, "train on the source of the network's TRAIN data layer"),
    "test": (None, "write the means of the network's outputs over the TEST source"),
    "features": ("BLOBS", "write these blobs for each row of the TEST source"),
    "label": ("BLOB", "one more blob to write"),
    "model": ("PATH", "where -train saves the model, and what -test and -features read"),
    "output": ("PATH", "file of -test, folder of -features (default: output)"),
    "outputFormat": ("NAME", "json (default) or parquet"),
    "devices": ("N", "ranks per executor (default: 1)"),
    "clusterSize": ("N", "executors (default: spark.executor.instances, else 1)"),
    "connection": ("NAME", "ethernet or infiniband"),
    "resize": (None, "scale images to the data layer's height and width"),
    "persistent": (None, "keep the rows on disk"),
    "snapshot": ("FILE", "solverstate to resume from; needs -weights"),
    "weights": ("FILE", "caffemodel to start from"),
    "lmdb_partitions": ("N", "parts in which to read an LMDB"),
}


def add(commands: Any) -> None:
    """Add ``caffe`` to the parser."""
    parser = commands.add_parser(
        "caffe",
        help="CaffeOnSpark's command line: -conf FILE -train ...",
        description="CaffeOnSpark's flags. For each that is given, a line on standard error says what it does here.",
        usage="cos-ml caffe -conf FILE [-train] [-test | -features BLOBS] [flags]",
        allow_abbrev=False,
    )
    for name, (metavar, what) in FLAGS.items():
        if metavar is None:
            parser.add_argument(f"-{name}", dest=name, action="store_true", help=what)
        else:
            integral = {"type": int} if metavar == "N" else {}
            parser.add_argument(f"-{name}", dest=name, metavar=metavar, help=what, **integral)
    spark = parser.add_argument_group("Spark, where spark-submit has not set it")
    spark.add_argument("--master", metavar="URL", help="Spark master")
    spark.add_argument(
        "--conf", dest="settings", action="append", metavar="KEY=VALUE", help="Spark setting; repeatable"
    )
    parser.set_defaults(command=_run)


def _run(master: str | None, settings: list[str] | None, **given: Any) -> None:
    check(given)
    with session("caffe", master, key_values(settings, "--conf")) as spark:
        from cos_ml.network.keras_import import import_keras

        import_keras()  # first, for TensorFlow's own lines not to be printed
        from cos_ml.commands import caffe_job

        executors = given["clusterSize"] or int(spark.conf.get("spark.executor.instances", None) or 1)
        ranks = executors * (given["devices"] or 1)
        tell("\n".join(mapping(given, ranks)))
        caffe_job.run(spark, given, ranks)


def check(given: dict[str, Any]) -> None:
    """Raises InvalidInputError for missing and invalid flags, and for an -output that exists already."""
    if not given["conf"]:
        raise InvalidInputError("-conf: expected the solver's prototxt.")
    if not (given["train"] or given["test"] or given["features"]):
        raise InvalidInputError("Nothing to do: expected -train, -test or -features BLOBS.")
    if not given["train"] and not (given["model"] or given["weights"]):
        raise InvalidInputError("-model: expected the model that -train saved, or a .caffemodel. Or set -weights.")
    if given["snapshot"] and not given["weights"]:
        raise InvalidInputError("-snapshot: expected -weights beside it, the .caffemodel of the same iteration.")
    if given["outputFormat"] not in (None, "json", "parquet"):
        raise InvalidInputError(f"-outputFormat {given['outputFormat']}: expected json or parquet.")
    if given["connection"] and given["connection"].lower() not in ("ethernet", "infiniband"):
        raise InvalidInputError(f"-connection {given['connection']}: expected ethernet or infiniband.")
    output = local_path(given["output"] or "output")
    if given["features"] and output is not None and os.path.exists(output):  # before the training, not after it
        raise InvalidInputError(f"-output {output}: it already exists. Remove it, or name another folder.")
    for name in ("devices", "clusterSize", "lmdb_partitions"):
        if given[name] is not None and given[name] < 1:
            raise InvalidInputError(f"-{name} {given[name]}: expected an integer >= 1.")


def mapping(given: dict[str, Any], ranks: int) -> list[str]:
    """A line for each flag that is given: what it does here."""
    ending = os.path.splitext(given["model"] or "")[1]
    kind = f"{ending} file" if ending in (".keras", ".h5") else "DeepNetModel"
    meant = {
        "conf": "cos_ml.caffe.read_solver: the estimator's Params, network included",
        "train": "DeepNetEstimator.fit on the source of the TRAIN data layer; where the solver has test_interval, "
        "the TEST source validates (validationSteps)",
        "test": "not done, because -features is given, as in CaffeOnSpark"
        if given["features"]
        else "DeepNetModel.evaluate on the source of the TEST data layer, as JSON in -output",
        "features": "DeepNetModel.transform: for each blob, featureLayers has the last layer that writes it",
        "label": "one more blob beside those of -features, as an array of one number",
        "model": f"the trained model is saved as a {kind}, not as a caffemodel"
        if given["train"]
        else "the weights come from it: a DeepNetModel, a .keras file or a caffemodel",
        "output": "a folder of files with a row per sample" if given["features"] else "a file of JSON",
        "outputFormat": "the format of DataFrame.write",
        "devices": f"numTrainWorkers={ranks} (-clusterSize x -devices); useGpu where Spark has GPUs",
        "clusterSize": f"numTrainWorkers={ranks} (-clusterSize x -devices)",
        "connection": "nothing: Horovod uses Gloo over Ethernet; NCCL, between GPUs, finds InfiniBand by itself",
        "resize": 'ImageAssembler(resize="stretch") to the height and width of the data layer',
        "persistent": "nothing: ranks keep their rows on local disk during a fit",
        "snapshot": "training starts from -weights, and the optimizer's history from 0; fits of cos_ml resume by "
        "themselves, from checkpointDir (the solver's snapshot_prefix)",
        "weights": "the weights to start from, by layer name",
        "lmdb_partitions": 'option numPartitions of the format "lmdb"',
    }
    shown = {name: "" if given[name] is True else f" {given[name]}" for name in FLAGS if given[name]}
    lines = [f"-{name}{value}: {meant[name]}" for name, value in shown.items()]
    return (
        [*lines, "-model is not given: the trained model is not saved"]
        if given["train"] and not given["model"]
        else lines
    )
