"""The summary of a fit (driver side)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cos_ml.errors import SetupError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["TrainingSummary"]


@dataclass(frozen=True)
class TrainingSummary:
    """The history of one fit, and where and how it ran.

    Attributes:
        history: metric name -> its value over all ranks at each epoch; metrics of validation rows start with "val_".
        rows: number of training rows per epoch, over all ranks.
        validationRows: number of validation rows, over all ranks.
        steps: number of steps per epoch, the same on all ranks.
        ranks: where each rank ran: host, local rank and so on.
        seconds: for each rank, seconds per phase: "start" (load the network), "read" (until all rows are on local disk
            and all ranks are ready), "join" (initialize Horovod), "compile" (until the first steps, which TensorFlow
            traces, are done) and "train". All candidates of a grid share the first three.
        epochSeconds: seconds per epoch, measured by rank 0.
        logs: the tail of each rank's output.
        resumedAt: the epochs, and the steps of the next one, that a checkpoint provided; (0, 0) without one.
        failures: errors of earlier attempts at the same fit, as far as Spark reports them.
        notes: warnings, for example about a damaged checkpoint, one that could not be written, or little memory.
        cacheUrl: URL of the cached rows if keepCache is set, else None.
    """

    history: dict[str, list[Any]]
    rows: int
    validationRows: int
    steps: int
    ranks: list[dict[str, Any]]
    seconds: list[dict[str, float]]
    epochSeconds: list[float]
    logs: list[str]
    resumedAt: tuple[int, int] = (0, 0)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cacheUrl: str | None = None

    def __str__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4f}" for name, values in self._curves().items())
        seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in self.seconds[0].items())
        validation = f" and {self.validationRows:,} validation rows" if self.validationRows else ""
        return (
            f"{len(self.epochSeconds)} epochs of {self.rows:,} rows{validation}, {self.steps:,} steps each, on "
            f"{len(self.ranks)} ranks\nlast epoch: {last}\nseconds of rank 0: {seconds}"
        )

    def _curves(self) -> dict[str, list[float]]:
        """The history by name, one number each: F1Score, with one per class, becomes "f1_score_0" and so on."""
        curves: dict[str, list[float]] = {}
        for name, values in self.history.items():
            arrays = np.asarray(values, float)
            if arrays.ndim == 1:
                curves[name] = values
                continue
            flat = arrays.reshape(len(arrays), -1)
            curves |= {f"{name}_{index}": flat[:, index].tolist() for index in range(flat.shape[1])}
        return curves

    def plot(self, path: str | None = None) -> Figure:
        """Plot the history: one panel per metric, with its values on training and validation rows.

        Args:
            path: file to write; its extension decides the format (.png, .svg, .pdf ...). None writes no file.

        Returns:
            matplotlib.figure.Figure: the plot, for a notebook to show or for changes.

        Raises:
            SetupError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise SetupError('summary.plot() needs matplotlib: pip install "cos-ml[plot]"') from error
        history = self._curves()
        names = sorted((name for name in history if not name.startswith("val_")), key=lambda name: name != "loss")
        figure = Figure(figsize=(4.5 * len(names), 3.5), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            curves = {"training": history[name], "validation": history.get(f"val_{name}")}
            for label, values in curves.items():
                if values:
                    epochs = range(1, len(values) + 1)
                    axes.plot(epochs, values, label=label, marker="o" if len(values) < 10 else None)
            axes.set(title=name.replace("_", " "), xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            if curves["validation"]:
                axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure

    def toDataFrame(self, spark: SparkSession) -> DataFrame:
        """The history as a DataFrame: one row per epoch, counted from 1, and one double column per metric."""
        curves = self._curves()
        rows = [
            (epoch, *map(float, values)) for epoch, values in enumerate(zip(*curves.values(), strict=True), start=1)
        ]
        return spark.createDataFrame(rows, ", ".join(["epoch int", *(f"`{name}` double" for name in curves)]))
