"""One barrier task: spools its rows, waits for the other tasks, and watches its rank (barrier task side)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark import BarrierTaskContext

from cos_ml import broadcasts
from cos_ml.data import blobs
from cos_ml.data.parquet import ShardSpool
from cos_ml.data.spool import Spool, local_folder
from cos_ml.disks import is_full, no_room
from cos_ml.errors import InvalidInputError, RankError
from cos_ml.job import preflight, progress
from cos_ml.job.child import ChildProcess
from cos_ml.job.gang import GangContext, task_context
from cos_ml.job.messages import CANCELLED, PARTIAL_RETRY, Job
from cos_ml.job.peers import Handshake, PeerInfo
from cos_ml.job.placement import RankInfo, assign_ranks
from cos_ml.processor import instruction_set
from cos_ml.python_worker import current_task, spare_archives
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    from cos_ml.broadcasts import Archive

__all__ = ["run_task"]


def run_task(
    job: Job, networks: Sequence[Archive], ranks: int, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Spool the partition, wait for the other tasks, watch the rank, and return its result as rows.

    Args:
        job: the job, without its networks.
        networks: the job's networks, as tasks read them.
        ranks: the number of ranks.
        batches: the partition's rows. They are read to the end even if the task fails before: Spark might not receive
            the error from a worker that ends while Spark still sends rows.
    """
    rows = iter(batches)
    try:
        with task_context(job.gang) as context:
            yield from _run(context, job, networks, ranks, rows)
    except Exception:
        _use_up(rows)
        raise


def _run(
    context: BarrierTaskContext | GangContext,
    job: Job,
    networks: Sequence[Archive],
    ranks: int,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """See ``run_task``."""
    spare_archives()
    hosts = [info.address.rsplit(":", 1)[0].strip("[]") for info in context.getTaskInfos()]  # as Spark writes IPv6
    if len(hosts) < ranks:
        # Spark counts a task as finished that ended just after another one failed. Training without it would be wrong.
        raise RankError(PARTIAL_RETRY)
    rank_infos = assign_ranks(hosts)
    own = rank_infos[context.partitionId()]
    job = replace(job, networks=tuple(map(broadcasts.read, networks)))
    spool = ShardSpool(job.shards, context.partitionId()) if job.shards else Spool(job.specs[0])
    with contextlib.ExitStack() as opened:
        process, input_error = _started(job, own, spool)  # imports TensorFlow while rows arrive
        opened.enter_context(contextlib.closing(process or spool))
        handshake = opened.enter_context(contextlib.closing(Handshake(context, job, hosts, rank_infos)))
        input_error = input_error or _fill(spool, batches)
        _use_up(batches)
        with contextlib.closing(handshake.wait(spool, bool(input_error))) as peers:
            mismatch = preflight.version_mismatch(job.versions, peers.tasks)
            if mismatch := mismatch or preflight.cant_train_together(job.ports, peers.tasks):
                result = {"cluster_error": mismatch.encode()} if own.rank == 0 else {}
            elif any(task["invalid"] for task in peers.tasks):
                result = {"input_error": input_error.encode()} if input_error else {}
            elif unusable := _no_rows(peers.tasks) or _inconsistent_shapes(peers.tasks, job.specs[0]):
                result = {"input_error": unusable.encode()} if own.rank == 0 else {}
            elif process:
                result = _train(job, process, peers)
        about = {"host": own.host.encode(), "processor": instruction_set().encode()}
        for batch in blobs.record_batches(result | about):
            rank = pa.array([own.rank], pa.int32())
            yield pa.RecordBatch.from_arrays([rank, *batch.columns], ["rank", *batch.schema.names])


def _use_up(rows: Iterator[pa.RecordBatch]) -> None:
    with contextlib.suppress(Exception):  # there is an error already
        for _ in rows:
            pass


def _started(job: Job, own: RankInfo, spool: Spool) -> tuple[ChildProcess | None, str]:
    """The rank; or the error of a disk that has no room for its networks, which the other tasks must learn of."""
    try:
        return ChildProcess(job, own, spool), ""
    except OSError as error:
        if not is_full(error):
            raise
        return None, str(no_room("the networks of the fit", local_folder(), error))


def _fill(spool: Spool, batches: Iterator[pa.RecordBatch]) -> str:
    """Spool the partition; returns the error that no retry would fix, or ""."""
    try:
        spool.fill(batches)
    except InvalidInputError as error:
        partition = current_task().partitionId()
        return f"{error} (Rows are counted from 0 within partition {partition} of the training data.)"
    except OSError as error:
        if is_full(error):
            return str(no_room("the rows of its partition", local_folder(), error))
        return f"The executor {socket.gethostname()} can't spool its partition to local disk: {error}."
    return ""


def _no_rows(tasks: list[dict[str, Any]]) -> str:
    """The error where no task has a row to train on, or ""."""
    if any(task["rows"]["train"] for task in tasks):
        return ""
    skipped = sum(task["skipped"] for task in tasks)
    validation = sum(task["rows"]["validation"] for task in tasks)
    if skipped or validation:
        return f"No rows to train on: {skipped} were skipped as invalid, {validation} are marked for validation."
    return "The DataFrame is empty: no rows to train on."


def _inconsistent_shapes(tasks: list[dict[str, Any]], spec: TrainSpec) -> str:
    """The error where rows of partitions have different ones of the shapes that a column allows, or ""."""
    for column in spec.columns:
        found = {tuple(task["shapes"][column.field]) for task in tasks if column.field in task["shapes"]}
        shapes = sorted(found, key=str)  # an unknown dimension is None
        if len(shapes) > 1:
            return f"Column {column.name!r}: inconsistent row shapes across partitions: {shapes[0]} and {shapes[1]}."
    return ""


def _train(job: Job, process: ChildProcess, peers: PeerInfo) -> dict[str, bytes]:
    """Let the rank train, if all can join; returns its result."""
    ready = False
    try:
        ready = process.ready()
    finally:  # even if it has failed or died: the others must not wait for it
        all_ready = peers.all_ready(process.rank_info.rank, ready)
    if not all_ready:
        return {"traceback": f"{CANCELLED} before training began.".encode()} if ready else process.result([])
    first = process.rank_info.rank == 0
    with contextlib.closing(progress.Reporter(job.progress if first else None)) as reporter:
        needed = preflight.estimate(job.specs[0], max(map(len, job.networks)))
        needed["memory"] -= preflight.PROCESS  # the ranks have started, so free memory is without theirs
        notes = preflight.warnings(needed, peers.tasks) + preflight.processor_notes(peers.tasks)
        notes = notes if first else []
        for text in notes:
            reporter.send({"event": "note", "text": text})
        return process.train(peers, reporter, notes)
