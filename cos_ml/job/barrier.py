"""One barrier job: a function run on n ranks, each a child process of a barrier task (driver side).

With ``use_barrier=False`` the stage is an ordinary one, whose tasks ``gang.py`` keeps together.

The tasks' side is ``task.py``; a rank starts in ``cos_ml/rank/__main__.py``.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame, SparkSession

from cos_ml import broadcasts, gpus, spark_internals
from cos_ml.cancellation import check_not_cancelled, job_tag
from cos_ml.data import blobs
from cos_ml.data.frames import planned_at_once, repartition_to_ranks, small_batches
from cos_ml.disks import REMEDY, is_full
from cos_ml.errors import ClusterError, InvalidInputError, RankError, SetupError, from_spark
from cos_ml.job import gang, retries, slots
from cos_ml.job.messages import PEERS_LOST, UNKNOWN, Job, Outcome, peers_lost, raise_reported
from cos_ml.job.task import run_task

if TYPE_CHECKING:
    from cos_ml.broadcasts import Archive

__all__ = ["run"]

RESULT_BYTES = 64 << 20  # what the driver takes at a time


def run(df: DataFrame, job: Job, ranks: int, use_barrier: bool = True) -> Outcome:
    """Run ``job`` on the rows of ``df``, one rank per partition.

    Args:
        df: the selected columns, as ``select_columns`` names them; with shards, any rows or none.
        job: what each rank does.
        ranks: number of ranks.
        use_barrier: whether they are tasks of a barrier stage; otherwise the driver gangs those of an ordinary one.

    Returns:
        Outcome: what each rank's function returned.

    Raises:
        ClusterError: the cluster can't run so many tasks at once, or its executors have other versions.
        InvalidInputError: a row can't be used.
        RankError: a rank failed. The message has its traceback, or the cause of each attempt that Spark made.
    """
    limit = retries.max_attempts(df.sparkSession)
    failures: list[str] = []
    with broadcasts.temporary(df.sparkSession, job.networks) as networks:
        while True:
            outcome = _try(df, job, networks, ranks, failures, use_barrier)
            failures = outcome.failures
            if peers_lost(outcome.results) and len(failures) + 1 < limit:
                failures = [*failures, PEERS_LOST]  # no task failed, so Spark does not retry
            elif outcome.results:
                break
    raise_reported(outcome.results)
    return outcome


def _try(
    df: DataFrame, job: Job, networks: tuple[Archive, ...], ranks: int, failures: list[str], use_barrier: bool
) -> Outcome:
    """Run the job with the retries that Spark makes or, after ``failures``, with none: Spark would count from 0 again.

    The outcome has no results where the job has failed and attempts are left.
    """
    spark = df.sparkSession
    profile = gpus.profile(spark.conf, job.specs[0].use_gpu)
    if use_barrier or not failures:  # otherwise a gang's tasks wait for executors in place of those that were lost
        slots.check_cluster(spark, ranks, profile, use_barrier)
    exclusive = gpus.is_exclusive(spark.conf, job.specs[0].use_gpu)
    sent = replace(job, networks=(), secret=secrets.token_hex(16))  # tasks of an earlier job may live on
    returned = sum(len(job.networks[spec.network]) for spec in job.specs)
    with job_tag(spark) as tag, gang.gathered(spark, ranks, tag.cancel, not use_barrier) as server:
        sent = replace(sent, gang=server.address if server else None)
        tasks = repartition_to_ranks(df, ranks).mapInArrow(
            partial(run_task, sent, networks, ranks), f"rank int, {blobs.SCHEMA}", use_barrier, profile
        )
        try:
            with (
                slots.acquire(spark, ranks, profile, exclusive, use_barrier),
                small_batches(spark, job.specs[0]),
                retries.watch_hosts(spark, tag, ranks),
            ):
                # Spark retries where a shuffle follows: it never repeats a barrier stage whose result it wants at once.
                tasks = tasks.localCheckpoint() if failures and use_barrier else tasks
                # In as many parts as the driver takes one after the other.
                parts = tasks.repartition(1 + returned // RESULT_BYTES)
                with planned_at_once(df):
                    received = parts.toLocalIterator()
                rows = list(received)
        except Exception as error:
            check_not_cancelled()
            if (server and server.expired) or spark_internals.is_cancelled(error, but=tag.name):
                raise
            if server and server.has_lost():
                first = retries.first_error(spark, tag.name) or RankError(PEERS_LOST)
                return _failed(spark, first, [str(first)], failures, ranks, again=True)
            return _failed(spark, error, retries.failures(spark, tag.name), failures, ranks)
        failures = failures + _of_whole_attempts(retries.failures(spark, tag.name))
    return Outcome([blobs.join(row[1:] for row in rows if row["rank"] == rank) for rank in range(ranks)], failures)


def _failed(
    spark: SparkSession, error: Exception, causes: list[str], failures: list[str], ranks: int, again: bool = False
) -> Outcome:
    """The outcome of a job that has failed for these ``causes``, if attempts are left; otherwise raises the error.

    ``again`` says that nothing has repeated the ranks; otherwise Spark has, as often as it may.
    """
    limit = retries.max_attempts(spark)
    incomplete = any(map(retries.incomplete, (*causes, str(error))))
    # Where Spark reports no causes, all attempts but the last one may have had all tasks.
    unknown = [UNKNOWN] * max(1, limit - 1) if incomplete else [retries.cause([str(error)])]
    failures = (failures + (_of_whole_attempts(causes) or unknown))[:limit]
    if lost := retries.hosts_lost(spark, failures, ranks):
        raise _with_causes(RankError(lost), failures[: failures.index(lost) + 1]) from None
    if len(failures) < limit and (again or incomplete or spark_internals.not_repeated(error)):
        return Outcome([], failures)
    raise _with_causes(error, failures) from None


def _of_whole_attempts(causes: list[str]) -> list[str]:
    """The causes of attempts that had all tasks."""
    return [cause for cause in causes if not retries.incomplete(cause)]


def _with_causes(error: Exception, failures: list[str]) -> Exception:
    """The exception to raise for one from Spark: with the cause of each attempt, where there were several."""
    known = from_spark(error) or error
    full = next((text for text in (*failures, str(known)) if is_full(text)), None)
    if full and not isinstance(known, InvalidInputError):  # where Spark writes itself, whose error names the host
        return InvalidInputError(f"A disk is full: {retries.cause([full])}. {REMEDY}")
    if len(failures) < 2 or isinstance(known, (ClusterError, InvalidInputError, SetupError)):
        return known
    causes = "\n".join(f"Attempt {number}: {cause}" for number, cause in enumerate(failures, 1))
    return RankError(f"The fit failed after {len(failures)} attempts ({retries.LIMIT}). {causes}")
