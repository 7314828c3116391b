"""A fit in which hosts are cut off: ``program.py MASTER FOLDER PAUSED``; writes how it ended to the folder, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cos_ml import callback
from cos_ml.errors import CosMLError
from tests.networks.callbacks import Pause
from tests.networks.cluster import SETTINGS
from tests.support import reference
from tests.support.reference import estimator, split
from tests.support.sessions import frame, rows_of, session

STALL = 8.0  # seconds


def main(master: str, folder: Path) -> None:
    spark = next(session(master, folder / "spark", **SETTINGS))
    df = frame(spark, [rows_of(*part) for part in split(reference.data(96), 48, 48)])
    pause = callback(Pause, ranks="first", folder=str(folder))
    est = estimator(
        reference.network(), epochs=4, callbacks=[pause], stallTimeout=STALL, checkpointDir=f"{folder}/states"
    )
    try:
        model = est.fit(df)
        weights = [weight.tolist() for weight in model.toKeras().get_weights()]
        found = {"weights": weights, "failures": model.summary.failures}
    except CosMLError as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    (folder / "found.json").write_text(json.dumps(found))
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
