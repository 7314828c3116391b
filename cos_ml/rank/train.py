"""The training of one rank: Keras's loop over this rank's rows, every step shared with the other ranks (rank side).

Exactness rests on three things. The loss of a step is the mean over its rows on all ranks: Keras divides by the rows of
its own batch, so each row's weight w becomes w·B·n/W, for B rows here, n ranks, and W the step's weight on all ranks,
and the ranks' average is the mean. Metrics add up: their state is sums and counts, summed over the ranks before the
result. And all ranks take the same number of steps: one that has no rows left takes part with rows of weight zero.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from cos_ml import callbacks, gpus
from cos_ml.data import blobs
from cos_ml.data.spool import PARTS, Rows
from cos_ml.network.archive import dump_model, find_layer, layers_by_name, load_model
from cos_ml.rank.callbacks import AgreeToStop, AverageStatistics, Course, Quicken, Seeds, StopAtNonFinite, Watch
from cos_ml.rank.collectives import Ranks
from cos_ml.rank.context import Clock, Here
from cos_ml.rank.feed import Feed, _rows
from cos_ml.rank.heartbeat import JOINING, WAITING, Pulse
from cos_ml.rank.resume import KeepStates, Memory, Record
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.rank.trainer import make_trainer, network_of
from cos_ml.spec import TrainSpec

__all__ = ["train"]


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


# ── the rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


# ── this process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _limit_threads(local_size: int) -> None:
    """Ranks of one host share its cores."""
    cores = max(1, len(os.sched_getaffinity(0)) // local_size)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
