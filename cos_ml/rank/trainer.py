"""Keras's loop around the user's model, whose steps are those of all ranks (rank side).

The user's model keeps its class, its ``train_step`` and what it was compiled with. The trainer is a model around it
that owns the loop; callbacks are given the user's model.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cos_ml.errors import InvalidInputError
from cos_ml.network.batch import compile_network, pack_batch
from cos_ml.network.keras_internals import all_layers, update_rows_alone
from cos_ml.network.rates import scale_rates
from cos_ml.network.step import install_hooks
from cos_ml.network.structure import fixed_batch_size, output_structure, output_tensors
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.feed import Feed, Parts
from cos_ml.rank.schedule import Schedule
from cos_ml.rank.shared_step import (
    Need,
    SharedStep,
    optimizers_of,
    refuse_hidden_optimizers,
    share_gradients,
    share_result,
)
from cos_ml.spec import TrainSpec

__all__ = ["DistributedTrainer", "NonFiniteTracker", "Plan", "make_trainer", "no_stop_iteration", "set_back"]

OWN_STEPS = ("train_step", "test_step", "compute_metrics")  # methods whose logs need not be results of metrics


def make_trainer(network: Any, spec: TrainSpec, communicator: Communicator, feeds: dict[str, Feed]) -> Any:
    """Compile ``network``, and give its variables the values that they have on rank 0.

    Args:
        network: the user's model.
        spec: the training.
        communicator: connects this rank to the others.
        feeds: the rows, by part.

    Returns:
        DistributedTrainer: the model to call ``fit`` of, with the datasets of ``feeds``.

    Raises:
        InvalidInputError: the network takes batches of a fixed size, which does not divide the rows of some rank.
    """
    _check_batches(network, spec, feeds)
    install_hooks()
    refuse_hidden_optimizers()
    compile_network(network, spec)
    trainer = DistributedTrainer(Plan(network, spec, communicator, feeds))
    if communicator.size > 1:
        for layer in all_layers(network):
            if getattr(layer, "synchronized", False):
                layer.call = _without_mask(layer)
    for optimizer in trainer.plan.optimizers:
        update_rows_alone(optimizer)
    scale_rates(trainer.plan.optimizers, network, spec.layer_rates)
    for optimizer in trainer.plan.optimizers:
        share_gradients(optimizer)
    if isinstance(network.optimizer, keras.optimizers.Optimizer) and not network.optimizer.built:
        network.optimizer.build(network.trainable_variables)
    trainer.build_metrics()
    trainer.rehearse()
    communicator.broadcast_variables(trainer.plan.variables)
    return trainer


def _without_mask(layer: Any) -> Callable[..., Any]:
    """The ``call`` of a synchronized layer, which raises InvalidInputError for a mask: Keras would ignore the wish."""
    call = layer.call

    @functools.wraps(call)
    def checked(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if mask is not None:
            raise InvalidInputError(
                f"Param model: {layer.name!r} is a BatchNormalization with synchronized=True that receives a mask; "
                "Keras then ignores synchronized. Use LayerNormalization, remove the mask, or set synchronized=False."
            )
        return call(inputs, training=training, mask=mask)

    return checked


def _check_batches(network: Any, spec: TrainSpec, feeds: dict[str, Feed]) -> None:
    fixed = fixed_batch_size(network)
    for part, feed in feeds.items():
        rest = (feed.rows_by_rank % spec.batch_size).sum(axis=0)
        if fixed is not None and rest.any():
            rank = int(rest.argmax())
            raise InvalidInputError(
                f"Param batchSize: the network takes batches of {fixed} rows, which do not divide the "
                f"{feed.rows_by_rank[:, rank].sum()} {part} rows of rank {rank}. Repartition to rows that they divide, "
                "or build the network without a batch size (stateful=False)."
            )


class NonFiniteTracker:
    """Counts the steps of an epoch, inside TensorFlow, up to the first one whose loss was not finite on some rank."""

    def __init__(self) -> None:
        self._steps, self._failed = (tf.Variable(0, dtype=tf.int64, trainable=False) for _ in range(2))

    @property
    def handles(self) -> set[int]:
        """The identities of its variables, as a trace captures them."""
        return {id(one.handle) for one in (self._steps, self._failed)}

    def begin(self, passed: int) -> None:
        """Begin an epoch of which ``passed`` steps are done."""
        self._steps.assign(passed)
        self._failed.assign(0)

    def count(self, failures: Any) -> None:
        """Count one step, in which so many losses were not finite."""
        step = self._steps.assign_add(1)
        fails = tf.logical_and(tf.equal(self._failed, 0), tf.reduce_sum(failures) > 0)
        self._failed.assign(tf.where(fails, step, self._failed))

    def failed_at(self) -> int:
        """The first step, from 1, whose loss was not finite; 0 where there was none."""
        return int(self._failed.numpy())


@dataclass
class Plan:
    """What a trainer knows: a plain object, because a Keras model wraps the dicts and lists that it is given.

    Attributes:
        network: the user's model.
        spec: the training.
        communicator: connects this rank to the others.
        feeds: the rows, by part: "train" and "validation".
        finite: finds the first step whose loss is not finite.
        needs: the sums over the ranks of a step, by part, recorded when it is traced.
        own_logs: the structure of a step's logs, by part, where they are not those of the metrics.
        skipped: the number of steps that a resumed epoch has still to skip.
        pending: sums over the ranks that the metrics of a resumed epoch start from, until its first step is done.
        begin: the step, from 0, at which the current call of TensorFlow begins.
        parts: the steps of the epoch in parts, if a call has to end early in it.
        callbacks: the callbacks of the training.
        until: the number of epochs after which Keras's loop ends, for a while or for good.
        stopped: whether the loop ends, as all ranks agreed: a rank that ended alone would leave the others waiting.
        known: all variables of the training, if later candidates may use this trainer; else None.
        foreign: whether a step depends on state besides them, so that later candidates need trainers of their own.
        held: variables of steps, which would end with the Keras session that another candidate clears.
    """

    network: Any
    spec: TrainSpec
    communicator: Communicator
    feeds: dict[str, Feed]
    finite: NonFiniteTracker = field(default_factory=NonFiniteTracker)
    needs: dict[str, list[Need]] = field(default_factory=dict)
    own_logs: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    pending: list[np.ndarray] = field(default_factory=list)
    begin: int = 0
    parts: Parts | None = None
    callbacks: Any = None
    until: int = 0
    stopped: bool = False
    known: list[Any] | None = None
    foreign: bool = False
    held: list[Any] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        """Which steps the training has."""
        return Schedule(self.spec, self.feeds["train"].steps)

    @property
    def own_step(self) -> bool:
        """Whether the network's class has a ``train_step`` of its own."""
        return type(self.network).train_step is not keras.Model.train_step

    @property
    def optimizers(self) -> list[Any]:
        """All optimizers of the user's model."""
        return optimizers_of(self.network)

    @property
    def variables(self) -> list[Any]:
        """The variables that are the same on all ranks at the end of an epoch: weights, and those of optimizers."""
        return [*self.network.weights, *(one for optimizer in self.optimizers for one in optimizer.variables)]

    def step(self, part: str, rows: Any, total: Any, **options: Any) -> SharedStep:
        """A new step of this part, for one trace."""
        compression, equal = self.spec.compression, self.feeds[part].equal
        return SharedStep(self.communicator, part, rows, total, equal=equal, compression=compression, **options)

    def begin_again(self, spec: TrainSpec, feeds: dict[str, Feed]) -> None:
        """Start over with another training, whose steps are the ones that are traced already."""
        self.spec, self.feeds, self.callbacks, self.parts = spec, feeds, None, None
        self.skipped, self.begin, self.pending, self.stopped = 0, 0, [], False
        self.network.stop_training = False  # Keras does not assign what is assigned already: see stop_training

    def look_for_foreign(self) -> None:
        """Note whether the traced step depends on variables beyond the known ones, and keep every variable it uses."""
        if tf.executing_eagerly():
            return
        graph: Any = tf.compat.v1.get_default_graph()
        self.held += graph.variables
        if self.known is None:
            return
        known = {id(getattr(one, "value", one).handle) for one in self.known} | self.finite.handles
        resources = [one for one in graph.external_captures if one.dtype == tf.resource]
        definition = graph.as_graph_def()
        nodes = [*definition.node, *(node for one in definition.library.function for node in one.node_def)]
        # Operations with two seeds have a generator of their own; functions in Python may keep anything.
        self.foreign |= any("seed2" in node.attr or "PyFunc" in node.op for node in nodes)
        self.foreign |= any(id(one) not in known for one in resources)

    def function(self, part: str) -> Callable[[Any], Any]:
        """The user's step; of a ``tf.function`` its Python code, because hooks act only while it is traced."""
        method = getattr(self.network, "train_step" if part == "train" else "test_step")
        return getattr(method, "python_function", method)


def no_stop_iteration(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make StopIteration in a function an error: Keras would silently end the epoch, on this rank alone."""

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (StopIteration, tf.errors.OutOfRangeError) as error:  # TensorFlow turns the former into the latter
            raise RuntimeError(  # with the cause in its text, because Keras drops that of an exception
                f"A layer, loss, metric or callback raised {type(error).__name__}, which Keras would take for the end "
                f"of the data:\n{traceback.format_exc()}"
            ) from None

    return called


@contextmanager
def set_back(variables: Sequence[Any]) -> Iterator[None]:
    """After the block these Keras variables have the values that they had before."""
    kept = [(variable, tf.identity(variable.value)) for variable in variables]
    yield
    for variable, value in kept:
        variable.assign(value)


class DistributedTrainer(keras.Model):
    """A model around the user's, for Keras's own loop. Its data is ``(columns, rows here, rows on all ranks)``."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan, self.model = plan, plan.network
        spec = plan.spec
        self.compile(  # without an optimizer, which Keras would finalize whenever its loop ends
            optimizer=None, run_eagerly=plan.network.run_eagerly,
            steps_per_execution=spec.steps_per_execution, auto_scale_loss=False,
            jit_compile=spec.jit_compile and plan.communicator.size == 1,
        )  # fmt: skip

    @property
    def metrics(self) -> list[Any]:
        """The metrics of the user's model."""
        return list(self.model.metrics)

    @property
    def history(self) -> Any:
        """The history of the user's model."""
        return self.model.history

    def finalize(self) -> None:
        """Give the weights their final values, as Keras does after its loop: the averages of an optimizer with EMA."""
        if isinstance(self.model.optimizer, keras.optimizers.Optimizer):
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)

    @property
    def stop_training(self) -> bool:
        """Whether Keras's loop ends."""
        return self.plan.stopped

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        if hasattr(self, "plan"):  # Keras sets it in the constructor, too
            self.plan.stopped = self.model.stop_training = bool(value)

    def make_train_function(self, force: bool = False) -> None:
        """Make Keras's own train function skip the completed steps of a resumed epoch, and end where it has to."""
        if vars(self).get("train_function") and not force:  # of a candidate before this one
            return
        super().make_train_function(force)
        compute: Callable[[Any], dict[str, Any]] = no_stop_iteration(vars(self)["train_function"])

        def execute(iterator: Any) -> dict[str, Any]:
            plan, end = self.plan, self.plan.begin + self.steps_per_execution
            if plan.skipped:
                for step in range(plan.begin, end):
                    next(plan.parts.iterator(step) if plan.parts else iterator)
                plan.skipped -= self.steps_per_execution
                return {}
            return self._in_parts(compute, plan.parts, end) if plan.parts else self._resumed(compute(iterator))

        self.train_function = execute

    def make_test_function(self, force: bool = False) -> None:
        """Make Keras's own test function, in which StopIteration is an error."""
        if force or not vars(self).get("test_function"):
            super().make_test_function(force)
            self.test_function = no_stop_iteration(vars(self)["test_function"])

    def _in_parts(self, compute: Callable[[Any], dict[str, Any]], parts: Parts, end: int) -> dict[str, Any]:
        """One call of TensorFlow, or several: callbacks are called between them."""
        begin = self.plan.begin
        while True:
            logs, begin = self._resumed(compute(parts.iterator(begin))), parts.until(end)
            if begin >= min(end, parts.steps):
                return logs
            self.plan.callbacks.on_train_batch_end(begin - 1, logs)
            if self.stop_training:
                self.plan.callbacks.skipping = True  # Keras calls them once more
                return logs
            self.plan.callbacks.on_train_batch_begin(begin)

    def _resumed(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Let the metrics, which have their variables after the first step, go on from those of the checkpoint."""
        if self.plan.pending:
            for variable, total in zip(self.model.metrics_variables, self.plan.pending, strict=True):
                variable.assign_add(total)
            self.plan.pending = []
        return logs

    def logs_of_all_ranks(self, logs: dict[str, Any]) -> dict[str, Any]:
        """What a step's logs are over all ranks since the beginning of the epoch; the metrics stay as they are."""
        with set_back(self.model.metrics_variables):
            results = self.get_metrics_result()  # this rank's metrics are now those of all
        return results if set(logs) == set(results) else logs

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of training, shared with all ranks."""
        return self._shared("train", *data)

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of validation, shared with all ranks."""
        return self._shared("validation", *data)

    def _shared(self, part: str, columns: Any, rows: Any, total: Any) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            return self._compute(part, columns, rows, total)

        if not self.plan.feeds[part].idle:
            return compute()
        if tf.executing_eagerly():
            return compute() if rows > 0 else self._take_part(part, rows, total)
        return tf.cond(rows > 0, compute, lambda: self._take_part(part, rows, total))

    def _compute(self, part: str, columns: Any, rows: Any, total: Any) -> dict[str, Any]:
        """A step of the user's model on this rank's rows."""
        own, plan = self.plan.own_logs.get(part), self.plan
        with plan.step(part, rows, total, own_logs=bool(own)).active() as step:
            if plan.spec.jit_compile and part == "train" and plan.communicator.size > 1:
                logs, failed = self._compiled(step, columns, rows, total)
            else:
                logs, failed = plan.function(part)(self._packed(part, columns)), None
            logs = keras.tree.map_structure(tf.convert_to_tensor, logs)  # a metric's result may be a dict
            if own and plan.communicator.size > 1:  # what is no metric is taken for a mean over the rows
                means = [tf.cast(tf.reduce_mean(one), tf.float32) for one in keras.tree.flatten(logs)]
                need = Need(lambda rows: [tf.cast(rows, tf.float32)] * len(means), None)
                logs = keras.tree.pack_sequence_as(own, step.sum([one * step.p(one) for one in means], need))
            if part == "train":
                self._count(step, failed)
        plan.needs[part] = step.needs
        plan.look_for_foreign()
        return logs

    def _packed(self, part: str, columns: Any) -> Any:
        return pack_batch(self.model, self.plan.feeds[part].spec, columns)

    def _count(self, step: SharedStep, failed: Any) -> None:
        """Count one step of training, and how many of its losses are known not to be finite."""
        found = [one for one in (step.failures, failed, step.lost()) if one is not None]
        self.plan.finite.count(tf.add_n(found))

    def _take_part(self, part: str, rows: Any, total: Any) -> dict[str, Any]:
        """A step on a rank that has no rows of it."""
        own = self.plan.own_logs.get(part)
        with self.plan.step(part, rows, total).active() as step:
            done = step.take_part(self.plan.needs[part])
            if part == "train":
                self._count(step, None)
        logs = keras.tree.pack_sequence_as(own, done) if own else self.model.get_metrics_result()
        return dict(keras.tree.map_structure(tf.identity, logs))

    def _compiled(self, step: SharedStep, columns: Any, rows: Any, total: Any) -> tuple[dict[str, Any], Any]:
        """A step that XLA compiles, up to its gradients: it can't compile Horovod's sums, which follow."""
        kept: list[Need] = []

        @tf.function(jit_compile=True, autograph=False)
        def compute(columns: Any, rows: Any, total: Any) -> Any:
            with self.plan.step("train", rows, total, kept=True).active() as inner:
                logs = self.plan.function("train")(self._packed("train", columns))
            gradients, need = inner.gradients or ([], None)
            kept[:] = [need] if need else []
            return keras.tree.map_structure(tf.convert_to_tensor, logs), gradients, inner.lost()

        logs, gradients, failed = compute(columns, rows, total)
        for need in kept:
            step.apply(gradients, need)
        return logs, failed

    def build_metrics(self) -> None:
        """Create the variables of losses and metrics, because TensorFlow traces a function that creates any twice."""
        model, feed = self.model, self.plan.feeds["train"]
        if any(getattr(type(model), name) is not getattr(keras.Model, name) for name in (*OWN_STEPS, "compute_loss")):
            return
        outputs = [tf.TensorSpec(one.shape, one.dtype) for one in output_tensors(model)]

        def compute(columns: Any, flat: Any) -> None:
            x, y, weights = keras.utils.unpack_x_y_sample_weight(self._packed("train", columns))
            structure = output_structure(model)
            predicted = keras.tree.pack_sequence_as(structure, flat) if keras.tree.is_nested(structure) else flat[0]
            model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weights)
            model.compute_metrics(x, y, predicted, weights)

        with contextlib.suppress(Exception):  # a step has the same error, and more to tell
            tf.function(compute, autograph=False).get_concrete_function(feed.signature()[0], outputs)

    def rehearse(self) -> None:
        """Trace steps without running them, where it is needed to know beforehand what they make and need.

        It makes all variables, which a branch can't, and finds out whether a step's logs are the results of metrics.
        """
        own = any(getattr(type(self.model), name) is not getattr(keras.Model, name) for name in OWN_STEPS)
        for part, feed in self.plan.feeds.items():
            if not feed.steps or not (own or feed.idle) or self.plan.communicator.size == 1:
                continue

            def record(columns: Any, rows: Any, total: Any, part: str = part) -> None:
                kept = self.plan.spec.jit_compile and part == "train"
                with self.plan.step(part, rows, total, kept=kept).active() as step:
                    logs = self.plan.function(part)(self._packed(part, columns))
                if set(logs) != set(self.model.get_metrics_result()):
                    self.plan.own_logs[part] = keras.tree.map_structure(lambda _: 0, logs)
                self.plan.needs[part] = step.needs

            tf.function(record, autograph=False).get_concrete_function(*feed.signature())
        if self.plan.own_logs:
            for metric in self.model.metrics:
                share_result(metric)

    def get_metrics_result(self) -> dict[str, Any]:
        """The metrics; over all ranks when called eagerly, as Keras does at the end of an epoch or a validation."""
        if tf.executing_eagerly() and SharedStep.current is None:
            self.plan.communicator.merge_variables(self.model.metrics_variables)
        return dict(self.model.get_metrics_result())
