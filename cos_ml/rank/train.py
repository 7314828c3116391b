"""The training of one rank: Keras's loop over this rank's rows, every step shared with the other ranks (rank side).

n ranks compute what one computes: see ``trainer.py`` and ``shared_step.py``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from cos_ml import callbacks, gpus
from cos_ml.data import blobs
from cos_ml.data.spool import PARTS, SpooledRows
from cos_ml.network.archive import dump_model, load_model
from cos_ml.network.losses import compares_rows, each_loss, loss_name
from cos_ml.network.policies import training_settings
from cos_ml.rank import threads
from cos_ml.rank.callbacks import (
    AverageMovingStats,
    CheckAgreement,
    HeartbeatCallback,
    ProgressCallback,
    ReseedCallback,
    SkippingCallbackList,
    StopAtNonFinite,
    SyncStopTraining,
)
from cos_ml.rank.checkpoint_store import Checkpoint
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import PhaseTimer, RankContext, TrainingLog
from cos_ml.rank.copied_files import CopyFilesCallback, with_local_path
from cos_ml.rank.feed import Feed, open_rows
from cos_ml.rank.finite import CheckFinite, FiniteEarlyStopping
from cos_ml.rank.grid import KeptTrainers
from cos_ml.rank.heartbeat import JOINING, TRAINING, Heartbeat
from cos_ml.rank.interleave import InterleavedValidation
from cos_ml.rank.resume import CheckpointCallback, TrainerState
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.rank.trainer import DistributedTrainer, Plan, make_trainer
from cos_ml.spec import TrainSpec

__all__ = ["train"]

STATELESS = (keras.callbacks.CSVLogger, CopyFilesCallback)  # their state is in files


def train(
    start: dict[str, Any], wait_for_peers: Callable[[], dict[str, Any]], heartbeat: Heartbeat
) -> dict[str, bytes]:
    """Train this rank's share of every candidate.

    Args:
        start: the first message of the barrier task: specs, rank info, and file descriptors.
        wait_for_peers: waits until all ranks are ready; returns the messages of all tasks.
        heartbeat: reports the rank's phases and progress to the task.

    Returns:
        dict[str, bytes]: by candidate, "0/summary" as JSON; from rank 0 also "0/network", the trained archive.
    """
    gc.disable()  # until the first step is traced: that makes many objects, and hardly any garbage
    timer = PhaseTimer()
    specs = [TrainSpec.loads(text) for text in start["specs"]]
    gpus.use(specs[0].use_gpu, tf)
    threads.limit(start["rank_info"]["local_size"])
    with os.fdopen(start["networks"], "rb") as file:
        archives = blobs.read(file)
    loaded = [_load(specs[0], archives)]
    context = _connect(start["rank_info"], wait_for_peers, heartbeat, timer)
    rows = open_rows(start, specs[0], context.tasks)
    results: dict[str, bytes] = {}
    kept = KeptTrainers(specs)
    for index in kept.order:
        spec = specs[index]
        load = partial(_load, spec, archives) if index else loaded.pop
        try:
            context.candidate = {"candidate": index + 1, "candidates": len(specs)}
            network, summary = train_one(load, spec, context, rows, kept)
            gc.enable()  # where a checkpoint left no step to train
        except Exception as error:
            if spec.name:
                error.add_note(f"This was {spec.name}.")
            raise
        summary |= {"seconds": timer.seconds, "rank_info": start["rank_info"]}
        results[f"{index}/summary"] = json.dumps(summary).encode()
        if context.rank == 0:
            results[f"{index}/network"] = dump_model(network, like=archives[str(spec.network)])
        timer.reset("compile", "train")
    heartbeat.enter("leaving the other ranks")
    context.communicator.close()
    return results


def _load(spec: TrainSpec, archives: dict[str, bytes]) -> Any:
    """The network of one candidate, in a process without state of the candidates before it."""
    keras.utils.clear_session()
    network = load_model(archives[str(spec.network)], spec.modules)
    keras.utils.set_random_seed(spec.seed % 2**32)
    return network


def _connect(
    rank_info: dict[str, Any], wait_for_peers: Callable[[], dict[str, Any]], heartbeat: Heartbeat, timer: PhaseTimer
) -> RankContext:
    """Connect this rank to the others."""
    if rank_info["size"] > 1:
        import horovod.tensorflow  # noqa: F401  # where the import fails, no other rank waits for this one
    timer.lap("start")
    tasks = wait_for_peers()["tasks"]
    timer.lap("read")
    heartbeat.enter(JOINING)
    communicator = Communicator(rank_info["size"])
    heartbeat.exclude_threads(communicator.threads)
    heartbeat.send(event="joined")
    timer.lap("join")
    return RankContext(communicator, rank_info["rank"], tasks, timer, heartbeat)


def train_one(
    load: Callable[[], Any], spec: TrainSpec, context: RankContext, rows: dict[str, SpooledRows | ShardRows],
    kept: KeptTrainers,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """Train one candidate; returns its network and the summary of ``fit``.

    Args:
        load: loads its network, if no trainer is kept for it.
        spec: the candidate.
        context: what this rank knows.
        rows: its rows, by part.
        kept: the trainers of earlier candidates.
    """
    feeds = {part: Feed(part, spec, context, rows[part]) for part in PARTS}
    trainer = kept.take(spec, feeds)
    network = load() if trainer is None else trainer.model
    with training_settings(network, spec.dtype_policy, spec.frozen, spec.layer_rates):
        if trainer is None:
            trainer = make_trainer(network, spec, context.communicator, feeds)
            kept.keep(spec, trainer)
        try:
            summary = fit(trainer, context)
        except tf.errors.OpError as error:
            raise next((feed.error for feed in feeds.values() if feed.error is not None), error) from None
        context.timer.lap("train")
    return network, summary


def fit(trainer: DistributedTrainer, context: RankContext) -> dict[str, Any]:
    """Train with Keras's own loop over the feeds.

    Returns:
        dict[str, Any]: "history" by metric; "rows", "validation_rows" and "steps" of an epoch; "total_steps";
        "epoch_seconds"; "resumed", the epochs and steps that a checkpoint already contained; "checkpoint", whether
        there are any.
    """
    plan, spec = trainer.plan, trainer.plan.spec
    training, validation = plan.feeds["train"], plan.feeds["validation"]
    log, statistics = TrainingLog(), AverageMovingStats(context.communicator, training)
    user_callbacks = _user_callbacks(plan, context)
    writer = checkpoint = None
    if spec.checkpoint:
        context.heartbeat.enter("looking for a checkpoint")
        kept = {name: one for name, one in user_callbacks.items() if not isinstance(one, STATELESS)}
        state = TrainerState(plan, kept | {"log": log})
        writer = CheckpointCallback(state, spec.checkpoint, context, statistics.average, spec.stop_at_non_finite)
        checkpoint = writer.checkpoint
    epoch, step = (checkpoint.epoch, checkpoint.step) if checkpoint else (0, 0)
    _continue_files(user_callbacks.values(), epoch)
    context.report(event="begin", epoch=epoch, step=step, kept=writer is not None)
    validation.begin(0)
    _report_pairs(plan, context)
    ordered = _ordered(trainer, context, user_callbacks, statistics, log, checkpoint)
    if writer is not None:
        ordered += [HeartbeatCallback(context.heartbeat, "checkpoint"), writer]
        ordered.append(HeartbeatCallback(context.heartbeat, TRAINING))
    stopped = checkpoint is not None and checkpoint.plain["stopped"] and not step
    epochs = plan.schedule.epochs
    with contextlib.closing(writer) if writer else contextlib.nullcontext():
        trainer.fit(
            training.dataset(), epochs=epochs, initial_epoch=epochs if stopped else epoch,
            validation_data=validation.dataset() if validation.steps else None,
            callbacks=SkippingCallbackList(trainer, ordered, add_history=True, epochs=epochs, steps=training.steps),
            shuffle=False, verbose=0,  # the feed shuffles
        )  # fmt: skip
    return {
        "history": log.history, "rows": training.total_rows, "validation_rows": validation.total_rows,
        "steps": training.steps, "total_steps": log.steps, "epoch_seconds": log.seconds, "resumed": [epoch, step],
        "checkpoint": bool(writer),
    }  # fmt: skip


def _ordered(
    trainer: DistributedTrainer, context: RankContext, user_callbacks: dict[str, Any], statistics: AverageMovingStats,
    log: TrainingLog, checkpoint: Checkpoint | None,
) -> list[Any]:  # fmt: skip
    """The callbacks of a training, up to the one that writes checkpoints, in the order in which they are called."""
    plan, start = trainer.plan, (checkpoint.epoch, checkpoint.step) if checkpoint else (0, 0)
    stop = SyncStopTraining(trainer, context.communicator, user_callbacks.values())
    ordered = [
        statistics, *_check_finite(plan), HeartbeatCallback(context.heartbeat, "callbacks"), *user_callbacks.values(),
        HeartbeatCallback(context.heartbeat, TRAINING), ReseedCallback(plan.spec.seed, context.partition, checkpoint),
        stop, ProgressCallback(plan, context, log, start),
    ]  # fmt: skip
    if plan.own_step and context.communicator.size > 1:
        ordered.append(CheckAgreement(plan))
    if plan.spec.stop_at_non_finite:
        ordered.append(StopAtNonFinite(plan))
    if plan.spec.validation_steps is not None:
        early = user_callbacks.get("early stopping")
        ordered.append(InterleavedValidation(trainer, context, log, statistics, stop, early))
    return ordered


def _user_callbacks(plan: Plan, context: RankContext) -> dict[str, Any]:
    """The callbacks that the user asked for on this rank, by a name that is the same in every attempt."""
    spec, monitor = plan.spec, "val_loss" if plan.feeds["validation"].steps else "loss"
    made: dict[str, Any] = {}
    for index, plain in enumerate(spec.callbacks):
        if plain["ranks"] == "all" or context.rank == 0:
            local, copies = with_local_path(plain, context.report)
            made[f"callback {index}"] = callbacks.make(local)
            made |= {f"files of callback {index}": copies} if copies else {}
    if spec.patience is not None or spec.restore_best:  # all ranks see the same loss, so they decide alike
        patience = plan.schedule.total if spec.patience is None else spec.patience
        made["early stopping"] = FiniteEarlyStopping(
            monitor, patience=patience, mode="min", restore_best_weights=spec.restore_best
        )
    return made


def _check_finite(plan: Plan) -> list[CheckFinite]:
    return [CheckFinite(plan.network)] if plan.spec.stop_at_non_finite else []


def _report_pairs(plan: Plan, context: RankContext) -> None:
    """Note a loss whose pairs of rows do not cross the ranks."""
    names = [loss_name(loss) for loss in each_loss(plan.spec.compile.get("loss")) if compares_rows(loss)]
    if names and context.communicator.size > 1:
        text = (
            f"{names[0]} compares rows with each other. Pairs do not cross the ranks: each has those of its own rows."
        )
        context.report(event="note", text=text)


def _continue_files(user_callbacks: Iterable[Any], epoch: int) -> None:
    """Let the tables of a training that resumes keep the epochs before, and only those."""
    for one in user_callbacks:
        if not epoch or not isinstance(one, keras.callbacks.CSVLogger):
            continue
        one.append, path = True, Path(one.filename)
        if path.is_file():
            rows = [(row.split(one.sep)[0], row) for row in path.read_text().splitlines(keepends=True)]
            path.write_text("".join(row for first, row in rows if not first.isdecimal() or int(first) < epoch))
