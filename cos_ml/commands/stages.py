"""``cos-ml train``, ``test`` and ``features`` (driver side)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cos_ml.commands import data, network
from cos_ml.commands.session import in_folder, key_values, session, write_json
from cos_ml.commands.settings import folded, names_of_params, params_of, split
from cos_ml.data.names import quoted
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import default_names
from cos_ml.paths import exists, local_path
from cos_ml.terminal import tell

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["features", "mean", "print_params", "save", "test", "train", "training_result", "with_validation"]

NO_NETWORK = "--network: expected a .keras file, module:function or a prototxt; or a --solver that names one."
VALIDATES = "validates"  # the column that marks the rows of --validation


def train(given: dict[str, Any], rest: dict[str, Any], flags: list[str]) -> None:
    """Train a network on the rows of ``--data``; save the model, its metrics and its curves."""
    from cos_ml import DeepNetEstimator

    source = _data(given)
    _check_files(given)
    _note_colors(given)
    if "network" not in given and "solver" not in given:
        raise InvalidInputError(NO_NETWORK)
    params = params_of(DeepNetEstimator, rest, flags)
    with _session("train", given) as spark:
        folder, overwrite = given.get("save"), bool(given.get("overwrite"))
        if folder and not overwrite and exists(spark, folder):  # before the training, not after it
            raise InvalidInputError(f"--save {folder}: it already exists: --overwrite replaces it.")
        keywords = _network_params(given, data.layout(source))
        rows = _training_rows(spark, given, keywords, params)
        model = DeepNetEstimator(**keywords | params).fit(rows)
        save(model, folder, given.get("save_keras"), overwrite)
        write_json(training_result(model), given.get("metrics_file"))
        if plot := given.get("summary"):
            model.summary.plot(in_folder(plot))


def _network_params(given: dict[str, Any], layout: str) -> dict[str, Any]:
    """The Params that ``--solver``, ``--network`` and ``--weights`` set. A saved model is read in the session."""
    reference, weights = given.get("network"), given.get("weights")
    keywords: dict[str, Any] = {}
    if solver := given.get("solver"):
        from cos_ml import caffe

        keywords |= caffe.read_solver(solver, data_format=layout)
    if reference is not None:
        keywords["model"], more = network.load(reference, weights, "TRAIN", layout)
        return keywords | more
    if "model" not in keywords:
        raise InvalidInputError(NO_NETWORK)
    return keywords | ({"initialWeights": weights} if weights else {})


def _check_files(given: dict[str, Any]) -> None:
    """Raises InvalidInputError, before the training, for files that could not be written after it."""
    for name in ("save_keras", "summary"):
        if name in given and local_path(given[name]) is None:
            raise InvalidInputError(f"--{name.replace('_', '-')} {given[name]}: expected a file on this machine.")
    if not given.get("save_keras", ".keras").endswith((".keras", ".h5")):
        raise InvalidInputError(f"--save-keras {given['save_keras']}: expected a name that ends with .keras.")


def _training_rows(
    spark: SparkSession, given: dict[str, Any], keywords: dict[str, Any], params: dict[str, Any]
) -> DataFrame:
    """The rows to train on and, marked in a column of their own, those of ``--validation``."""
    source = data.with_classes(spark, _data(given))
    rows = data.read(spark, source)
    if "validation" not in given:
        return rows
    if "validationIndicatorCol" in params:
        raise InvalidInputError("--validation and --validationIndicatorCol: expected one of them.")
    keywords["validationIndicatorCol"] = VALIDATES
    return with_validation(rows, data.read(spark, replace(source, path=given["validation"])))


def with_validation(rows: DataFrame, held: DataFrame) -> DataFrame:
    """The rows that train and, marked in the column VALIDATES, those that validate."""
    from pyspark.sql import functions as F

    return rows.withColumn(VALIDATES, F.lit(False)).unionByName(held.withColumn(VALIDATES, F.lit(True)))


def save(model: Any, folder: str | None, keras_file: str | None, overwrite: bool) -> None:
    """Save a trained model as a stage of Spark ML, as a .keras file, or both."""
    if folder:
        (model.write().overwrite() if overwrite else model.write()).save(folder)
    if keras_file:
        model.toKeras().save(in_folder(keras_file))


def training_result(model: Any) -> dict[str, Any]:
    """What ``train`` reports of a fit, as plain data."""
    summary = model.summary
    return {
        "rows": summary.rows,
        "validationRows": summary.validationRows,
        "steps": summary.totalSteps,
        "stepsPerEpoch": summary.steps,
        "epochs": len(summary.epochSeconds),
        "seconds": sum(summary.epochSeconds),
        "ranks": len(summary.ranks),
        "history": summary.history,
        "notes": summary.notes,
    }


def test(given: dict[str, Any], rest: dict[str, Any], flags: list[str]) -> None:
    """Evaluate a network on the rows of ``--data``: loss and metrics, or the means of outputs and layers."""
    load = _loader(given, rest, flags)
    with _session("test", given) as spark:
        model = load()
        rows = data.read(spark, _data(given))
        found = mean(model, rows, names) if (names := _names(given, "mean")) else dict(model.evaluate(rows))
        write_json(found, given.get("metrics_file"))


def mean(model: Any, rows: DataFrame, names: list[str]) -> dict[str, Any]:
    """The means of columns that the model's ``transform`` adds, and of layers, by name."""
    own = model.transform(rows).columns[len(rows.columns) :]
    if layers := [name for name in names if name not in own]:
        columns = [*_layer_columns(model), *layers]
        model = model.copy()._set(featureLayers=[*model.getFeatureLayers(), *layers], outputCols=columns)
    row = model.mean(rows).first().asDict()
    if missing := [name for name in names if name not in row]:
        raise InvalidInputError(f"--mean {missing[0]}: the column contains names of classes, which have no mean.")
    return {name: row[name] for name in names}


def _layer_columns(model: Any) -> list[str]:
    """The names of the columns of a model's featureLayers."""
    if model.isSet(model.outputCols):
        return list(model.getOutputCols())
    return default_names(model.getOrDefault(model.model).layers, model.getFeatureLayers())


def features(given: dict[str, Any], rest: dict[str, Any], flags: list[str]) -> None:
    """Write predictions, or the activations of layers, beside columns of the rows of ``--data``."""
    from pyspark.sql import functions as F

    if "output" not in given:
        raise InvalidInputError("--output: expected the folder to write.")
    layers = _names(given, "layers")
    if layers:
        rest = {"featureLayers": layers} | rest
    load = _loader(given, rest, flags)
    with _session("features", given) as spark:
        model = load()
        if layers and "outputcols" not in map(folded, rest):
            model.clear(model.outputCols)  # those of a saved model name other layers
        rows = data.read(spark, _data(given))
        scored = model.transform(rows)
        added = _layer_columns(model) if layers else scored.columns[len(rows.columns) :]
        wanted = [*dict.fromkeys([*_names(given, "id"), *_names(given, "keep")]), *added]
        chosen = scored.select(*(F.col(quoted(name)) for name in wanted))
        path, kind = str(given["output"]), str(given.get("output_format", "parquet"))
        data.write(chosen, path, kind, bool(given.get("overwrite")))


def export(given: dict[str, Any], rest: dict[str, Any], flags: list[str]) -> None:
    """Write a network in a format that is served without Spark; ``--image-size`` lets it take image files."""
    if "output" not in given:
        raise InvalidInputError("--output: expected the file or the folder to write.")
    load = _loader({"data": "", "format": "parquet"} | given, rest, flags)
    size = given.pop("image_size", None)  # of files that the exported file decodes
    with _session("export", given) as spark:
        model = load()
        rows = data.read(spark, _data(given)) if "data" in given else None
        images = [data.assembler(size)] if size else []
        form = str(given.get("output_format", "saved_model"))
        wishes = {name: bool(given.get(name)) for name in ("pixels", "overwrite")}
        print(model.export(str(given["output"]), form, images=images, rows=rows, **wishes))


def _loader(given: dict[str, Any], rest: dict[str, Any], flags: list[str]) -> Callable[[], Any]:
    """Check the flags, and return what loads the DeepNetModel, to be called in the session that they configure."""
    from cos_ml import DeepNetModel

    if "network" not in given:
        raise InvalidInputError("--network: expected a saved model, a .keras file, module:function or a prototxt.")
    layout, params = data.layout(_data(given)), params_of(DeepNetModel, rest, flags)
    _note_colors(given)
    return lambda: network.load_model(given["network"], given.get("weights"), params, layout)


def _note_colors(given: dict[str, Any]) -> None:
    """Say that the order of colors differs where images are decoded for weights that Caffe trained."""
    size = str(given.get("image_size", "x1"))
    if str(given.get("weights", "")).endswith(".caffemodel") and not size.endswith("x1"):
        tell(
            "cos-ml: note: --image-size gives red, green, blue; Caffe trained its weights on blue, green, red, "
            "the order in which `cos-ml caffe` decodes images"
        )


def _data(given: dict[str, Any]) -> data.Data:
    if "data" not in given:
        raise InvalidInputError("--data: expected the path of the rows, or the name of a table with --format table.")
    options = key_values(given.get("option"), "--option")
    return data.Data(given["data"], given.get("format"), options, given.get("image_size"), given.get("where"))


def _session(name: str, given: dict[str, Any]) -> Any:
    return session(name, given.get("master"), key_values(given.get("conf"), "--conf"))


def _names(given: dict[str, Any], key: str) -> list[str]:
    """Names from a flag, separated by commas, or a list of a job file."""
    value = given.get(key) or []
    return split(value) if isinstance(value, str) else list(value)


def print_params(name: str | None = None) -> None:
    """Print every Param with its default and what it means, or one of them."""
    import textwrap

    from cos_ml import DeepNetEstimator

    names = names_of_params(DeepNetEstimator)
    if name is not None:
        names = list(params_of(DeepNetEstimator, {name.lstrip("-"): []}))
    for one in names:
        param = getattr(DeepNetEstimator, one)
        default = "" if param.default in (None, []) else f" (default: {param.default})"
        print(textwrap.fill(f"{param.doc}{default}", 100, initial_indent=f"--{one}  ", subsequent_indent="    "))
