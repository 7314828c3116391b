"""The exceptions of cos_ml.

CosMLError
├── InvalidInputError (ValueError)    a Param, a column, a row or a network that can't be used as it is
├── SavedModelError   (ValueError)    a saved model that can't be read, or a place where none can be written
├── ClusterError      (RuntimeError)  the cluster can't run the ranks that were asked for
├── RankError         (RuntimeError)  a rank failed while it trained; carries its traceback and last output
└── SetupError        (RuntimeError)  something has to be installed on this machine first
"""

from __future__ import annotations

import os
import re

__all__ = [
    "REPORTED",
    "ClusterError",
    "CosMLError",
    "InvalidInputError",
    "RankError",
    "SavedModelError",
    "SetupError",
    "from_spark",
]


class CosMLError(Exception):
    """Base class of everything that cos_ml raises by itself."""


class InvalidInputError(CosMLError, ValueError):
    """A Param, a column, a row or a network can't be used as it is; the message names it and says what to do."""


class SavedModelError(CosMLError, ValueError):
    """A saved model can't be read, or can't be written where it was asked to be."""


class ClusterError(CosMLError, RuntimeError):
    """The cluster can't run the ranks that were asked for; the message says which setting to change."""


class RankError(CosMLError, RuntimeError):
    """A rank failed while it trained; the message ends with its own traceback and the tail of its output."""


class SetupError(CosMLError, RuntimeError):
    """Something has to be installed on this machine first; the message gives the command."""


# What tasks and ranks return for an error that no retry can fix, by the name of the result; the first kind is raised.
REPORTED: dict[str, type[CosMLError]] = {
    "cluster_error": ClusterError,
    "input_error": InvalidInputError,
    "rank_error": RankError,
}


def from_spark(error: Exception) -> CosMLError | None:
    """What a task of Spark's raised, out of the text that Spark wraps it in; None for Spark's own (driver side)."""
    missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", str(error))
    if missing:
        return SetupError(
            f"The executors' Python has no module {missing[1]!r}. Spark starts it as "
            f"{os.environ.get('PYSPARK_PYTHON', 'python3')!r}: set the "
            "environment variable PYSPARK_PYTHON, or spark.pyspark.python, to one in which cos_ml is installed, "
            "before Spark starts."
        )
    end = r"\s+SQLSTATE: \w{5}\b|\n\s*\n?\s+at [\w.$]+\(|\n\tat |\Z"  # Spark 4.1 and later write the SQLSTATE behind it
    found = re.search(rf"cos_ml\.errors\.(RankError|InvalidInputError): (.*?)(?:{end})", str(error), re.DOTALL)
    if found is None:
        return None
    return (RankError if found[1] == "RankError" else InvalidInputError)(found[2].strip())
