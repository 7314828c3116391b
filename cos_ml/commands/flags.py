"""The flags of the commands that use Spark, and how argparse's result becomes settings (driver side)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from cos_ml.commands.settings import folded, from_job_file, param_flags

__all__ = ["COMMANDS", "add", "names", "settings"]

PARAMS = """\
Params are flags too, as --batchSize 64 or --batch-size 64, lists with commas:
  {}
`cos-ml params` describes all of them."""
TRAINING_PARAMS = """\
--featuresCol --labelCol --weightCol --loss --metrics --optimizer --seed
  --learningRate --batchSize --epochs --numTrainWorkers --checkpointDir ..."""
SCORING_PARAMS = "--featuresCol --labelCol --weightCol --predictBatchSize --handleInvalid ..."

# Group -> flags: dest, what to call the value (None for a switch), help.
Flag = tuple[str, str | None, str]
DATA: list[Flag] = [
    ("data", "PATH", "rows: a path, a URL or the name of a table"),
    ("format", "NAME", "parquet, lmdb, sequencefile, images, delta, table ..."),
    ("option", "KEY=VALUE", "option of the format's reader; repeatable"),
    ("image_size", "HxWxC", "decode image files in column data to column image"),
    ("where", "SQL", "read only rows that meet this condition"),
]
NETWORK: list[Flag] = [
    ("network", "NAME", "a .keras file, module:function, prototxt or saved model"),
    ("weights", "FILE", "a .caffemodel; in train also a .keras or .h5 file"),
]
SPARK: list[Flag] = [
    ("master", "URL", "Spark master (default: as set for Spark, else local[*])"),
    ("conf", "KEY=VALUE", "Spark setting; repeatable"),
    ("job", "FILE", "YAML or JSON with flags and Params; flags win"),
]
TRAIN: list[Flag] = [
    ("solver", "FILE", "Caffe's solver: its settings become Params"),
    ("validation", "PATH", "rows to validate with, in the format of --data"),
    ("save", "DIR", "save the model as a stage of Spark ML"),
    ("save_keras", "FILE", "save the network as a .keras file"),
    ("overwrite", None, "replace an existing --save"),
    ("summary", "FILE", "plot of the curves: .png, .svg, .pdf"),
    ("metrics_file", "FILE", "JSON file for the history (default: stdout)"),
]
TEST: list[Flag] = [
    ("mean", "NAMES", "means of these columns and layers, not metrics"),
    ("metrics_file", "FILE", "JSON file for the result (default: stdout)"),
]
FEATURES: list[Flag] = [
    ("output", "PATH", "folder to write"),
    ("output_format", "NAME", "parquet (default), json, orc, delta ..."),
    ("layers", "NAMES", "layers whose activations to write (default: the predictions)"),
    ("id", "COLUMN", "column that identifies a row, written first"),
    ("keep", "COLUMNS", "further columns of the rows to write"),
    ("overwrite", None, "replace an existing --output"),
]
EXPORT: list[Flag] = [
    ("output", "PATH", "file (a SavedModel: folder) to write"),
    ("output_format", "NAME", "saved_model (default), onnx or litert"),
    ("pixels", None, "with --image-size: take pixels, not image files"),
    ("overwrite", None, "replace an existing --output"),
]
COMMANDS: dict[str, tuple[str, dict[str, list[Flag]]]] = {
    "train": (
        "train a network on a data set",
        {"data": DATA, "network": NETWORK, "training": TRAIN, "spark": SPARK},
    ),
    "test": (
        "evaluate a network: loss and metrics, or means of layers",
        {"data": DATA, "network": NETWORK, "test": TEST, "spark": SPARK},
    ),
    "features": (
        "write predictions or activations of layers",
        {"data": DATA, "network": NETWORK, "output": FEATURES, "spark": SPARK},
    ),
    "export": (
        "export a network to a format that is served without Spark",
        {
            "network": NETWORK,
            "output": EXPORT,
            "data": [("data", "PATH", "rows to check with"), *DATA[1:]],
            "spark": SPARK,
        },
    ),
}
REPEATABLE = ("option", "conf")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with a line for each flag."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=82)


def add(commands: Any) -> None:
    """Add ``train``, ``test``, ``features`` and ``export`` to the parser."""
    for name, (what, groups) in COMMANDS.items():
        parser = commands.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}{'' if name == 'export' else ', on Spark'}.",
            epilog=PARAMS.format(TRAINING_PARAMS if name == "train" else SCORING_PARAMS),
            formatter_class=_Formatter,
            usage=f"cos-ml {name} {'--output' if name == 'export' else '--data'} PATH --network NAME [flags] [Params]",
            add_help=False,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        for title, flags in groups.items():
            _add_flags(parser.add_argument_group(title), flags)
        parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        parser.set_defaults(command=_runner(name), takes_params=True)
    params = commands.add_parser("params", help="describe the Params", description="Describe the Params, or one.")
    params.add_argument("name", nargs="?", metavar="NAME", help="a Param")
    params.set_defaults(command=_print_params)


def _add_flags(group: Any, flags: list[Flag]) -> None:
    for name, metavar, what in flags:
        spelling = f"--{name.replace('_', '-')}"
        if metavar is None:
            group.add_argument(spelling, dest=name, action="store_true", help=what)
        else:
            action = "append" if name in REPEATABLE else "store"
            group.add_argument(spelling, dest=name, metavar=metavar, action=action, help=what)
        if name == "network":  # what users call a trained network
            group.add_argument("--model", dest=name, help=argparse.SUPPRESS)


def names(command: str) -> list[str]:
    """The flags of a command, as argparse stores them."""
    return [name for flags in COMMANDS[command][1].values() for name, _, _ in flags]


def _runner(command: str) -> Callable[..., None]:
    def run(rest: Sequence[str], **flags: Any) -> None:
        given, params = settings(command, flags, rest)
        from cos_ml.commands import stages

        getattr(stages, command)(given, params, [name.replace("_", "-") for name in names(command)])

    return run


def settings(command: str, flags: dict[str, Any], rest: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a command and its Params: those of the job file, and over them those of the flags."""
    params = param_flags(rest)
    if "job" not in flags:
        return flags, params
    known = [name for name in names(command) if name != "job"]
    own, others = from_job_file(flags.pop("job"), known)
    spelled = {folded(name) for name in params}
    return own | flags, {name: value for name, value in others.items() if folded(name) not in spelled} | params


def _print_params(name: str | None) -> None:
    from cos_ml.commands import stages

    stages.print_params(name)
