"""One barrier task: spools its rows, meets the others, and watches its rank (barrier task side)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from pyspark import BarrierTaskContext

from cos_ml.data import blobs
from cos_ml.data.parquet import Shard
from cos_ml.data.spool import Spool
from cos_ml.errors import InvalidInputError, RankError
from cos_ml.job import preflight, progress
from cos_ml.job.barrier import IN_PART, Job
from cos_ml.job.child import RankProcess
from cos_ml.job.messages import HOROVOD_ECHO, Meeting, _meet
from cos_ml.job.placement import place
from cos_ml.spec import TrainSpec

__all__ = []


def _task(job: Job, ranks: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One barrier task: spool the partition, meet the others, watch the rank, pass on what it returns."""
    context = BarrierTaskContext.get()
    hosts = [info.address.rsplit(":", 1)[0] for info in context.getTaskInfos()]
    if len(hosts) < ranks:
        raise RankError(IN_PART)
    places = place(hosts)
    here = places[context.partitionId()]
    spool = Shard(job.shards, context.partitionId()) if job.shards else Spool(job.specs[0])
    with RankProcess(job, here, spool) as process:  # TensorFlow loads while rows arrive
        problem = _fill(spool, batches)
        with _meet(context, job, hosts, places, spool, problem) as meeting:
            if foreign := preflight.differing(job.versions, meeting.tasks):
                result = {"cluster": foreign.encode()} if here.rank == 0 else {}
            elif any(task["problem"] for task in meeting.tasks):
                result = {"problem": problem.encode()} if problem else {}
            elif not sum(task["rows"]["train"] for task in meeting.tasks):
                result = {"problem": _no_rows(meeting.tasks).encode()} if here.rank == 0 else {}
            elif several_shapes := _several_shapes(meeting.tasks, job.specs[0]):
                result = {"problem": several_shapes.encode()} if here.rank == 0 else {}
            else:
                result = _train(job, process, meeting)
        for batch in blobs.record_batches(result | {"host": here.host.encode()}):
            rank = pa.array([here.rank], pa.int32())
            yield pa.RecordBatch.from_arrays([rank, *batch.columns], ["rank", *batch.schema.names])


def _train(job: Job, process: RankProcess, meeting: Meeting) -> dict[str, bytes]:
    """Let the rank train, if all can join; returns what it leaves."""
    ready = False
    try:
        ready = process.ready()
    finally:  # whether it has failed or died: none waits for the one that does not come
        all_are = meeting.all_ready(process.here.rank, ready)
    if not all_are:
        return {"error": f"{HOROVOD_ECHO} before it began.".encode()} if ready else process.result([])
    first = process.here.rank == 0
    with contextlib.closing(progress.Reporter(job.progress if first else None)) as reporter:
        need = preflight.need_of(job.specs[0], max(map(len, job.networks)), started=True)  # archives are weights
        notes = preflight.tight(need, meeting.tasks) if first else []
        for text in notes:
            reporter.send({"event": "note", "text": text})
        return process.train(meeting, reporter, notes)


def _fill(spool: Spool | Shard, batches: Iterable[pa.RecordBatch]) -> str:
    """Spool the partition; returns what is wrong with it, which no retry would mend, or ""."""
    try:
        spool.fill(batches)
    except InvalidInputError as error:
        partition = BarrierTaskContext.get().partitionId()
        return f"{error} (Rows are counted from 0 within partition {partition} of the training data.)"
    except OSError as error:
        host = socket.gethostname()
        return f"The executor {host} can't spool its partition to local disk: {error}. Give spark.local.dir more room."
    return ""


def _no_rows(tasks: list[dict[str, Any]]) -> str:
    skipped, validation = (sum(task[name] for task in tasks) for name in ("skipped", "validation"))
    if skipped or validation:
        return (
            f"There are no rows to train on: {skipped} were skipped as invalid, {validation} are marked for validation."
        )
    return "The DataFrame is empty: there are no rows to train on."


def _several_shapes(tasks: list[dict[str, Any]], spec: TrainSpec) -> str:
    """What is wrong where rows of an open side have one length in one partition and another in the next, or ""."""
    for column in spec.columns:
        shapes = sorted({tuple(task["shapes"][column.field]) for task in tasks if column.field in task["shapes"]})
        if len(shapes) > 1:
            return (
                f"Column {column.name!r} has rows of shape {shapes[0]} in one partition and of {shapes[1]} in another: "
                "expected one shape."
            )
    return ""
