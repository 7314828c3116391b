"""Export a model, with what decodes its images, to a format that is served without Spark (driver side)."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from pyspark.ml import PipelineModel, Transformer
from pyspark.sql import DataFrame, SparkSession

import cos_ml
from cos_ml import stores
from cos_ml.data.names import fold
from cos_ml.errors import ExportError, InvalidInputError, SavedModelError
from cos_ml.exports import formats, graph
from cos_ml.exports import rows as checked
from cos_ml.exports.formats import FORMATS, Format
from cos_ml.exports.signature import ExportedTensor, Images, Source, named
from cos_ml.images import ImageAssembler
from cos_ml.model import PREDICTED_LABEL, DeepNetModel, check_outputs
from cos_ml.network import checks
from cos_ml.network.archive import Network, find_layer, layers_by_name, load_model
from cos_ml.network.forward import ForwardPass
from cos_ml.network.keras_internals import all_layers
from cos_ml.network.signature import input_columns
from cos_ml.paths import qualified
from cos_ml.prediction import class_labels, kinds_of
from cos_ml.sources.pixels import ImageSpec
from cos_ml.versions import recorded_versions

__all__ = ["ExportedModel", "export"]

METADATA = Path("assets.extra", "cos_ml.json")  # where a SavedModel has files that TensorFlow does not read
WORDS = ("one", "two", "three")


@dataclass(frozen=True)
class ExportedModel:
    """A model that has been exported, and checked in the runtime of its format.

    Attributes:
        path: where it is.
        format: its format.
        inputs, outputs: what it takes and returns, in the names of columns.
        rows: the number of rows that it was checked with.
        difference: the largest difference from ``transform``, relative to the largest value of its column.
    """

    path: str
    format: str
    inputs: tuple[ExportedTensor, ...]
    outputs: tuple[ExportedTensor, ...]
    rows: int
    difference: float

    def __str__(self) -> str:
        sides = (", ".join(map(str, side)) for side in (self.inputs, self.outputs))
        return f"{self.path} ({self.format}): {' -> '.join(sides)}; {self.rows} rows within {self.difference:.1g}"


def export(
    stage: Transformer,
    path: str | PathLike[str],
    format: str = "saved_model",
    *,
    pixels: bool = False,
    rows: DataFrame | None = None,
    overwrite: bool = False,
) -> ExportedModel:
    """Write a trained model in a format that is served without Spark.

    The file takes an input for each input column, and returns the columns that ``transform`` adds, by their names. It
    is written to ``path`` once its own runtime, in a process of its own, has computed what ``transform`` computes.

    Args:
        stage: a DeepNetModel; or a PipelineModel that ends with one, whose ImageAssembler is exported with it. Stages
            that make none of its inputs, such as a StringIndexerModel of the labels, are left out.
        path: a folder (SavedModel) or a file to create, anywhere that Spark can write.
        format: "saved_model", "onnx" or "litert".
        pixels: whether the file takes the pixels that an ImageAssembler makes, instead of image files. Only a
            SavedModel decodes those.
        rows: rows to check with, of which the first 32 are used. Without them, rows are generated.
        overwrite: whether to replace what a former export has written there.

    Returns:
        ExportedModel: the inputs and outputs, and how close they are to those of ``transform``.

    Raises:
        ExportError: the format can't hold a layer, a stage or a column, or computes something else than ``transform``.
        SavedModelError: something already exists at ``path``.
        SetupError: the format's packages are not installed.
        InvalidInputError: a Param or a row is invalid.
    """
    form = _format(format)
    formats.check_installed(form)
    model, assemblers = _stages(stage)
    _check_images(assemblers, form, pixels)
    spark = _session() if rows is None else rows.sparkSession
    url = qualified(spark, path)
    _check_free(url, overwrite)
    plan = _Plan.of(model, assemblers, form, pixels, rows)
    arrays, expected = _expected(plan, spark, rows)
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as folder:
        file, inputs, outputs = _written(plan, folder)
        found = formats.run_exported(form, str(file), arrays)
        difference = checked.check_equal(expected, found, outputs, plan.is_half())
        _place(file, url)
    return ExportedModel(url, form.name, tuple(inputs), tuple(outputs), len(found[outputs[0].name]), difference)


@dataclass
class _Plan:
    """What is exported.

    Attributes:
        form: the format.
        model: the model.
        assemblers: what decodes its images.
        pixels: whether the file takes their pixels.
        network: the model's network.
        keras_model: the same, loaded.
        feeds: for each input of the network, the exported inputs that fill it.
        columns: the outputs of ``transform`` by column: a layer, or the index of an output and its kind of prediction.
        serve: what computes them, in TensorFlow.
    """

    form: Format
    model: DeepNetModel
    assemblers: list[ImageAssembler]
    pixels: bool
    network: Network
    keras_model: Any
    feeds: list[list[Source]]
    columns: dict[str, Any]
    labels: list[str] | None
    serve: Callable[[dict[str, Any]], dict[str, Any]] = field(init=False)

    @classmethod
    def of(
        cls, model: DeepNetModel, assemblers: list[ImageAssembler], form: Format, pixels: bool, rows: DataFrame | None
    ) -> _Plan:
        """Check and plan an export, before anything is computed."""
        network: Network = model.getOrDefault(model.model)
        checks.check_call(network, "export")
        if model.isDefined(model.attributionsCol) and model.getAttributionsCol():
            raise ExportError("Param attributionsCol: an exported file computes no gradients. Clear it.")
        kinds = kinds_of(model, network)
        labels = class_labels(model, network.outputs[0], kinds[0])
        images = {one.getOutputCol(): _images(one) for one in assemblers}
        inputs = input_columns(network, model.input_columns(), model.getPaddingValue())
        feeds = named([checked.sources_of(one, images, not pixels, rows) for one in inputs])
        columns = {
            name: key for key, name in check_outputs(model, _session().range(1).select(), network, kinds).items()
        }
        if not columns:
            raise InvalidInputError("export needs an output column, but all are omitted: set predictionCol.")
        keras_model = load_model(network.archive, network.modules)
        plan = cls(form, model, assemblers, pixels, network, keras_model, feeds, columns, labels)
        layers = [find_layer(network.layers, name) for name in model.getFeatureLayers()]
        plan.serve = graph.serving_function(
            ForwardPass(keras_model, layers),
            feeds,
            kinds,
            columns,
            model.getThresholds() if model.isSet(model.thresholds) else (),
            labels or () if PREDICTED_LABEL in columns.values() else (),
        )
        return plan

    def sources(self) -> list[Source]:
        """The exported inputs, each once."""
        return list({one.name: one for sources in self.feeds for one in sources}.values())

    def is_half(self) -> bool:
        """Whether a layer computes in half precision."""
        return any(str(layer.compute_dtype).endswith("float16") for layer in all_layers(self.keras_model))

    def words(self) -> list[str]:
        """Strings that the network knows, and others."""
        tables = [one.get_vocabulary() for one in all_layers(self.keras_model) if hasattr(one, "get_vocabulary")]
        return [*WORDS, *(str(word) for table in tables for word in table[:20])]

    def metadata(self, inputs: Sequence[ExportedTensor], outputs: Sequence[ExportedTensor]) -> str:
        """What the exported file says of itself, as JSON."""
        facts = {
            "cos_ml": cos_ml.__version__,
            "versions": recorded_versions(),
            "inputs": [vars(one) for one in inputs],
            "outputs": [vars(one) for one in outputs],
            "labels": self.labels,
            "thresholds": self.model.getThresholds() if self.model.isSet(self.model.thresholds) else None,
            "paddingValue": self.model.getPaddingValue(),
            "images": {one.getOutputCol(): vars(_images(one).spec) for one in self.assemblers},
        }
        return json.dumps(facts, indent=1)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise InvalidInputError(f"export: expected one of the formats {list(FORMATS)}, received {name!r}.")
    return FORMATS[name]


def _session() -> SparkSession:
    return SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()


def _stages(stage: Any) -> tuple[DeepNetModel, list[ImageAssembler]]:
    """The model of a stage, and the ImageAssemblers that make its inputs.

    Raises:
        ExportError: the stage has no model or several, or needs other stages.
    """
    stages = _flat(stage)
    models = [one for one in stages if isinstance(one, DeepNetModel)]
    if len(models) != 1:
        best = " Export its bestModel." if hasattr(stage, "bestModel") else ""
        received = f"a {type(stage).__name__} with {len(models)} of them"
        raise ExportError(f"export: expected a DeepNetModel, or a PipelineModel with one, received {received}.{best}")
    model, place = models[0], stages.index(models[0])
    if not model.isSet(model.model):
        raise InvalidInputError("Param model is not set: pass a keras.Model to DeepNetModel.")
    if after := stages[place + 1 :]:
        raise ExportError(
            f"export: the stage {after[0].uid} comes after the DeepNetModel, and only Spark can compute it. Export "
            f"pipeline.stages[{place}], and apply it to the outputs."
        )
    needed = {fold(name) for name in model.input_columns()}
    kept: list[ImageAssembler] = []
    for one in reversed(stages[:place]):
        made = _outputs(one)
        if made and needed.isdisjoint(map(fold, made)):
            continue
        if not isinstance(one, ImageAssembler):
            joined = " The model joins columns itself: set its inputCols." if "VectorAssembler" in one.uid else ""
            raise ExportError(
                f"export: the stage {one.uid} makes inputs of the DeepNetModel, and only Spark can compute it.{joined} "
                "Keras's preprocessing layers, such as Normalization and StringLookup, are exported with a network."
            )
        kept.insert(0, one)
    return model, kept


def _check_images(assemblers: Sequence[ImageAssembler], form: Format, pixels: bool) -> None:
    """Raises an error if the format can't decode the image files that it would have to, or nothing makes pixels."""
    if pixels and not assemblers:
        raise InvalidInputError("export: pixels=True, but no ImageAssembler makes an input of the DeepNetModel.")
    if assemblers and not pixels and not form.reads_files:
        stage = assemblers[0]
        raise ExportError(
            f"{form.title} can't hold the stage {stage.uid}: it has no operators that decode image files. Pass "
            f"pixels=True (--pixels): the file then takes the pixels, column {stage.getOutputCol()!r}. Or export a "
            "SavedModel, which decodes files."
        )


def _flat(stage: Any) -> list[Any]:
    """The stages of a pipeline, with those of pipelines in it."""
    return [one for inner in stage.stages for one in _flat(inner)] if isinstance(stage, PipelineModel) else [stage]


def _outputs(stage: Any) -> list[str]:
    """The output columns of a stage; none if it does not tell."""
    params = [stage.getParam(name) for name in ("outputCol", "outputCols") if stage.hasParam(name)]
    values = [stage.getOrDefault(param) for param in params if stage.isDefined(param)]
    return [name for value in values for name in ([value] if isinstance(value, str) else value)]


def _images(assembler: ImageAssembler) -> Images:
    for param in (assembler.height, assembler.width):
        if not assembler.isDefined(param):
            raise InvalidInputError(f"Param {param.name} is not set: set it to the size of the network's input.")
    spec = ImageSpec(
        assembler.getHeight(), assembler.getWidth(), assembler.getChannels(), assembler.getResize(),
        assembler.getOutputType(),
    )  # fmt: skip
    return Images(assembler.getInputCol(), assembler.getOutputCol(), spec)


def _expected(plan: _Plan, spark: SparkSession, rows: DataFrame | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The exported inputs of the rows, and what transform computes for them."""
    # One forward pass, so that rows are padded alike; Vectors, whose numbers are those of Spark ML.
    model = plan.model.copy({plan.model.predictBatchSize: checked.ROWS})
    stages: list[Transformer] = [model] if rows is None and plan.pixels else [*plan.assemblers, model]
    try:
        given = checked.generated(spark, plan.sources(), plan.words()) if rows is None else rows.limit(checked.ROWS)
        scored = PipelineModel(stages).transform(given)
        return checked.arrays_of(scored, plan.sources(), list(plan.columns))
    except Exception as error:
        if rows is not None:
            raise
        reason = str(error).strip().split("\n")[0]
        raise ExportError(
            f"transform rejects generated rows: {reason:.300} Pass rows, a DataFrame of rows that it accepts."
        ) from error


def _written(plan: _Plan, folder: str) -> tuple[Path, list[ExportedTensor], list[ExportedTensor]]:
    """The exported file or folder, its inputs and its outputs."""
    layers = {name: type(one).__name__ for name, one in layers_by_name(plan.keras_model).items()}
    for batch in (None, 1):  # rows; None for any number
        saved, target = Path(folder, f"saved_model_{batch}"), Path(folder, "converted")
        inputs = [one.tensor(batch) for one in plan.sources()]
        outputs = graph.write_saved_model(plan.keras_model, layers, plan.serve, inputs, str(saved))
        metadata = plan.metadata(inputs, outputs)
        if plan.form.name == "saved_model":
            (saved / METADATA).parent.mkdir()
            (saved / METADATA).write_text(metadata)
            return saved, inputs, outputs
        with contextlib.suppress(formats.FreeBatchError):
            formats.convert(plan.form, str(saved), str(target), metadata, layers)
            return target, inputs, outputs
    raise ExportError(f"{plan.form.title} can't hold this network: its loops have no fixed size.")


def _check_free(url: str, overwrite: bool) -> None:
    """Raises SavedModelError if something is there that must not be replaced."""
    filesystem, path = stores.open_filesystem(url)
    if not stores.retried(lambda: stores.exists(filesystem, path)):
        return
    if not overwrite:
        raise SavedModelError(f"{url} already exists. To replace it, pass overwrite=True.")
    if filesystem.isdir(path) and not stores.exists(filesystem, f"{path}/saved_model.pb"):
        raise SavedModelError(f"{url} is a folder without a SavedModel: export does not replace it.")


def _place(source: Path, url: str) -> None:
    """Copy a file or a folder to where it belongs, in place of what is there.

    A file replaces the one before at once. A SavedModel's main file comes last: servers take a folder that has it for
    complete.
    """
    filesystem, target = stores.open_filesystem(url)
    if source.is_file() and not filesystem.isdir(target):
        stores.make_folder(filesystem, target.rpartition("/")[0])
        stores.retried(partial(stores.write_whole, filesystem, target, [source.read_bytes()]))
        return
    files = [source] if source.is_file() else sorted(filter(Path.is_file, source.rglob("*")))
    if stores.exists(filesystem, target):
        filesystem.rm(target, recursive=True)
    try:
        for file in sorted(files, key=lambda one: one.name == "saved_model.pb"):
            name = "/".join([target, *file.relative_to(source).parts])
            stores.make_folder(filesystem, name.rpartition("/")[0])
            stores.retried(partial(stores.write_whole, filesystem, name, [file.read_bytes()]))
    except BaseException:
        with contextlib.suppress(Exception):  # the storage may be away
            filesystem.rm(target, recursive=True)
        raise
