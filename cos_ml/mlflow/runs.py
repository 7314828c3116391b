"""Runs of MLflow that fits are logged to (driver side).

What the tracking server does never fails a fit: an error is a warning, once for each fit. Once it is down, nothing
more is sent to it, since MLflow's client tries each call again for minutes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cos_ml.mlflow.stages import names_of, params_of

__all__ = ["Place", "Recording", "Search"]

MAX_NAME, MAX_TEXT, BATCH = 250, 6000, 100  # MLflow's limits: characters of a name and a Param, Params of a call
ONE_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}  # for a server that is down

AUTOLOGGING, PARENT, RUN_NAME = "mlflow.autologging", "mlflow.parentRunId", "mlflow.runName"  # MLflow's own tags

logger = logging.getLogger(__name__)
_used: set[str] = set()  # runs that a fit has been logged to


class Recording:
    """The logging of one fit, to the active run or, if there is none or it has a fit already, to a new one.

    Args:
        name: the name of a new run.
        tags: tags of a new run.
        silent: whether nothing is said of errors.

    Attributes:
        run_id: the run; "" if MLflow can't be reached.
        down: whether MLflow can't be reached.
    """

    def __init__(self, name: str, tags: Mapping[str, str], silent: bool) -> None:
        self.tags, self.silent = {AUTOLOGGING: "cos_ml", **tags}, silent
        self.client = mlflow.MlflowClient()
        self.run_id, self.down = "", False
        self.is_own = self.warned = False
        self.attempt(self._begin, name)
        self.down = self.down or not self.run_id

    def _begin(self, name: str) -> None:
        active = mlflow.active_run()
        if active is None or active.info.run_id in _used:
            active = mlflow.start_run(run_name=name, nested=active is not None, tags=self.tags)
            self.is_own = True
        self.run_id = active.info.run_id
        _used.add(self.run_id)

    def attempt(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Return what a function returns; None if it fails, of which a warning tells, or MLflow is down."""
        if self.down:
            return None
        try:
            return function(*arguments, **named)
        except Exception as error:
            status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
            self.down = self.down or status >= 500
            self.warn(f"MLflow: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
            return None

    def warn(self, text: str) -> None:
        """Log a warning, the first of a fit alone."""
        if not (self.warned or self.silent):
            self.warned = True
            logger.warning("%s The fit is not affected; what is logged of it lacks something.", text.rstrip(".") + ".")

    def describe(self, run_id: str, stage: Any, names: Mapping[str, str]) -> None:
        """Log the Params of a stage."""
        self.attempt(lambda: self.log_params(run_id, params_of(stage, names)))

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log Params; those that the run has already stay as they are."""
        known = self.attempt(lambda: self.client.get_run(run_id).data.params) or {}
        new = [Param(name[:MAX_NAME], text[:MAX_TEXT]) for name, text in params.items() if name[:MAX_NAME] not in known]
        for first in range(0, len(new), BATCH):
            self.attempt(self.client.log_batch, run_id, params=new[first : first + BATCH])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics, of an epoch or at the end."""
        now = int(time.time() * 1000)
        found = [Metric(name[:MAX_NAME], float(value), now, step) for name, value in metrics.items()]
        self.attempt(self.client.log_batch, run_id, metrics=found)

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.attempt(self.client.log_batch, run_id, tags=[RunTag(name, text) for name, text in tags.items()])

    def new_run(self, name: str, parent: str = "") -> str:
        """Create a run, below ``parent`` if that is given; returns its ID, or "" if that failed."""
        tags = self.tags | {RUN_NAME: name} | ({PARENT: parent} if parent else {})
        own = self.attempt(lambda: self.client.get_run(self.run_id).info.experiment_id)
        run = self.attempt(self.client.create_run, own, tags=tags) if own else None
        return run.info.run_id if run else ""

    def end(self, status: str) -> None:
        """End the run, if it was started here."""
        if self.is_own:
            with _one_try() if self.down else nullcontext(), suppress(Exception):  # it is active no longer anyway
                mlflow.end_run(status)


@contextmanager
def _one_try() -> Iterator[None]:
    """Calls of MLflow's client in this ``with`` block are not tried again."""
    before = {name: os.environ.get(name) for name in ONE_TRY}
    os.environ.update(ONE_TRY)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


@dataclass(frozen=True)
class Place:
    """Where a training is logged.

    Attributes:
        recording: the recording that it belongs to.
        run_id: the run.
        prefix: what the names of its metrics begin with.
        names: names of stages, by uid.
        several: whether several networks are logged there.
    """

    recording: Recording
    run_id: str
    prefix: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    several: bool = False


class Search:
    """A CrossValidator or TrainValidationSplit that runs: each of its candidates has a run below that of the search.

    Args:
        stage: the search.
        place: where it is logged.
    """

    def __init__(self, stage: Any, place: Place) -> None:
        self.stage, self.place = stage, place
        self.maps: Sequence[Any] = stage.getEstimatorParamMaps()
        self.folds = stage.getNumFolds() if hasattr(stage, "getNumFolds") else 1
        self.trained = [0] * len(self.maps)
        self.lock = threading.Lock()
        recording, tuned = place.recording, stage.getEstimator()
        self.names: Mapping[str, str] = recording.attempt(names_of, tuned) or {}
        self.run_ids = [
            recording.new_run(f"candidate {number} of {len(self.maps)}", place.run_id)
            for number in range(1, len(self.maps) + 1)
        ]
        for run_id, params in zip(self.run_ids, self.maps, strict=True):
            recording.describe(run_id, tuned.copy(params), self.names)

    def position(self, params: Any) -> int | None:
        """The candidate whose param map this object is."""
        return next((index for index, one in enumerate(self.maps) if one is params), None)

    def place_of(self, position: int, several: bool = False) -> Place:
        """Where the next training of a candidate is logged; after the folds, the best one trains once more, on all."""
        with self.lock:
            self.trained[position] += 1
            fold = self.trained[position]
        if fold > self.folds:
            return self.place
        prefix = f"{self.place.prefix}fold_{fold}/" if self.folds > 1 else self.place.prefix
        return Place(self.place.recording, self.run_ids[position], prefix, self.names, several)

    def end(self, status: str, model: Any = None) -> None:
        """Log the metric of each candidate and the Params of the best, and end the candidates' runs."""
        recording = self.place.recording
        found = {} if model is None else self._metrics(model)
        for index, run_id in enumerate(self.run_ids):
            recording.log_metrics(run_id, {name: values[index] for name, values in found.items()})
            recording.attempt(recording.client.set_terminated, run_id, status)
        if found:
            values = list(next(iter(found.values())))
            best = values.index((max if self.stage.getEvaluator().isLargerBetter() else min)(values))
            params = {self._best_name(param): str(value) for param, value in self.maps[best].items()}
            recording.log_params(self.place.run_id, params)

    def _best_name(self, param: Any) -> str:
        return f"best_{self.names.get(param.parent, param.parent)}.{param.name}"

    def _metrics(self, model: Any) -> dict[str, Sequence[float]]:
        """By name, as MLflow's own autologging calls them, the value of each candidate."""
        evaluator = self.stage.getEvaluator()
        name = evaluator.getMetricName() if evaluator.hasParam("metricName") else "metric"
        if hasattr(model, "validationMetrics"):
            return {name: model.validationMetrics}
        return {f"avg_{name}": model.avgMetrics, f"std_{name}": model.stdMetrics}
