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
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from cos_ml import networks
from cos_ml.allreduce import Ranks
from cos_ml.feeds import Batch, Rows, step_weights
from cos_ml.spec import TrainSpec

__all__ = ["train"]


def train(start: dict[str, Any], meet: Callable[[], dict[str, Any]]) -> dict[str, bytes]:
    """Train this rank's share.

    Args:
        start: what the barrier task says at first: spec, place, and the descriptors of files.
        meet: waits until all ranks have met; returns what each task has.

    Returns:
        dict[str, bytes]: "summary" as JSON; from rank 0 also "network", the trained archive.
    """
    clock = Clock()
    spec = TrainSpec.from_json(start["spec"])
    place = start["place"]
    _limit_threads(place["local_size"])
    with os.fdopen(start["network"], "rb") as file:
        file.seek(0)
        network = networks.load(file.read(), spec.modules)
    _seed(network, spec.seed, place["rank"])
    clock.lap("start")
    meeting = meet()
    clock.lap("read")
    events = os.fdopen(start["events"], "w")
    ranks = Ranks(place["size"])
    report(events, event="joined")
    clock.lap("join")
    trainer = make_trainer(network, spec, ranks)
    feeds = {
        part: Feed(part, spec, ranks, place["rank"], meeting["tasks"], start["spool"][part])
        for part in ("train", "validation")
    }
    history = fit(trainer, spec, ranks, feeds, events if place["rank"] == 0 else None)
    clock.lap("train")
    result = {"summary": json.dumps(history | {"seconds": clock.seconds, "place": place}).encode()}
    if place["rank"] == 0:
        result["network"] = networks.dump(network_of(trainer))
    ranks.close()
    return result


class Clock:
    """Seconds spent in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap as ``phase``."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


def report(events: Any, **event: Any) -> None:
    """Send one event, as a line of JSON, to the barrier task."""
    events.write(json.dumps(event) + "\n")
    events.flush()


def fit(trainer: Any, spec: TrainSpec, ranks: Ranks, feeds: dict[str, Feed], events: Any) -> dict[str, Any]:
    """Keras's own loop over the feeds; returns the history by metric and the rows seen in each epoch."""
    training, validation = feeds["train"], feeds["validation"]
    watch = Watch(training, spec.epochs, events)
    validation.begin(0)
    history = trainer.fit(
        training.dataset(),
        epochs=spec.epochs,
        validation_data=validation.dataset() if validation.steps else None,
        callbacks=[AverageStatistics(ranks, training.share), watch],
        shuffle=False,  # the feed does
        verbose=0,
    )
    return {
        "history": {name: [float(value) for value in values] for name, values in history.history.items()},
        "rows": training.total_rows, "validation_rows": validation.total_rows, "steps": training.steps,
        "epoch_seconds": watch.seconds,
    }  # fmt: skip


# ── the step ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_trainer(network: Any, spec: TrainSpec, ranks: Ranks) -> Any:
    """Compile ``network`` for ``fit``, with every variable as rank 0 has it."""
    arguments = {name: keras.saving.deserialize_keras_object(value) for name, value in spec.compile.items()}
    optimizer = keras.optimizers.get(arguments.pop("optimizer"))
    if spec.learning_rate is not None:
        optimizer.learning_rate = spec.learning_rate
    # A subclass made here, so that the step sits where Keras looks for it, whatever kind of model this is.
    network.__class__ = type("Shared" + type(network).__name__, (SharedSteps, type(network)), {})
    network.ranks = ranks
    network.compile(optimizer=optimizer, **arguments, jit_compile=False, steps_per_execution=spec.steps_per_execution)
    network._loss_tracker.__class__ = StepMean
    network.optimizer.build(network.trainable_variables)
    ranks.broadcast_variables([*network.weights, *network.optimizer.variables])
    return network


def network_of(trainer: Any) -> Any:
    """The plain network in a trainer, as Keras saves it."""
    trainer.__class__ = type(trainer).__mro__[2]
    return trainer


class StepMean(keras.metrics.Mean):
    """A mean over steps, each weighing as much as its rows on all ranks.

    Keras would weigh it by the rows of its own batch, which says nothing about the other ranks'.
    """

    weight: Any = 1.0  # a tensor of the step being traced

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        super().update_state(values, sample_weight=self.weight)


class SharedSteps(keras.Model if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mixin for a ``keras.Model``: training and test steps whose loss, gradients and metrics are those of all ranks.

    A step's data are ``(inputs, labels, weights, scale, weight, real)``: row weights [B], the factor B·n/W that makes
    them this step's, W itself, and how many of the rows are real (all, or none).
    """

    ranks: Ranks

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss, outputs = self._loss_of(data, training=True)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = self.ranks.average_gradients(tape.gradient(scaled, variables))
        self.optimizer.apply(gradients, variables)
        return self._metrics_of(data, outputs)

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
        outputs = self(networks.pack_inputs(self, inputs), training=training)
        loss = self.compute_loss(inputs, labels, outputs, weights * scale, training=training)
        self._loss_tracker.weight = weight
        self._loss_tracker.update_state(loss)
        return loss, outputs

    def _metrics_of(self, data: Any, outputs: Any) -> dict[str, Any]:
        inputs, labels, weights, _, _, real = data
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
        self._average()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._average()

    def _average(self) -> None:
        if self.ranks.size == 1:
            return
        for index, (variable, before) in enumerate(self.before):
            # The change is what is averaged: a frozen weight stays what it was, to the bit.
            after = before + self.ranks.sum((variable.numpy() - before) * self.share).astype(before.dtype)
            variable.assign(after)
            self.before[index] = (variable, after)


class Watch(keras.callbacks.Callback):
    """Tells the feed which epoch it is, and the barrier task how it went."""

    def __init__(self, feed: Feed, epochs: int, events: Any) -> None:
        super().__init__()
        self.feed, self.epochs, self.events = feed, epochs, events
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.feed.begin(epoch)
        self.began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.monotonic() - self.began
        self.seconds.append(seconds)
        if self.events is not None:
            report(
                self.events, event="epoch", epoch=epoch + 1, epochs=self.epochs,
                logs={name: float(value) for name, value in (logs or {}).items()},
                rows_per_second=(self.feed.total_rows / seconds),
            )  # fmt: skip


# ── the rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Feed:
    """This rank's rows of one part as a dataset of steps, as many as every other rank takes.

    Attributes:
        steps: in an epoch.
        total_rows: on all ranks.
        share: this rank's part of them.
    """

    def __init__(
        self,
        part: str,
        spec: TrainSpec,
        ranks: Ranks,
        rank: int,
        tasks: list[dict[str, Any]],
        descriptors: dict[str, int],
    ) -> None:
        counts = [task["rows"][part] for task in tasks]
        somebody = next((index for index, task in enumerate(tasks) if task["shapes"]), 0)
        self.shapes, self.dtypes = (
            {field: tasks[at][name][field] for field in descriptors} for name, at in _layout(tasks, rank, somebody)
        )
        self.spec, self.ranks, self.rank = spec, ranks, rank
        self.rows = Rows(descriptors, counts[rank], self.shapes, self.dtypes)
        self.total_rows = sum(counts)
        self.share = counts[rank] / max(self.total_rows, 1)
        self.steps = -(-max(counts) // spec.batch_size)
        self.shuffled = spec.shuffle and part == "train"
        self.filler: dict[str, np.ndarray] = {}
        if self.steps and 0 in counts:  # a rank without rows takes part with one of another's
            lender = int(np.argmax(counts))
            one = {field: array[:1] for field, array in self.rows.arrays.items()} if rank == lender else None
            self.filler = ranks.broadcast(one, lender)

    def dataset(self) -> Any:
        """A ``tf.data.Dataset`` of the steps of one epoch, in the form that ``SharedSteps`` takes."""
        signature = tf.nest.map_structure(
            lambda array: tf.TensorSpec([None, *array.shape[1:]] if array.ndim else [], array.dtype), self._example()
        )
        dataset = tf.data.Dataset.from_generator(self._steps, output_signature=signature)
        return dataset.apply(tf.data.experimental.assert_cardinality(self.steps)).prefetch(4)

    def begin(self, epoch: int) -> None:
        """Agree with the other ranks on the next pass over the dataset: its order here, each step's weight on all."""
        self.order = self.rows.order(self.shuffled, (self.spec.seed % 2**63, epoch, self.rank))
        self.totals = self.ranks.sum(step_weights(self.rows.weights(), self.order, self.spec.batch_size, self.steps))

    def _steps(self) -> Iterator[Any]:
        batches = self.rows.batches(self.order, self.spec.batch_size, self.steps, self.filler)
        for batch, total in zip(batches, self.totals, strict=True):
            yield self._data(batch, float(total))

    def _data(self, batch: Batch, total: float) -> Any:
        arrays = batch.arrays
        count = len(next(iter(arrays.values())))
        weights = arrays.get("w", np.ones(count, np.float32)) if batch.real else np.zeros(count, np.float32)
        scale = count * self.ranks.size / total if batch.real and total else 0.0
        inputs = tuple(arrays[column.field] for column in self.spec.inputs)
        labels = tuple(arrays[column.field] for column in self.spec.labels)
        return (
            inputs,
            labels if len(labels) > 1 else labels[0],
            weights, np.float32(scale), np.float32(total), np.int32(batch.real),
        )  # fmt: skip

    def _example(self) -> Any:
        """One step of no rows: what shapes and dtypes a step has."""
        empty = {field: np.empty((0, *shape), self.dtypes[field]) for field, shape in self.shapes.items()}
        return self._data(Batch(empty, 0), 0.0)


def _layout(tasks: list[dict[str, Any]], rank: int, somebody: int) -> list[tuple[str, int]]:
    """Which task says how rows look: this one, or, where it has seen none, one that has."""
    at = rank if tasks[rank]["shapes"] else somebody
    return [("shapes", at), ("dtypes", at)]


# ── this process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _seed(network: Any, seed: int, rank: int) -> None:
    """Make Dropout and its kin depend on seed and rank alone, and not on what the network was built with."""
    keras.utils.set_random_seed(seed % 2**32)
    generators = [
        variable
        for variable in network.non_trainable_variables
        if "seed_generator" in variable.path and len(variable.shape) == 1
    ]
    words = np.random.SeedSequence([seed % 2**63, rank]).generate_state(max(len(generators), 1))
    for variable, word in zip(generators, words, strict=False):
        variable.assign(np.array([word, 0], variable.dtype))


def _limit_threads(local_size: int) -> None:
    """Ranks of one host share its cores."""
    cores = max(1, len(os.sched_getaffinity(0)) // local_size)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
