"""The training of one rank: Keras's loop over this rank's rows, every step shared with the other ranks (rank side).

Exactness rests on three things. The loss of a step is the mean over its rows on all ranks: Keras divides by the rows of
its own batch, so each row's weight w becomes w·B·n/W, for B rows here, n ranks, and W the step's weight on all ranks,
and the ranks' average is the mean. Metrics add up: their state is sums and counts, summed over the ranks before the
result. And all ranks take the same number of steps: one that has no rows left takes part with rows of weight zero.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from cos_ml import callbacks, gpus
from cos_ml.data import blobs
from cos_ml.data.parquet import ShardRows, Shards
from cos_ml.data.spool import PARTS, Batch, Rows, step_weights
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import dump_model, find_layer, layers_by_name, load_model, pack_inputs
from cos_ml.rank.collectives import Ranks
from cos_ml.rank.heartbeat import JOINING, WAITING, Pulse
from cos_ml.rank.resume import Course, KeepStates, Memory, Record, Seeds, StopAtNonFinite
from cos_ml.spec import TrainSpec

__all__ = ["train"]

EVENT_INTERVAL = 0.25  # seconds between two reports of how far an epoch is


def train(start: dict[str, Any], meet: Callable[[], dict[str, Any]], pulse: Pulse) -> dict[str, bytes]:
    """Train this rank's share.

    Args:
        start: what the barrier task says at first: spec, place, and the descriptors of files.
        meet: waits until all ranks have met; returns what each task has.
        pulse: tells the task how it goes.

    Returns:
        dict[str, bytes]: "summary" as JSON; from rank 0 also "network", the trained archive.
    """
    clock = Clock()
    specs = [TrainSpec.from_json(text) for text in start["specs"]]
    place = start["place"]
    gpus.use(specs[0].use_gpu, tf)
    _limit_threads(place["local_size"])
    with os.fdopen(start["networks"], "rb") as file:
        archives = blobs.read(file)
    network = _begin(specs[0], archives)
    if place["size"] > 1:
        import horovod.tensorflow  # noqa: F401  # where it does not load, the others are told before they wait for it
    clock.lap("start")
    tasks = meet()["tasks"]
    clock.lap("read")
    pulse.at(JOINING)
    ranks = Ranks(place["size"])
    pulse.without(ranks.threads)
    pulse.report(event="joined")
    clock.lap("join")
    here = Here(ranks, place["rank"], tasks, clock, pulse)
    rows = {part: _rows(part, start, specs[0], tasks) for part in PARTS}
    results: dict[str, bytes] = {}
    for index, spec in enumerate(specs):
        try:
            if index:
                network = _begin(spec, archives)
            here.candidate = {"candidate": index + 1, "candidates": len(specs)}
            history, network = train_one(network, spec, here, rows)
        except Exception as error:
            if spec.name:
                error.add_note(f"This was {spec.name}.")
            raise
        results[f"{index}/summary"] = json.dumps(history | {"seconds": clock.seconds, "place": place}).encode()
        if here.rank == 0:
            results[f"{index}/network"] = dump_model(network)
        clock.forget("compile", "train")
    pulse.at("leaving the other ranks")
    ranks.close()
    return results


def _begin(spec: TrainSpec, archives: dict[str, bytes]) -> Any:
    """The network of one candidate, in a process that remembers nothing of those before it."""
    keras.utils.clear_session()
    network = load_model(archives[str(spec.network)], spec.modules)
    keras.utils.set_random_seed(spec.seed % 2**32)
    return network


@dataclass
class Here:
    """This rank, and what it knows of the others.

    Attributes:
        ranks: all of them, connected.
        rank: which one this is.
        tasks: what each rank's task said when they met, by rank.
        clock: counts the seconds of each phase.
        pulse: goes to this rank's task.
        candidate: which one it trains, of how many.
    """

    ranks: Ranks
    rank: int
    tasks: list[dict[str, Any]]
    clock: Clock
    pulse: Pulse
    candidate: dict[str, int] = field(default_factory=dict)

    @property
    def partition(self) -> int:
        """Which rows it has; unlike the rank, it does not change with the hosts that Spark finds free."""
        return self.tasks[self.rank]["partition"]

    @property
    def digest(self) -> list[Any]:
        """Of all ranks' rows."""
        return [task["digest"] for task in sorted(self.tasks, key=lambda task: task["partition"])]

    def tell(self, **event: Any) -> None:
        """Let the person at the driver see something; rank 0 speaks for all."""
        if self.rank == 0:
            self.pulse.report(**event, **self.candidate)


def train_one(
    network: Any, spec: TrainSpec, here: Here, rows: dict[str, Rows | ShardRows]
) -> tuple[dict[str, Any], Any]:
    """Train one candidate; returns the course of it, and the trained network."""
    restore = set_policy(network, spec.dtype_policy)
    thaw = freeze(network, spec.frozen)
    trainer = make_trainer(network, spec, here.ranks)
    feeds = {part: Feed(part, spec, here, rows[part]) for part in PARTS}
    try:
        history = fit(trainer, spec, here, feeds)
    except tf.errors.OpError:
        for feed in feeds.values():
            if feed.problem is not None:
                raise feed.problem from None
        raise
    here.clock.lap("train")
    trained = network_of(trainer)
    thaw()
    restore()
    return history, trained


def set_policy(network: Any, name: str | None) -> Callable[[], None]:
    """Let all layers compute under Keras's policy ``name``; returns what gives each its own again."""
    # All that are within layers, too: the cell of an LSTM, the projections of an attention.
    layers = network._flatten_layers() if name else []
    before = [(layer, layer.dtype_policy) for layer in layers]
    for layer in layers:
        layer.dtype_policy = name

    def restore() -> None:
        for layer, policy in before:
            layer.dtype_policy = policy

    return restore


def freeze(network: Any, names: tuple[str, ...]) -> Callable[[], None]:
    """Keep these layers as they are; returns what makes them trainable again, as far as they were."""
    layers = layers_by_name(network)
    before = [(layer, layer.trainable) for layer in layers.values()]
    for name in names:
        layers[find_layer(layers, name, "frozenLayers")].trainable = False

    def thaw() -> None:
        for layer, trainable in before if names else ():  # a model comes before its layers, which it changes too
            layer.trainable = trainable

    return thaw


class Clock:
    """Seconds spent in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def forget(self, *phases: str) -> None:
        """Count these phases from 0 again."""
        for phase in phases:
            self.seconds.pop(phase, None)

    def lap(self, phase: str) -> None:
        """Count the time since the last lap as ``phase``."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


def fit(trainer: Any, spec: TrainSpec, here: Here, feeds: dict[str, Feed]) -> dict[str, Any]:
    """Keras's own loop over the feeds; returns the history by metric and the rows seen in each epoch."""
    training, validation = feeds["train"], feeds["validation"]
    record, statistics = Record(), AverageStatistics(here.ranks, training.share)
    users = {
        f"callback {index}": callbacks.make(plain)
        for index, plain in enumerate(spec.callbacks)
        if plain["ranks"] == "all" or here.rank == 0
    }
    users |= _early_stopping(spec, "val_loss" if validation.steps else "loss")
    keep = None
    if spec.checkpoint:
        here.pulse.at("looking for a checkpoint")
        memory = Memory(trainer, users | {"record": record})
        keep = KeepStates(
            memory, spec.checkpoint, here.ranks, here.rank, here.digest, training.steps, statistics.average,
            finite=spec.stop_at_non_finite, note=lambda text: here.tell(event="note", text=text),
        )  # fmt: skip
    state = keep.state if keep else None
    epoch, step = (state.epoch, state.step) if state else (0, 0)
    here.tell(event="begin", epoch=epoch, step=step, kept=keep is not None)
    validation.begin(0)
    course = Course(
        [
            statistics,
            Quicken(here.pulse, "callbacks"),
            *users.values(),
            Quicken(here.pulse, WAITING),
            Seeds(spec.seed, here.partition, state),
            AgreeToStop(here.ranks),
            Watch(training, spec.epochs, here, record, (epoch, step)),
            *([StopAtNonFinite()] if spec.stop_at_non_finite else []),
            *([Quicken(here.pulse, "checkpoint"), keep, Quicken(here.pulse, WAITING)] if keep else []),
        ],
        add_history=True, model=trainer, epochs=spec.epochs, steps=training.steps,
    )  # fmt: skip
    ended = state is not None and state.plain["stopped"] and not step
    trainer.fit(
        training.dataset(),
        epochs=spec.epochs,
        initial_epoch=spec.epochs if ended else epoch,
        validation_data=validation.dataset() if validation.steps else None,
        callbacks=course,
        shuffle=False,  # the feed does
        verbose=0,
    )
    return {
        "history": record.history, "rows": training.total_rows, "validation_rows": validation.total_rows,
        "steps": training.steps, "epoch_seconds": record.seconds, "resumed": [epoch, step],
    }  # fmt: skip


def _early_stopping(spec: TrainSpec, monitor: str) -> dict[str, Any]:
    """Keras's own; all ranks see the same loss, so they decide alike."""
    if spec.patience is None and not spec.restore_best:
        return {}
    patience = spec.epochs if spec.patience is None else spec.patience
    stopping = keras.callbacks.EarlyStopping(
        monitor, patience=patience, mode="min", restore_best_weights=spec.restore_best
    )
    return {"early stopping": stopping}


# ── the step ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_trainer(network: Any, spec: TrainSpec, ranks: Ranks) -> Any:
    """Compile ``network`` for ``fit``, with every variable as rank 0 has it."""
    arguments = {name: keras.saving.deserialize_keras_object(value) for name, value in spec.compile.items()}
    optimizer = keras.optimizers.get(arguments.pop("optimizer"))
    if spec.learning_rate is not None:
        optimizer.learning_rate = spec.learning_rate
    if spec.accumulation > 1:
        optimizer.gradient_accumulation_steps = spec.accumulation
    # A subclass made here, so that the step sits where Keras looks for it, whatever kind of model this is.
    network.__class__ = type("Shared" + type(network).__name__, (SharedSteps, type(network)), {})
    network.ranks, network.finite, network.compression = ranks, FirstFailure(), spec.compression
    network.compiled_gradients = tf.function(network.gradients, jit_compile=True) if spec.jit_compile else None
    network.compile(optimizer=optimizer, **arguments, jit_compile=False, steps_per_execution=spec.steps_per_execution)
    network._loss_tracker.__class__ = StepMean
    network.optimizer.build(network.trainable_variables)
    ranks.broadcast_variables([*network.weights, *network.optimizer.variables])
    return network


def network_of(trainer: Any) -> Any:
    """The plain network in a trainer, as Keras saves it."""
    trainer.__class__ = type(trainer).__mro__[2]
    del trainer.finite, trainer.compression, trainer.compiled_gradients
    return trainer


class StepMean(keras.metrics.Mean):
    """A mean over steps, each weighing as much as its rows on all ranks.

    Keras would weigh it by the rows of its own batch, which says nothing about the other ranks'.
    """

    weight: Any = 1.0  # a tensor of the step being traced

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        super().update_state(values, sample_weight=self.weight)


class FirstFailure:
    """Counts the steps of an epoch, inside TensorFlow, up to the first one whose loss is not finite."""

    def __init__(self) -> None:
        self._steps, self._failed = tf.Variable(0, dtype=tf.int64), tf.Variable(0, dtype=tf.int64)

    def begin(self, passed: int) -> None:
        """An epoch begins, behind ``passed`` steps."""
        self._steps.assign(passed)
        self._failed.assign(0)

    def count(self, loss: Any) -> None:
        """One more step, with this loss over all ranks."""
        step = self._steps.assign_add(1)
        fails = tf.logical_and(tf.equal(self._failed, 0), tf.logical_not(tf.math.is_finite(loss)))
        self._failed.assign(tf.where(fails, step, self._failed))

    def failed_at(self) -> int:
        """The first step, from 1, whose loss was not finite; 0 where there was none."""
        return int(self._failed.numpy())


class SharedSteps(keras.Model if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mixin for a ``keras.Model``: training and test steps whose loss, gradients and metrics are those of all ranks.

    A step's data are ``(inputs, labels, weights, scale, weight, real)``: row weights [B], the factor B·n/W that makes
    them this step's, W itself, and how many of the rows are real (all, or none).
    """

    ranks: Ranks
    finite: FirstFailure
    compression: str
    compiled_gradients: Callable[[Any], tuple[list[Any], Any, Any]] | None
    wants_stop = agreed_stop = False
    passed = 0  # steps that a resumed epoch has to pass before it computes again

    @property
    def stop_training(self) -> bool:
        """Whether Keras's loop shall end; one rank that ended by itself would leave the others waiting."""
        return self.agreed_stop

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        self.wants_stop = bool(value)
        self.agreed_stop &= self.wants_stop

    def make_train_function(self, force: bool = False) -> None:
        """Keras's own, which only takes steps out of the feed where a resumed epoch has done them already."""
        super().make_train_function(force)
        compute: Callable[[Any], dict[str, Any]] = vars(self)["train_function"]

        def execute(iterator: Any) -> dict[str, Any]:
            if not self.passed:
                return compute(iterator)
            for _ in range(self.steps_per_execution):
                next(iterator)
            self.passed -= self.steps_per_execution
            return {}

        self.train_function = execute

    def train_step(self, data: Any) -> dict[str, Any]:
        gradients, loss, outputs = (self.compiled_gradients or self.gradients)(data)
        *gradients, loss = self.ranks.average_gradients([*gradients, loss], self.compression)
        self.finite.count(loss)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._metrics_of(data, outputs)

    def gradients(self, data: Any) -> tuple[list[Any], Any, Any]:
        """Of this rank's rows: the gradients of all trainable variables, the loss, and the outputs."""
        with tf.GradientTape() as tape:
            loss, outputs = self._loss_of(data, training=True)
            scaled = self.optimizer.scale_loss(loss)
        return tape.gradient(scaled, self.trainable_variables), loss, outputs

    def test_step(self, data: Any) -> dict[str, Any]:
        _, outputs = self._loss_of(data, training=False)
        return self._metrics_of(data, outputs)

    def get_metrics_result(self) -> dict[str, Any]:
        """Keras asks for this eagerly once, when an epoch or a validation is over: then over all ranks."""
        if tf.executing_eagerly():
            self.ranks.sum_variables([variable for metric in self.metrics for variable in metric.variables])
        return super().get_metrics_result()

    def _loss_of(self, data: Any, training: bool) -> tuple[Any, Any]:
        inputs, labels, weights, scale, weight, _ = data
        outputs = self(pack_inputs(self, inputs), training=training)
        labels = tf.nest.pack_sequence_as(outputs, tf.nest.flatten(labels))
        trackers = [self._loss_tracker, *self._losses_by_output(labels, outputs)]
        for tracker in trackers:
            tracker.weight = weight
        loss = self.compute_loss(inputs, labels, outputs, weights * scale, training=training)
        self._loss_tracker.update_state(loss)
        return loss, outputs

    def _losses_by_output(self, labels: Any, outputs: Any) -> list[Any]:
        """Keras's means of each output's loss, made exact as that of the whole is."""
        if not self._compile_loss.built:
            self._compile_loss.build(labels, outputs)
        for tracker in self._compile_loss.metrics:
            tracker.__class__ = StepMean
        return self._compile_loss.metrics

    def _metrics_of(self, data: Any, outputs: Any) -> dict[str, Any]:
        inputs, labels, weights, _, _, real = data
        labels = tf.nest.pack_sequence_as(outputs, tf.nest.flatten(labels))
        inputs, labels, outputs, weights = tf.nest.map_structure(
            lambda rows: rows[:real], (inputs, labels, outputs, weights)
        )
        return self.compute_metrics(inputs, labels, outputs, weights)


class AverageStatistics(keras.callbacks.Callback):
    """After each epoch, what layers as BatchNormalization learned without gradients, averaged over the ranks.

    Args:
        share: this rank's part of all rows.
    """

    def __init__(self, ranks: Ranks, share: float) -> None:
        super().__init__()
        self.ranks, self.share = ranks, share

    def on_train_begin(self, logs: Any = None) -> None:
        floats = [variable for variable in self.model.non_trainable_weights if "float" in variable.dtype]
        self.before = [(variable, variable.numpy()) for variable in floats]

    def on_test_begin(self, logs: Any = None) -> None:
        self.average()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.average()

    def average(self) -> None:
        """Make them the same on all ranks."""
        if self.ranks.size == 1:
            return
        for index, (variable, before) in enumerate(self.before):
            # The change is what is averaged: a frozen weight stays what it was, to the bit.
            after = before + self.ranks.sum((variable.numpy() - before) * self.share).astype(before.dtype)
            variable.assign(after)
            self.before[index] = (variable, after)


class AgreeToStop(keras.callbacks.Callback):
    """After each epoch, ends the training on all ranks when a callback on one of them asked for it."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.agreed_stop = bool(self.ranks.sum(np.array([float(self.model.wants_stop)]))[0])


class Quicken(keras.callbacks.Callback):
    """Tells the pulse what Keras's loop does after this callback: what comes next in its list, or the next steps."""

    def __init__(self, pulse: Pulse, phase: str) -> None:
        super().__init__()
        self.pulse, self.phase = pulse, phase

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.pulse.at(f"{self.phase}, epoch {epoch + 1}")
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.pulse.at(f"{self.phase}, epoch {self.epoch + 1} after step {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.pulse.at(f"{self.phase}, end of epoch {epoch + 1}")

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.pulse.at(f"{self.phase}, validation after step {batch + 1}")


class Watch(keras.callbacks.Callback):
    """Tells the feed which epoch it is, and the barrier task how it goes.

    Args:
        feed: of the training rows.
        epochs: how many there will be.
        here: what it tells; its clock counts the first call of TensorFlow, which traces the step, as "compile".
        record: of the training, to go on with.
        done: the epochs, and the steps of the next one, that were done before.
    """

    def __init__(self, feed: Feed, epochs: int, here: Here, record: Record, done: tuple[int, int]) -> None:
        super().__init__()
        self.feed, self.epochs, self.here, self.record, self.done = feed, epochs, here, record, done
        self.told = self.began = 0.0
        self.compiled = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.passed = self.done[1] if epoch == self.done[0] else 0
        self.feed.begin(epoch, self.model.passed)
        self.epoch = epoch
        self.began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.compiled:
            self.here.clock.lap("compile")
            self.compiled = True
        if time.monotonic() - self.told > EVENT_INTERVAL:
            self.told = time.monotonic()
            self._tell("step", batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.monotonic() - self.began
        self.record.seconds.append(seconds)
        for name, value in (logs or {}).items():
            self.record.history.setdefault(name, []).append(float(value))
        self._tell("epoch", self.feed.steps, logs, rows_per_second=self.feed.total_rows / seconds)

    def _tell(self, event: str, step: int, logs: Any, **more: Any) -> None:
        self.here.tell(
            event=event, epoch=self.epoch + 1, epochs=self.epochs, step=step, steps=self.feed.steps,
            rows=self.feed.total_rows, logs={name: float(value) for name, value in (logs or {}).items()}, **more,
        )  # fmt: skip


# ── the rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Feed:
    """This rank's rows of one part as a dataset of steps, as many as every other rank takes.

    Attributes:
        steps: in an epoch.
        total_rows: on all ranks.
        share: this rank's part of them.
    """

    def __init__(self, part: str, spec: TrainSpec, here: Here, rows: Rows | ShardRows) -> None:
        self.problem: InvalidInputError | None = None
        counts = [task["rows"][part] for task in here.tasks]
        self.spec, self.ranks, self.partition = spec, here.ranks, here.partition
        self.rows = rows.reshaped(spec.columns)
        self.total_rows = sum(counts)
        self.share = counts[here.rank] / max(self.total_rows, 1)
        self.steps = -(-max(counts) // spec.batch_size)
        self.shuffled = spec.shuffle and part == "train"
        self.filler: dict[str, np.ndarray] = {}
        if self.steps and 0 in counts:  # a rank without rows takes part with one of another's
            lender = int(np.argmax(counts))
            self.filler = here.ranks.broadcast(self.rows.first() if here.rank == lender else None, lender)

    def dataset(self) -> Any:
        """A ``tf.data.Dataset`` of the steps of one epoch, in the form that ``SharedSteps`` takes."""
        signature = tf.nest.map_structure(
            lambda array: tf.TensorSpec([None, *array.shape[1:]] if array.ndim else [], array.dtype), self._example()
        )
        dataset = tf.data.Dataset.from_generator(self._steps, output_signature=signature)
        options = tf.data.Options()
        options.autotune.enabled = False  # there is nothing to tune, and the end of its thread can be late by a minute
        return dataset.apply(tf.data.experimental.assert_cardinality(self.steps)).prefetch(4).with_options(options)

    def begin(self, epoch: int, passed: int = 0) -> None:
        """Agree with the other ranks on the next pass over the dataset: its order here, each step's weight on all.

        Args:
            epoch: counted from 0.
            passed: steps at its begin that are there, and empty.
        """
        self.passed = passed
        self.ordered = self.rows.ordered(self.shuffled, (self.spec.seed % 2**63, epoch, self.partition))
        weights = step_weights(self.ordered.weights(), self.spec.batch_size, self.steps)
        self.totals = self.ranks.sum(weights)

    def _steps(self) -> Iterator[Any]:
        batches = self.ordered.batches(self.spec.batch_size, self.steps, self.filler)
        try:
            for step, (batch, total) in enumerate(zip(batches, self.totals, strict=True)):
                yield self._example() if step < self.passed else self._data(batch, float(total))
        except InvalidInputError as error:
            self.problem = error  # tf.data would make a text of it
            raise

    def _data(self, batch: Batch, total: float) -> Any:
        return step_data(self.spec, batch.arrays, batch.real, self.ranks.size, total)

    def _example(self) -> Any:
        """One step of no rows: what shapes and dtypes a step has."""
        empty = {field: np.empty((0, *rows.shape[1:]), rows.dtype) for field, rows in self.rows.arrays.items()}
        return self._data(Batch(empty, 0), 0.0)


def step_data(
    spec: TrainSpec, arrays: dict[str, np.ndarray], real: int, size: int = 1, total: float | None = None
) -> Any:
    """One step's rows in the form that ``SharedSteps`` takes.

    Args:
        arrays: by field, of B rows.
        real: how many of the rows count: B or 0.
        size: the number of ranks.
        total: the weight of the step's rows on all of them; None for that of these rows.
    """
    count = len(next(iter(arrays.values())))
    weights = arrays.get("w", np.ones(count, np.float32)) if real else np.zeros(count, np.float32)
    total = float(weights.sum()) if total is None else total
    scale = count * size / total if real and total else 0.0
    inputs = tuple(arrays[column.field] for column in spec.inputs)
    labels = tuple(arrays[column.field] for column in spec.labels)
    return (
        inputs,
        labels if len(labels) > 1 else labels[0],
        weights, np.float32(scale), np.float32(total), np.int32(real),
    )  # fmt: skip


def _rows(part: str, start: dict[str, Any], spec: TrainSpec, tasks: list[dict[str, Any]]) -> Rows | ShardRows:
    """This rank's rows of one part: its task's spool, or a shard that it reads by itself."""
    if start["shards"] is None:
        return stored_rows(part, tasks, start["place"]["rank"], start["spool"][part])
    return ShardRows(part, spec, Shards.from_plain(start["shards"]), start["partition"])


def stored_rows(part: str, tasks: list[dict[str, Any]], rank: int, descriptors: dict[str, int]) -> Rows:
    """This rank's rows of one part; a rank that has seen none looks like another's."""
    like = tasks[rank] if tasks[rank]["shapes"] else next((task for task in tasks if task["shapes"]), tasks[rank])
    return Rows(descriptors, tasks[rank]["rows"][part], like["shapes"], like["dtypes"])


# ── this process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _limit_threads(local_size: int) -> None:
    """Ranks of one host share its cores."""
    cores = max(1, len(os.sched_getaffinity(0)) // local_size)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
