"""What a fit tells about itself (driver side)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["TrainingSummary"]


@dataclass(frozen=True)
class TrainingSummary:
    """The course of one fit.

    Attributes:
        history: metric name -> its value over all ranks, by epoch; of validation rows with "val_" before the name.
        rows: training rows seen in each epoch, on all ranks.
        validationRows: validation rows, on all ranks.
        steps: steps of each epoch, the same on all ranks.
        ranks: rank -> where it ran: host, local rank and so on.
        seconds: rank -> phase -> seconds: "start" (load Keras and the network), "read" (until all rows are spooled and
            all ranks have met), "join" (Horovod), "train".
        epochSeconds: seconds of each epoch, as rank 0 saw it.
        logs: rank -> the end of what it printed.
    """

    history: dict[str, list[float]]
    rows: int
    validationRows: int
    steps: int
    ranks: list[dict[str, Any]]
    seconds: list[dict[str, float]]
    epochSeconds: list[float]
    logs: list[str]

    def toDataFrame(self, spark: SparkSession) -> DataFrame:
        """The history as a DataFrame: a row per epoch, counted from 1, and a double column per metric."""
        names = list(self.history)
        rows = [(epoch + 1, *values) for epoch, values in enumerate(zip(*self.history.values(), strict=True))]
        columns = ["epoch int", *(f"`{name}` double" for name in names)]
        return spark.createDataFrame(rows, ", ".join(columns))
