"""The exceptions of cos_ml (every side).

CosMLError
├── InvalidInputError (ValueError)    a Param, a column, a row or a network is invalid
│   └── ParamTypeError (TypeError)    the value of a Param has the wrong type
├── SavedModelError   (ValueError)    a saved stage can't be loaded, or a path can't be saved to
├── ExportError       (ValueError)    a model can't be exported to a format, or computes something else there
├── ClusterError      (RuntimeError)  the cluster can't run the requested ranks
├── RankError         (RuntimeError)  a rank failed during training; contains its traceback and last output
└── SetupError        (RuntimeError)  a required package is not installed
"""

from __future__ import annotations

import os
import re

__all__ = [
    "REPORTED",
    "ClusterError",
    "CosMLError",
    "ExportError",
    "InvalidInputError",
    "ParamTypeError",
    "RankError",
    "SavedModelError",
    "SetupError",
    "from_spark",
]


class CosMLError(Exception):
    """Base class of all exceptions that cos_ml defines."""


class InvalidInputError(CosMLError, ValueError):
    """A Param, a column, a row or a network is invalid; the message names it and says what to do."""


class ParamTypeError(InvalidInputError, TypeError):
    """The value of a Param has the wrong type: a TypeError, as from Spark's own stages."""


class SavedModelError(CosMLError, ValueError):
    """A saved stage can't be loaded, or the requested path can't be saved to."""


class ExportError(CosMLError, ValueError):
    """A model can't be exported: the format can't hold a layer, or its runtime computes something else."""


class ClusterError(CosMLError, RuntimeError):
    """The cluster can't run the requested ranks; the message says which setting to change."""


class RankError(CosMLError, RuntimeError):
    """A rank failed during training; the message ends with its traceback and the tail of its output."""


class SetupError(CosMLError, RuntimeError):
    """A required package is not installed on this machine; the message gives the command that installs it."""


# Errors that no retry can fix: tasks and ranks return them as results of these names. The first kind found is raised.
REPORTED: dict[str, type[CosMLError]] = {
    "cluster_error": ClusterError,
    "input_error": InvalidInputError,
    "rank_error": RankError,
}


def from_spark(error: Exception) -> CosMLError | None:
    """The cos_ml error that a Spark task raised, parsed from Spark's message; None for other errors (driver side)."""
    missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", str(error))
    if missing:
        connect = ".connect" in type(error).__module__  # whose server has an environment of its own
        started = "" if connect else f" Spark starts it as {os.environ.get('PYSPARK_PYTHON', 'python3')!r}."
        return SetupError(
            f"The executors' Python has no module {missing[1]!r}.{started} Before "
            f"{'the server of Spark Connect' if connect else 'Spark'} starts, set the environment variable "
            "PYSPARK_PYTHON, or spark.pyspark.python, to a Python in which cos_ml is installed."
        )
    end = r"\s+SQLSTATE: \w{5}\b|\n\s*\n?\s+at [\w.$]+\(|\n\tat |\Z"  # Spark 4.1 and later append a SQLSTATE
    kinds = {kind.__name__: kind for kind in (RankError, InvalidInputError, SetupError, ClusterError)}
    found = re.search(rf"cos_ml\.errors\.({'|'.join(kinds)}): (.*?)(?:{end})", str(error), re.DOTALL)
    return kinds[found[1]](found[2].strip()) if found else None
