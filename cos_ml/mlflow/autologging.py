"""``autolog``: logs fits of networks, and of pipelines and searches with one, to MLflow (driver side)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import mlflow
import numpy as np
from mlflow.utils.autologging_utils import autologging_is_disabled, disable_autologging
from pyspark.ml import Pipeline
from pyspark.ml.tuning import CrossValidator, TrainValidationSplit

from cos_ml import listeners
from cos_ml.errors import SetupError
from cos_ml.estimator import DeepNetEstimator
from cos_ml.listeners import Fit, FitListener, Progress
from cos_ml.mlflow import models
from cos_ml.mlflow.runs import Place, Recording, Search
from cos_ml.mlflow.stages import names_of, networks_in, walk
from cos_ml.versions import recorded_versions, version_of

__all__ = ["autolog"]

STAGES = (DeepNetEstimator, Pipeline, CrossValidator, TrainValidationSplit)  # whose fit is logged
SEARCHES = (CrossValidator, TrainValidationSplit)
SPARK = "pyspark.ml"  # MLflow's own autologging of Spark ML

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The arguments of ``autolog``."""

    log_models: bool
    log_input_examples: bool
    log_model_signatures: bool
    exclusive: bool
    silent: bool
    registered_model_name: str | None
    extra_tags: dict[str, str] = field(default_factory=dict)


_options: Options | None = None  # None: nothing is logged
_place: ContextVar[Place | None] = ContextVar("place", default=None)  # of the fit that this thread is in
_searches: dict[str, Search] = {}  # by uid of the estimator that is tuned, whose fits may be in other threads
_excluded: set[str] = set()  # uids of stages that are fitted in a run of the program's own, if that excludes them


def autolog(
    log_models: bool = True,
    log_input_examples: bool = False,
    log_model_signatures: bool = True,
    disable: bool = False,
    exclusive: bool = False,
    silent: bool = False,
    registered_model_name: str | None = None,
    extra_tags: Mapping[str, str] | None = None,
) -> None:
    """Log fits of DeepNetEstimators to MLflow, and of a Pipeline, CrossValidator or TrainValidationSplit with one.

    A fit is logged to the active run; if there is none, or it has a fit already, to a new one. Each candidate of a
    search has a run below it. Metrics appear after each epoch, while the fit runs, with the epoch as step (with
    ``validationSteps``, the number of training steps). Executors need no tracking server: the driver logs.

    MLflow never fails a fit: its errors are warnings, one for each fit. With ``mlflow.pyspark.ml.autolog()`` as well,
    these fits are logged as described here, and all others of Spark ML by MLflow.

    Args:
        log_models: whether the fitted model is logged, as "model": of a search, the best one.
        log_input_examples: whether it is logged with five rows of the training data.
        log_model_signatures: whether it is logged with its signature.
        disable: whether fits are no longer logged.
        exclusive: whether fits in runs that the program itself has started are not logged.
        silent: whether warnings are suppressed.
        registered_model_name: name under which each model becomes a version in the registry.
        extra_tags: tags of the runs that are started.
    """
    global _options
    _options = None if disable else Options(
        log_models, log_input_examples, log_model_signatures, exclusive, silent, registered_model_name,
        dict(extra_tags or {}),
    )  # fmt: skip
    for stage in STAGES:
        if "fit" in vars(stage):
            del stage.fit
        if not disable:
            _patch(stage)
    (listeners.remove if disable else listeners.add)(_listener)


def _patch(stage: Any) -> None:
    """Let ``stage.fit`` log. It is the class's own, and calls that of Estimator, which MLflow may have patched, too."""

    @functools.wraps(stage.fit)
    def fit(self: Any, dataset: Any, params: Any = None) -> Any:
        return _logged(self, dataset, params, partial(super(stage, self).fit, dataset, params))

    stage.fit = fit


def _logged(stage: Any, dataset: Any, params: Any, fit: Callable[[], Any]) -> Any:
    """Return what ``fit`` returns, and log it."""
    if _options is None or stage.uid in _excluded or isinstance(params, (list, tuple)) or not networks_in(stage):
        return fit()
    search, place = _searches.get(stage.uid), _place.get()
    if search is not None and (position := search.position(params)) is not None:
        place = search.place_of(position, several=len(networks_in(stage)) > 1)
    if place is not None:
        with _at(place):
            return _searched(stage, place, fit)
    if _options.exclusive and mlflow.active_run():
        return _without_logging({one.uid for one in walk(stage)}, fit)
    return _outermost(stage.copy(params) if params else stage, dataset, fit, _options)


def _without_logging(uids: set[str], fit: Callable[[], Any]) -> Any:
    """Return what ``fit`` returns, and log no fit of stages with these uids, not even in other threads."""
    _excluded.update(uids)
    try:
        return fit()
    finally:
        _excluded.difference_update(uids)


def _outermost(stage: Any, dataset: Any, fit: Callable[[], Any], options: Options) -> Any:
    recording = Recording(type(stage).__name__, options.extra_tags, options.silent)
    names = recording.attempt(names_of, stage) or {}
    place = Place(recording, recording.run_id, "", names, several=len(networks_in(stage)) > 1)
    recording.describe(recording.run_id, stage, names)
    recording.log_tags(recording.run_id, _about(stage))
    try:
        with _at(place), disable_autologging():
            model = _searched(stage, place, fit)
    except BaseException as error:
        recording.attempt(recording.client.log_text, recording.run_id, str(error), "error.txt")
        recording.end("FAILED")
        raise
    if options.log_models:
        _log_model(recording, model, dataset, options)
    if not autologging_is_disabled(SPARK):
        vars(model)["_mlflow_run_id"] = recording.run_id  # there MLflow logs what evaluators find of its predictions
    recording.end("FINISHED")
    return model


def _searched(stage: Any, place: Place, fit: Callable[[], Any]) -> Any:
    """Return what ``fit`` returns; a search has a run for each of its candidates meanwhile."""
    if not isinstance(stage, SEARCHES):
        return fit()
    search, uid = Search(stage, place), stage.getEstimator().uid
    _searches[uid] = search
    try:
        model = fit()
    except BaseException:
        place.recording.attempt(search.end, "FAILED")
        raise
    finally:
        _searches.pop(uid, None)
    place.recording.attempt(search.end, "FINISHED", model)
    return model


@contextmanager
def _at(place: Place) -> Iterator[None]:
    """Log what this thread trains in a ``with`` block to ``place``."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def _about(stage: Any) -> dict[str, str]:
    kind = type(stage)
    versions = recorded_versions() | {"horovod": version_of("horovod")}
    tags = {f"{name}.version": version for name, version in versions.items() if version}
    return tags | {"estimator_name": kind.__name__, "estimator_class": f"{kind.__module__}.{kind.__name__}"}


def _log_model(recording: Recording, model: Any, dataset: Any, options: Options) -> None:
    model = getattr(model, "bestModel", model)
    rows = recording.attempt(lambda: dataset.select(*models.columns_read(model, dataset)))
    if rows is not None:
        signature = recording.attempt(models.signature_of, model, rows) if options.log_model_signatures else None
        example = recording.attempt(models.example_of, rows) if options.log_input_examples else None
        named = {"registered_model_name": options.registered_model_name}
        recording.attempt(models.log_model, model, signature=signature, input_example=example, **named)


class MlflowListener(FitListener):
    """Logs the epochs of trainings, where the fits that they belong to are logged."""

    def __init__(self) -> None:
        self.places: dict[Fit, list[Place]] = {}  # by candidate
        self.begun: dict[Fit, Recording] = {}  # of fits that are in no other, as those of fitParquet
        self.busy: set[Fit] = set()  # those whose metrics are being logged

    def on_fit_begin(self, fit: Fit) -> None:
        """Find or start the runs."""
        place, options, uid = _place.get(), _options, fit.estimators[0].uid
        search = _searches.get(uid)
        if search is not None and fit.positions is not None:
            self.places[fit] = [search.place_of(position) for position in fit.positions]
        elif place is not None and fit.positions is None:
            name = place.names.get(uid, "")
            prefix = f"{place.prefix}{name}/" if place.several else place.prefix
            self.places[fit] = [Place(place.recording, place.run_id, prefix)]
        elif options is not None and uid not in _excluded and not (options.exclusive and mlflow.active_run()):
            self._begin(fit, options)

    def on_validation_end(self, fit: Fit, progress: Progress) -> None:
        """Log its metrics."""
        self._log(fit, progress, {})

    def on_epoch_end(self, fit: Fit, progress: Progress) -> None:
        """Log its metrics."""
        self._log(fit, progress, {"rows_per_second": progress.rows_per_second or 0.0})

    def on_fit_end(self, fit: Fit, models: Sequence[Any] | None, error: BaseException | None) -> None:
        """Log facts of the fit, and end the runs that were started for it alone."""
        places, recording = self.places.pop(fit, []), self.begun.pop(fit, None)
        status = "FINISHED" if error is None else "FAILED"
        if fit in self.busy:  # the fit has waited for it, and a warning has told
            for place in places:
                place.recording.down = place.recording.warned = True
        for place, model in zip(places, models or [], strict=False):
            _log_summary(place, model.summary)
        if recording is not None:
            for place in places:
                if place.run_id != recording.run_id:
                    recording.attempt(recording.client.set_terminated, place.run_id, status)
            if error is not None:
                recording.attempt(recording.client.log_text, recording.run_id, str(error), "error.txt")
            recording.end(status)

    def _begin(self, fit: Fit, options: Options) -> None:
        first = fit.estimators[0]
        recording = self.begun[fit] = Recording(type(first).__name__, options.extra_tags, options.silent)
        recording.log_tags(recording.run_id, _about(first))
        run_ids = [recording.run_id]
        if fit.positions is not None:
            run_ids = [recording.new_run(f"candidate {one + 1}", recording.run_id) for one in fit.positions]
        for run_id, estimator in zip(run_ids, fit.estimators, strict=True):
            recording.describe(run_id, estimator, {})
        self.places[fit] = [Place(recording, run_id) for run_id in run_ids]

    def _log(self, fit: Fit, progress: Progress, more: dict[str, float]) -> None:
        if fit not in self.places:
            return
        place, by_steps = self.places[fit][progress.candidate], fit.estimators[0].isSet("validationSteps")
        metrics = {**progress.metrics, **_flattened(progress.arrays), **more}
        step = progress.steps_so_far if by_steps else progress.epoch
        named = {place.prefix + name: value for name, value in metrics.items()}
        self.busy.add(fit)
        place.recording.log_metrics(place.run_id, named, step)
        self.busy.discard(fit)


_listener = MlflowListener()


def _flattened(arrays: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of metrics with several, named as in ``TrainingSummary.toDataFrame``."""
    return {
        f"{name}_{index}": float(value) for name, array in arrays.items() for index, value in enumerate(np.ravel(array))
    }


def _log_summary(place: Place, summary: Any) -> None:
    """Log what is known of a training at its end; of a candidate, the numbers alone."""
    recording, run_id, folder = place.recording, place.run_id, place.prefix
    hosts = sorted({rank["host"] for rank in summary.ranks})
    recording.log_tags(run_id, {"cos_ml.hosts": ", ".join(hosts)})
    facts = {
        "ranks": len(summary.ranks), "hosts": len(hosts), "rows": summary.rows,
        "validation_rows": summary.validationRows, "steps_per_epoch": summary.steps,
        "train_seconds": sum(summary.epochSeconds),
    }  # fmt: skip
    if summary.droppedAt:
        facts["dropped_at"] = summary.droppedAt
    recording.log_metrics(run_id, {folder + name: value for name, value in facts.items()})
    if run_id != recording.run_id:
        return
    client = recording.client
    logs = {f"logs/rank_{rank}.txt": text for rank, text in enumerate(summary.logs)}
    notes = "\n".join([*summary.notes, *summary.failures])
    for name, text in {**logs, **({"notes.txt": notes} if notes else {})}.items():
        recording.attempt(client.log_text, run_id, text, folder + name)
    recording.attempt(client.log_dict, run_id, asdict(summary), f"{folder}summary.json")
    try:
        recording.attempt(client.log_figure, run_id, summary.plot(), f"{folder}summary.png")
    except SetupError as error:  # no matplotlib
        logger.info("MLflow gets no plot: %s", error)
