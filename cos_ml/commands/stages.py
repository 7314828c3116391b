"""``cos-ml train``, ``test`` and ``features`` (driver side)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cos_ml.commands import data, network
from cos_ml.commands.session import key_values, session, write_json
from cos_ml.commands.settings import names_of_params, params_of
from cos_ml.errors import InvalidInputError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["features", "mean", "print_params", "save", "test", "train", "training_result"]

VALIDATES = "validates"  # the column that marks the rows of --validation


def train(given: dict[str, Any], rest: dict[str, Any], flags: list[str]) -> None:
    """Train a network on the rows of ``--data``; save the model, its metrics and its curves."""
    from cos_ml import DeepNetEstimator

    _check_paths(given)
    params = params_of(DeepNetEstimator, rest, flags)
    reference, weights = given.get("network"), given.get("weights")
    keywords: dict[str, Any] = {}
    if solver := given.get("solver"):
        from cos_ml import caffe

        keywords |= caffe.read_solver(solver, data_format=data.layout(_data(given)))
    if reference is None and "model" not in keywords:
        raise InvalidInputError("--network: expected a .keras file, module:function or a prototxt; or --solver.")
    if reference is not None:
        keywords["model"], more = network.load(reference, weights, "TRAIN", data.layout(_data(given)))
        keywords |= more
    elif weights:
        keywords["initialWeights"] = weights
    with _session("train", given) as spark:
        rows = _training_rows(spark, given, keywords, params)
        model = DeepNetEstimator(**keywords | params).fit(rows)
        save(model, given.get("save"), given.get("save_keras"), bool(given.get("overwrite")))
        if plot := given.get("summary"):
            model.summary.plot(plot)
        write_json(training_result(model), given.get("metrics_file"))


def _training_rows(
    spark: SparkSession, given: dict[str, Any], keywords: dict[str, Any], params: dict[str, Any]
) -> DataFrame:
    """The rows to train on and, marked in a column of their own, those of ``--validation``."""
    from pyspark.sql import functions as F

    rows = data.read(spark, _data(given))
    if "validation" not in given:
        return rows
    if "validationIndicatorCol" in params:
        raise InvalidInputError("--validation and --validationIndicatorCol: expected one of them.")
    keywords["validationIndicatorCol"] = VALIDATES
    held = data.read(spark, _data(given | {"data": given["validation"]}))
    return rows.withColumn(VALIDATES, F.lit(False)).unionByName(held.withColumn(VALIDATES, F.lit(True)))


def save(model: Any, folder: str | None, keras_file: str | None, overwrite: bool) -> None:
    """Save a trained model as a stage of Spark ML, as a .keras file, or both."""
    if folder:
        (model.write().overwrite() if overwrite else model.write()).save(folder)
    if keras_file:
        model.toKeras().save(keras_file)


def training_result(model: Any) -> dict[str, Any]:
    """What ``train`` reports of a fit, as plain data."""
    summary = model.summary
    return {
        "rows": summary.rows,
        "validationRows": summary.validationRows,
        "steps": summary.steps,
        "epochs": len(summary.epochSeconds),
        "seconds": sum(summary.epochSeconds),
        "ranks": len(summary.ranks),
        "history": summary.history,
        "notes": summary.notes,
    }


def test(given: dict[str, Any], rest: dict[str, Any], flags: list[str]) -> None:
    """Evaluate a network on the rows of ``--data``: loss and metrics, or the means of outputs and layers."""
    model = _model(given, rest, flags)
    with _session("test", given) as spark:
        rows = data.read(spark, _data(given))
        found = mean(model, rows, names) if (names := _names(given, "mean")) else dict(model.evaluate(rows))
        write_json(found, given.get("metrics_file"))


def mean(model: Any, rows: DataFrame, names: list[str]) -> dict[str, Any]:
    """The means of columns of the model's ``transform``, by name; layers among them are computed."""
    from cos_ml.network.archive import find_layer

    columns = {model.getPredictionCol(), model.getProbabilityCol(), model.getRawPredictionCol()}
    layers = [name for name in names if name not in columns and not name.startswith(tuple(filter(None, columns)))]
    archive = model.getOrDefault(model.model)
    for layer in layers:
        find_layer(archive.layers, layer)
    if layers:
        model = model.copy()._set(featureLayers=layers, outputCols=layers)
    row = model.mean(rows).first().asDict()
    return {name: row[name] for name in names}


def features(given: dict[str, Any], rest: dict[str, Any], flags: list[str]) -> None:
    """Write predictions, or the activations of layers, beside columns of the rows of ``--data``."""
    from pyspark.sql import functions as F

    if "output" not in given:
        raise InvalidInputError("--output: expected the folder to write.")
    layers = _names(given, "layers")
    if layers:
        rest = {"featureLayers": layers} | rest
    model = _model(given, rest, flags)
    with _session("features", given) as spark:
        rows = data.read(spark, _data(given))
        scored = model.transform(rows)
        added = [name for name in scored.columns if name not in rows.columns]
        if layers:
            own = model.getOutputCols() if model.isSet(model.outputCols) else [one.rsplit("/", 1)[-1] for one in layers]
            added = [name for name in added if name in own]
        wanted = [*dict.fromkeys([*_names(given, "id"), *_names(given, "keep")]), *added]
        chosen = scored.select(*(F.col(f"`{name}`") for name in wanted))
        path, kind = str(given["output"]), str(given.get("output_format", "parquet"))
        data.write(chosen, path, kind, bool(given.get("overwrite")))


def _model(given: dict[str, Any], rest: dict[str, Any], flags: list[str]) -> Any:
    from cos_ml import DeepNetModel

    if "network" not in given:
        raise InvalidInputError("--network: expected a saved model, a .keras file, module:function or a prototxt.")
    _check_paths(given)
    params = params_of(DeepNetModel, rest, flags)
    return network.load_model(given["network"], given.get("weights"), params, data.layout(_data(given)))


def _check_paths(given: dict[str, Any]) -> None:
    if "data" not in given:
        raise InvalidInputError("--data: expected the path of the rows, or the name of a table with --format table.")


def _data(given: dict[str, Any]) -> data.Data:
    options = key_values(given.get("option"), "--option")
    return data.Data(given["data"], given.get("format"), options, given.get("image_size"), given.get("where"))


def _session(name: str, given: dict[str, Any]) -> Any:
    return session(name, given.get("master"), key_values(given.get("conf"), "--conf"))


def _names(given: dict[str, Any], key: str) -> list[str]:
    """Names from a flag, separated by commas, or a list of a job file."""
    value = given.get(key) or []
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else list(value)


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
