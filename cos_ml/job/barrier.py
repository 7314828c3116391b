"""Run a function on n ranks in one barrier job: placement, child processes, errors (both sides).

Top to bottom: ``run`` on the driver; ``_task`` in each barrier task, which spools its rows, meets the others and
watches its child; the child itself is ``rank_process.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial

from pyspark.sql import DataFrame

from cos_ml import gpus, spark_internals
from cos_ml.data import blobs
from cos_ml.data.frames import small_batches, spread
from cos_ml.data.parquet import Shards
from cos_ml.errors import InvalidInputError, RankError, from_spark
from cos_ml.job import progress, retries, slots
from cos_ml.job.messages import _lost_each_other, _raise_reported
from cos_ml.job.task import _task
from cos_ml.spec import TrainSpec

__all__ = ["Job", "run"]

RESULT_PART = 64 << 20  # bytes that reach the driver at a time
# It takes a task for done that ended just after another one had failed. Training with the rest would be silently wrong.
IN_PART = "Spark repeated only some of the tasks."
LOST = "The ranks lost each other, and none of them failed by itself: a connection between hosts broke."


@dataclass(frozen=True)
class Job:
    """What all ranks of one barrier job are given: plain values.

    Attributes:
        function: "module:name" of the function that the rank runs; it takes the start message, a function that waits
            until all ranks have met, and a Pulse, and returns named bytes.
        specs: what to train, one after the other on the same rows.
        networks: the archives to begin with, which the specs name by index.
        shards: what the ranks read by themselves; without, they get the rows of the DataFrame.
        progress: where the driver listens, if it does.
        versions: the driver's, which have to be the executors' too; empty where Spark Connect hides the driver.
    """

    function: str
    specs: tuple[TrainSpec, ...]
    networks: tuple[bytes, ...]
    shards: Shards | None = None
    progress: progress.Address | None = None
    versions: dict[str, str | None] = field(default_factory=dict)


# ── driver ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Outcome:
    """What a barrier job came to.

    Attributes:
        results: by rank: what its function returned.
        failures: why earlier attempts failed, as far as Spark tells.
        notes: what a person should know, though all went on.
    """

    results: list[dict[str, bytes]]
    failures: list[str]
    notes: list[str]


def run(df: DataFrame, job: Job, ranks: int) -> Outcome:
    """Run ``job`` on the rows of ``df``, one rank a partition.

    Args:
        df: the narrow DataFrame that the spool takes; with shards, any of a row or none.
        job: what each rank does.
        ranks: how many there are.

    Returns:
        Outcome: what each rank's function returned.

    Raises:
        ClusterError: the cluster can't run so many tasks at once, or its executors have other versions.
        InvalidInputError: a row can't be used.
        RankError: a rank failed; the message has its traceback, or the cause of each attempt that Spark made.
    """
    spark_internals.check_size(df.sparkSession, job.networks)
    lost: list[str] = []
    while True:
        outcome = _attempt(df, job, ranks, lost)
        if not outcome.results:
            lost = outcome.failures
        elif _lost_each_other(outcome.results) and len(lost) + 1 < retries.limit(df.sparkSession):
            lost = [*outcome.failures, LOST]  # no task failed, so Spark does not try again by itself
        else:
            break
    _raise_reported(outcome.results)
    return outcome


def _attempt(df: DataFrame, job: Job, ranks: int, lost: list[str]) -> Outcome:
    """Run the job once, with what Spark retries by itself; ``lost`` is why attempts before it failed.

    Where Spark gave up because it repeated some tasks only, which is no attempt, there are no results.
    """
    profile = gpus.profile(df.sparkSession.conf, job.specs[0].use_gpu)
    slots.check_cluster(df.sparkSession, ranks, profile)
    returned = sum(len(job.networks[spec.network]) for spec in job.specs)
    tasks = spread(df, ranks).mapInArrow(partial(_task, job, ranks), "rank int, " + blobs.SCHEMA, True, profile)
    with retries.tagged(df.sparkSession) as tag:
        try:
            # The shuffle is what lets Spark retry: it never repeats a barrier stage whose result is collected directly.
            # In as many parts as the driver can take one after the other.
            alone = gpus.in_turn(df.sparkSession.conf, job.specs[0].use_gpu)
            with slots.taken(df.sparkSession, ranks, profile, alone), small_batches(df.sparkSession, job.specs[0]):
                rows = list(tasks.repartition(1 + returned // RESULT_PART).toLocalIterator())
        except Exception as error:
            if tag.interrupted:
                raise
            causes = retries.failures(df.sparkSession, tag.name)
            in_part = any(IN_PART in text for text in (*causes, str(error)))
            failures = lost + (_whole(causes) or [LOST] * in_part)  # Spark Connect tells no causes
            if in_part and len(failures) < retries.limit(df.sparkSession):
                return Outcome([], failures, [])
            raise _with_attempts(error, failures) from None
        failures = lost + _whole(retries.failures(df.sparkSession, tag.name))
    results: list[dict[str, bytes]] = [
        blobs.join((row["name"], row["part"], row["data"]) for row in rows if row["rank"] == rank)
        for rank in range(ranks)
    ]
    notes = [note for result in results for note in json.loads(result.get("notes", b"[]"))]
    return Outcome(results, failures, notes)


def _whole(causes: list[str]) -> list[str]:
    """Those of attempts that had all tasks."""
    return [cause for cause in causes if IN_PART not in cause]


def _with_attempts(error: Exception, failures: list[str]) -> Exception:
    """What to raise for an exception of Spark's: with the cause of each attempt, where there were several."""
    known = from_spark(error)
    if len(failures) < 2 or isinstance(known, InvalidInputError):
        return known or error
    causes = "\n".join(f"Attempt {number}: {cause}" for number, cause in enumerate(failures, 1))
    return RankError(f"The fit failed {len(failures)} times, which is {retries.LIMIT}. {causes}")


# ── barrier task ──────────────────────────────────────────────────────────────────────────────────────────────────────
