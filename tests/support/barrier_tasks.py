"""What stands in for ``cos_ml.job.task.run_task`` where Spark has to behave as it seldom does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark import BarrierTaskContext

from cos_ml.errors import RankError
from cos_ml.job import barrier, messages, peers, task

if TYPE_CHECKING:
    from cos_ml.broadcasts import Archive

TASK = task.run_task


def repeated_in_part(
    marker: str, job: barrier.Job, networks: Sequence[Archive], size: int, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """The first attempt fails, and Spark makes the second one without the other tasks."""
    if BarrierTaskContext.get().partitionId() == 0:  # the other one waits for it, and is ended with it
        with open(marker, "a+") as calls:
            calls.write(job.secret + "\n")
            calls.seek(0)
            first, *more = calls.read().split()
        if more in ([], [first]):  # of the first job
            list(batches)  # as ``run_task`` does
            raise RankError(messages.PARTIAL_RETRY if more else "Rank 0 is gone.")
    yield from TASK(job, networks, size, batches)


def not_reached(
    job: barrier.Job, networks: Sequence[Archive], size: int, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """No task knows the address of task 0 beforehand: they meet by Spark's allGather."""
    known, peers.address_of_first = peers.address_of_first, lambda *_: None
    try:
        yield from TASK(job, networks, size, batches)
    finally:
        peers.address_of_first = known
