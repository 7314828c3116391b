"""What a fit tells about itself (driver side)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cos_ml.errors import SetupError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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
        seconds: rank -> phase -> seconds: "start" (load the network), "read" (until all rows are spooled and all ranks
            have met), "join" (Horovod), "compile" (until the first steps are done, which TensorFlow traces), "train".
            The first three are the same for all candidates of a grid.
        epochSeconds: seconds of each epoch, as rank 0 saw it.
        logs: rank -> the end of what it printed.
        resumedAt: the epochs, and the steps of the next one, that came from a checkpoint; (0, 0) where none did.
        failures: why earlier attempts at the same fit failed, as far as Spark tells.
        notes: what else a person should know of it: a damaged or unwritten checkpoint, little memory.
        cacheUrl: where the rows are kept, with keepCache; else None.
    """

    history: dict[str, list[float]]
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
        epochs = len(self.epochSeconds)
        last = ", ".join(f"{name} {values[-1]:.4f}" for name, values in self.history.items())
        seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in self.seconds[0].items())
        held = f" and {self.validationRows:,} validation rows" if self.validationRows else ""
        return (
            f"{epochs} epochs of {self.rows:,} rows{held}, {self.steps:,} steps each, on {len(self.ranks)} ranks\n"
            f"last epoch: {last}\nseconds of rank 0: {seconds}"
        )

    def plot(self, path: str | None = None) -> Figure:
        """Draw the history: a panel for each metric, with its values on validation rows where there are any.

        Args:
            path: a file to write, its format by its name's end (.png, .svg, .pdf ...).

        Returns:
            matplotlib.figure.Figure: to be shown by a notebook, or changed.

        Raises:
            SetupError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise SetupError('summary.plot() needs matplotlib: pip install "cos-ml[plot]"') from error
        names = [name for name in self.history if not name.startswith("val_")]
        names.sort(key=lambda name: name != "loss")  # the loss comes first
        figure = Figure(figsize=(4.5 * len(names), 3.5), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            curves = {"training": self.history[name], "validation": self.history.get(f"val_{name}")}
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
        """The history as a DataFrame: a row per epoch, counted from 1, and a double column per metric."""
        names = list(self.history)
        rows = [(epoch + 1, *values) for epoch, values in enumerate(zip(*self.history.values(), strict=True))]
        columns = ["epoch int", *(f"`{name}` double" for name in names)]
        return spark.createDataFrame(rows, ", ".join(columns))
