"""Measure the product and its peers in one run, and print them side by side: ``python -m tests.benchmarks``.

Seconds on one machine mean little on the next; the ratios of one run are what counts. Nothing fails for being slow.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import data, peer_environment
from tests.benchmarks.process import run


@dataclass(frozen=True)
class Line:
    """One line of the table. The ratio is product to peer; ``most`` and ``least`` are the bar that it has to keep."""

    what: str
    product: float
    peer: float
    most: float | None = None
    least: float | None = None

    def __str__(self) -> str:
        ratio = self.product / self.peer
        shown = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
        places = ",.1f" if self.product < 1000 else ",.0f"
        row = f"{self.what:<54}{self.product:>10{places}}{self.peer:>10{places}}{shown:>8}"
        if self.most is not None:
            return f"{row}  <= {self.most:.2f}  {'met' if ratio <= self.most else 'missed'}"
        if self.least is not None:
            return f"{row}  >= {self.least:.2f}  {'met' if ratio >= self.least else 'missed'}"
        return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer",
        metavar="PYTHON",
        help="the python of an environment with Horovod's KerasEstimator (without: made once, and kept in the cache)",
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cos_ml_benchmarks_") as name:
        folder = Path(name)
        peer = chosen.peer or peer_environment.python(folder / "peer_environment.log")
        print(
            f"{data.ROWS:,} rows x {data.FEATURES} float32, a {data.FEATURES}-{data.HIDDEN}-{data.CLASSES} MLP, Adam, "
            f"{data.EPOCHS} epochs, {data.RANKS} ranks of batch {data.BATCH}, local[{data.RANKS}]; "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        rows = str(folder / "rows")
        data.write_rows(Path(rows))
        fit = _measure("fit", folder, sys.executable, rows)
        keras_estimator = _measure("peer_keras_estimator", folder, peer, rows, str(folder / "store"))
        transform = _measure("transform", folder, sys.executable, rows)
        tuning = _measure("tuning", folder, sys.executable)
        feeds = _measure("feeds", folder, sys.executable, rows)
        checkpoints = _measure("checkpoints", folder, sys.executable, rows)
    print(_table(fit, keras_estimator, transform, tuning))
    what = "fit with a checkpoint each epoch, s           without"
    print(Line(what, checkpoints["with"], checkpoints["without"], most=1.05))
    for name, rate in feeds.items():
        print(f"{'feed, rows/s: ' + name:<54}{rate:>10,.0f}")


def _measure(module: str, folder: Path, python: str, *arguments: str) -> dict[str, Any]:
    """The figures of one module, from a process of its own: the peer's versions differ, and Spark starts fresh."""
    if sys.stderr.isatty():
        print(f"{module} ...", end="\r", file=sys.stderr, flush=True)
    result = folder / f"{module}.json"
    run([python, "-m", f"{__package__}.{module}", *arguments, str(result)], folder / f"{module}.log")
    return json.loads(result.read_text())


def _table(
    fit: dict[str, Any], keras_estimator: dict[str, Any], transform: dict[str, float], tuning: dict[str, float]
) -> str:
    candidates = [name for name in transform if name.startswith("predict_batch_udf")]
    peer = max(candidates, key=transform.__getitem__)
    lines = [
        f"{'':<54}{'product':>10}{'peer':>10}{'ratio':>8}  bar",
        Line(
            "fit, first of a session, s        KerasEstimator", fit["fits"][0], keras_estimator["fits"][0], most=1 / 3
        ),
        Line(
            "fit, second, s                    KerasEstimator", fit["fits"][1], keras_estimator["fits"][1], most=1 / 3
        ),
        Line("transform, rows/s                 predict_batch_udf", transform["product"], transform[peer], least=1.2),
        Line(
            "  one column, as the peer         predict_batch_udf",
            transform["product, probability"],
            transform[peer],
        ),
        Line("transform, rows/s                 KerasEstimator", transform["product"], keras_estimator["transform"]),
        Line("grid of 4, 3 folds of digits, s   12 separate fits", tuning["together"], tuning["separate"], most=0.4),
        # Not its accuracy: that metric stays at chance in KerasEstimator's history, while its network learns.
        f"loss of the last epoch: product {fit['loss']:.3f}, KerasEstimator {keras_estimator['loss']:.3f} "
        "(it doubles the learning rate on two ranks)",
        "predict_batch_udf, rows/s: "
        + ", ".join(
            f"{transform[name]:,.0f} by {how}"
            for name, how in zip(candidates, ("tf.function", "Keras's predict"), strict=True)
        ),
    ]
    return "\n".join(map(str, lines))


if __name__ == "__main__":
    main()
