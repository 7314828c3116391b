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
from cos_ml.network.keras_internals import all_layers
from cos_ml.rank.callbacks import (
    AverageMovingStats,
    HeartbeatCallback,
    ProgressCallback,
    ReseedCallback,
    SkippingCallbackList,
    StopAtNonFinite,
    SyncStopTraining,
)
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import PhaseTimer, RankContext, TrainingLog
from cos_ml.rank.feed import Feed, open_rows
from cos_ml.rank.heartbeat import JOINING, TRAINING, Heartbeat
from cos_ml.rank.resume import CheckpointCallback, TrainerState
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.rank.trainer import make_trainer, network_of
from cos_ml.spec import TrainSpec

__all__ = ["train"]


def train(
    start: dict[str, Any], wait_for_peers: Callable[[], dict[str, Any]], heartbeat: Heartbeat
) -> dict[str, bytes]:
    """Train this rank's share.

    Args:
        start: what the barrier task says at first: spec, place, and the descriptors of files.
        meet: waits until all ranks have met; returns what each task has.
        pulse: tells the task how it goes.

    Returns:
        dict[str, bytes]: "summary" as JSON; from rank 0 also "network", the trained archive.
    """
    timer = PhaseTimer()
    specs = [TrainSpec.loads(text) for text in start["specs"]]
    rank_info = start["rank_info"]
    gpus.use(specs[0].use_gpu, tf)
    _limit_threads(rank_info["local_size"])
    with os.fdopen(start["networks"], "rb") as file:
        archives = blobs.read(file)
    network = _begin(specs[0], archives)
    if rank_info["size"] > 1:
        import horovod.tensorflow  # noqa: F401  # where it does not load, the others are told before they wait for it
    timer.lap("start")
    tasks = wait_for_peers()["tasks"]
    timer.lap("read")
    heartbeat.enter(JOINING)
    communicator = Communicator(rank_info["size"])
    heartbeat.exclude_threads(communicator.threads)
    heartbeat.send(event="joined")
    timer.lap("join")
    context = RankContext(communicator, rank_info["rank"], tasks, timer, heartbeat)
    rows = {part: open_rows(part, start, specs[0], tasks) for part in PARTS}
    results: dict[str, bytes] = {}
    for index, spec in enumerate(specs):
        try:
            if index:
                network = _begin(spec, archives)
            context.candidate = {"candidate": index + 1, "candidates": len(specs)}
            history, network = train_one(network, spec, context, rows)
        except Exception as error:
            if spec.name:
                error.add_note(f"This was {spec.name}.")
            raise
        results[f"{index}/summary"] = json.dumps(history | {"seconds": timer.seconds, "rank_info": rank_info}).encode()
        if context.rank == 0:
            results[f"{index}/network"] = dump_model(network)
        timer.reset("compile", "train")
    heartbeat.enter("leaving the other ranks")
    communicator.close()
    return results


def _begin(spec: TrainSpec, archives: dict[str, bytes]) -> Any:
    """The network of one candidate, in a process that remembers nothing of those before it."""
    keras.utils.clear_session()
    network = load_model(archives[str(spec.network)], spec.modules)
    keras.utils.set_random_seed(spec.seed % 2**32)
    return network


def train_one(
    network: Any, spec: TrainSpec, context: RankContext, rows: dict[str, Rows | ShardRows]
) -> tuple[dict[str, Any], Any]:
    """Train one candidate; returns the course of it, and the trained network."""
    restore = set_policy(network, spec.dtype_policy)
    unfreeze = freeze(network, spec.frozen)
    trainer = make_trainer(network, spec, context.communicator)
    feeds = {part: Feed(part, spec, context, rows[part]) for part in PARTS}
    try:
        history = fit(trainer, spec, context, feeds)
    except tf.errors.OpError:
        for feed in feeds.values():
            if feed.problem is not None:
                raise feed.problem from None
        raise
    context.timer.lap("train")
    trained = network_of(trainer)
    unfreeze()
    restore()
    return history, trained


def set_policy(network: Any, name: str | None) -> Callable[[], None]:
    """Let all layers compute under Keras's policy ``name``; returns what gives each its own again."""
    # All that are within layers, too: the cell of an LSTM, the projections of an attention.
    layers = all_layers(network) if name else []
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

    def unfreeze() -> None:
        for layer, trainable in before if names else ():  # a model comes before its layers, which it changes too
            layer.trainable = trainable

    return unfreeze


def fit(trainer: Any, spec: TrainSpec, context: RankContext, feeds: dict[str, Feed]) -> dict[str, Any]:
    """Keras's own loop over the feeds; returns the history by metric and the rows seen in each epoch."""
    training, validation = feeds["train"], feeds["validation"]
    record, statistics = TrainingLog(), AverageMovingStats(context.communicator, training.share)
    users = {
        f"callback {index}": callbacks.make(plain)
        for index, plain in enumerate(spec.callbacks)
        if plain["ranks"] == "all" or context.rank == 0
    }
    users |= _early_stopping(spec, "val_loss" if validation.steps else "loss")
    keep = None
    if spec.checkpoint:
        context.heartbeat.enter("looking for a checkpoint")
        memory = TrainerState(trainer, users | {"record": record})
        keep = CheckpointCallback(
            memory, spec.checkpoint, context.communicator, context.rank, context.digest, training.steps, statistics.average,
            finite=spec.stop_at_non_finite, note=lambda text: context.report(event="note", text=text),
        )  # fmt: skip
    state = keep.state if keep else None
    epoch, step = (state.epoch, state.step) if state else (0, 0)
    context.report(event="begin", epoch=epoch, step=step, kept=keep is not None)
    validation.begin(0)
    course = SkippingCallbackList(
        [
            statistics,
            HeartbeatCallback(context.heartbeat, "callbacks"),
            *users.values(),
            HeartbeatCallback(context.heartbeat, TRAINING),
            ReseedCallback(spec.seed, context.partition, state),
            SyncStopTraining(context.communicator),
            ProgressCallback(training, spec.epochs, context, record, (epoch, step)),
            *([StopAtNonFinite()] if spec.stop_at_non_finite else []),
            *([HeartbeatCallback(context.heartbeat, "checkpoint"), keep, HeartbeatCallback(context.heartbeat, TRAINING)] if keep else []),
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
        "checkpoint": keep is not None,
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


def _limit_threads(local_size: int) -> None:
    """Ranks of one host share its cores."""
    cores = max(1, len(os.sched_getaffinity(0)) // local_size)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
