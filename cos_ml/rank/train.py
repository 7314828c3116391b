"""The training of one rank: Keras's loop over this rank's rows, every step shared with the other ranks (rank side).

n ranks compute what one computes: see ``trainer.py`` and ``shared_step.py``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from cos_ml import gpus
from cos_ml.data import blobs
from cos_ml.network.archive import dump_model, load_model
from cos_ml.rank import threads
from cos_ml.rank.candidate import Candidate
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import PhaseTimer, RankContext
from cos_ml.rank.feed import open_rows
from cos_ml.rank.grid import KeptTrainers
from cos_ml.rank.halving import train_in_turns
from cos_ml.rank.heartbeat import JOINING, Heartbeat
from cos_ml.spec import TrainSpec

__all__ = ["train"]


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
    kept = KeptTrainers(specs)
    results: dict[str, bytes] = {}
    with contextlib.ExitStack() as stack:
        candidates = []
        for index in kept.order:
            load = partial(_load, specs[index], archives) if index else loaded.pop
            here = replace(context, candidate={"candidate": index + 1, "candidates": len(specs)})
            candidates.append(stack.enter_context(contextlib.closing(Candidate(load, specs[index], here, rows, kept))))
        for one, rung in _trained(candidates, specs[0], context.communicator):
            network, summary = one.end()
            gc.enable()  # where a checkpoint left no step to train
            index = kept.order[candidates.index(one)]
            summary |= {"rank_info": start["rank_info"], "dropped": rung}
            results[f"{index}/summary"] = json.dumps(summary).encode()
            if context.rank == 0:
                results[f"{index}/network"] = dump_model(network, like=archives[str(one.spec.network)])
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


def _trained(
    candidates: Sequence[Candidate], spec: TrainSpec, communicator: Communicator
) -> Iterator[tuple[Candidate, int | None]]:
    """Train the candidates; yields each as its training ends, with the rung after which it was dropped, or None."""
    if spec.halving_factor is not None:
        yield from train_in_turns(candidates, spec.halving_factor, spec.halving_min_epochs, communicator)
        return
    for one in candidates:
        one.advance(sys.maxsize)
        yield one, None
