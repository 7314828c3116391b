"""Every use of Spark that is not its public API (driver side).

Spark may change any of it in a minor release. Each function therefore documents what it returns for "unknown", which
its callers can live with. ``docs/architecture.md`` lists them. The hooks by which Spark ML is extended (``_fit``,
``_set``, ``_input_kwargs`` and so on) are not among them: subclasses are meant to use those.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.types import ArrayType, DoubleType

from cos_ml.errors import ClusterError

if TYPE_CHECKING:
    from pyspark import SparkContext
try:
    from py4j.protocol import Py4JError, Py4JNetworkError
except ImportError:  # as with pyspark-client, for Spark Connect alone
    Py4JError = Py4JNetworkError = AttributeError

__all__ = [
    "broadcast_file", "broadcast_value", "collect_garbage", "count_executors", "evaluated_once",
    "fits_barrier", "has_ended", "has_exchange", "is_alive", "is_cancelled", "is_connect", "max_concurrent_tasks",
    "not_repeated", "passes_unchanged", "remove_saved", "running_tasks", "slots_elsewhere", "stage_failures",
]  # fmt: skip

CHANGED = (AttributeError, TypeError, Py4JError)  # raised by calls that Spark no longer has
LISTENER_TIME = 10_000  # milliseconds that Spark may take to record what has happened
MAX_TASKS = 10_000  # per stage, whose errors are read
KILLED_WITH_STAGE = "Stage cancelled"  # the error of tasks that were killed because another one failed


def is_connect(spark: SparkSession) -> bool:
    """Whether ``spark`` reaches its driver over Spark Connect. Unknown: False."""
    return any(kind.__module__.startswith("pyspark.sql.connect") for kind in type(spark).__mro__)


def has_ended(spark: SparkSession) -> bool:
    """Whether the session has been stopped, or its JVM has ended. Unknown: False."""
    try:
        if is_connect(spark):
            return spark.is_stopped is True  # type: ignore[attr-defined]
        context = spark.sparkContext._jsc
        return context is None or context.sc().isStopped() is True
    except (OSError, Py4JNetworkError):  # nobody answers
        return True
    except CHANGED:
        return False


def remove_saved(spark: SparkSession, path: str) -> None:
    """Remove what is saved at ``path``. Unknown: nothing; what writes there next reports that it exists."""
    with contextlib.suppress(ImportError, *CHANGED):
        if is_connect(spark):
            from pyspark.ml.connect.readwrite import RemoteMLWriter

            RemoteMLWriter.handleOverwrite(path, True)
        else:
            overwrite = spark._jvm.org.apache.spark.ml.util.FileSystemOverwrite()  # type: ignore[union-attr]
            overwrite.handleOverwrite(path, True, spark._jsparkSession)


def fits_barrier(df: DataFrame, partitions: int) -> bool:
    """Whether Spark can run ``df`` as a barrier stage of that many tasks without a shuffle before it. Unknown: False.

    Spark refuses a barrier stage if an earlier step has another number of partitions, as after a coalesce or a union.
    """
    if is_connect(df.sparkSession):
        return False
    try:
        plan = df._jdf.queryExecution().executedPlan()
        if "Adaptive" in plan.nodeName() and _has_exchange(plan.initialPlan()):
            return False  # asking it for its partitions would run the shuffles
        return all(rdd.getNumPartitions() == partitions for rdd in _stage(plan.execute()))
    except CHANGED:
        return False


def has_exchange(df: DataFrame) -> bool:
    """Whether ``df`` has a shuffle or a broadcast that Spark has not yet done. Unknown: True."""
    try:
        plan = df._jdf.queryExecution().executedPlan()
        return _has_exchange(plan.initialPlan() if "Adaptive" in plan.nodeName() else plan)
    except CHANGED:
        return True


def _has_exchange(plan: Any) -> bool:
    """Whether a physical plan has a shuffle or a broadcast; one behind a cache is done already."""
    return "Exchange" in plan.nodeName() or any(map(_has_exchange, _elements(plan.children())))


def _stage(rdd: Any) -> Iterator[Any]:
    """An RDD and those before it, back to the last shuffle; not recursive, as a lineage can be long."""
    pending = [rdd]
    while pending:
        rdd = pending.pop()
        yield rdd
        dependencies = list(_elements(rdd.dependencies()))
        pending += [one.rdd() for one in dependencies if "Shuffle" not in one.getClass().getSimpleName()]


def evaluated_once(df: DataFrame, name: str, udf: Column) -> DataFrame | None:
    """``df`` with the column ``name``, a UDF that is computed once for each row, whatever follows.

    Spark pushes a filter on a column below it, and then computes a UDF for the filter and for what passes it. So the
    plan has the operator that Spark's optimizer makes of a UDF, from the start: filters on its result stay above it,
    all others and limits pass below it. Unknown, or with Connect: None.
    """
    if is_connect(df.sparkSession):
        return None
    out = df.withColumn(name, udf)
    try:
        jvm: Any = df.sparkSession._jvm
        project = out._jdf.queryExecution().analyzed()
        alias = project.projectList().last()
        call = alias.child()
        results = (jvm.org.apache.spark.api.python.PythonUtils.toSeq([one]) for one in (call, alias.toAttribute()))
        operator = jvm.org.apache.spark.sql.catalyst.plans.logical.ArrowEvalPython
        plan = operator(*results, project.child(), call.evalType())
        made: Any = type(df)
        return made(
            jvm.org.apache.spark.sql.classic.Dataset.ofRows(df.sparkSession._jsparkSession, plan), df.sparkSession
        )
    except (*CHANGED, PySparkException):
        return None


def broadcast_file(broadcast: Any) -> tuple[Path, Any] | None:
    """The driver's file of a broadcast, and a weak reference to what the JVM has of it. Unknown: None."""
    try:
        jvm = broadcast._sc._jvm
        return Path(broadcast._path), jvm.java.lang.ref.WeakReference(broadcast._jbroadcast)
    except CHANGED:
        return None


def is_alive(reference: Any) -> bool:
    """Whether the JVM still has what ``reference`` of ``broadcast_file`` refers to. Unknown, or it has ended: False."""
    try:
        return not reference.refersTo(None)
    except Exception:  # Py4J raises errors of sockets, too, where the JVM has ended
        return False


def collect_garbage(context: SparkContext) -> None:
    """Let the JVM find out what nothing refers to any more. Unknown: nothing."""
    with contextlib.suppress(*CHANGED):
        jvm: Any = context._jvm
        jvm.System.gc()


def broadcast_value(broadcast: Any) -> Any:
    """The value of a broadcast, of which PySpark would keep a copy in this process. Unknown: it keeps it."""
    value = broadcast.value
    if getattr(broadcast, "_path", None):  # from which it can be read again
        vars(broadcast).pop("_value", None)
    return value


def passes_unchanged(column: Any) -> bool:
    """Whether Spark passes on ``column``, a pandas Series of arrays that a UDF returns, unchanged. Unknown: False."""
    try:
        from pyspark.sql.pandas.types import _create_converter_from_pandas as converter

        return converter(ArrayType(DoubleType()))(column) is column
    except (ImportError, *CHANGED):
        return False


def max_concurrent_tasks(spark: SparkSession, profile: Any = None) -> int | None:
    """How many tasks the executors that are registered can run at once; None for unknown.

    Args:
        spark: a session, not of Spark Connect.
        profile: the ResourceProfile of the tasks; None for Spark's default.

    Raises:
        ClusterError: this cluster manager can't give a stage its own profile.
    """
    try:
        context = spark.sparkContext._jsc.sc()
        manager = context.resourceProfileManager()
        converted = manager.defaultResourceProfile() if profile is None else profile._java_resource_profile
        if profile is not None:
            manager.addResourceProfile(converted)
        number = context.maxNumConcurrentTasks(converted)
        return number if isinstance(number, int) else None
    except (*CHANGED, PySparkException) as error:  # PySpark makes its own of some of the JVM's exceptions
        exception = getattr(error, "java_exception", None)
        if profile is None or not (exception or isinstance(error, PySparkException)):
            return None
        reason = exception.getMessage() if exception else error  # Py4J's own message omits it
        reason = str(reason).split("\n")[0].rstrip(".")
        raise ClusterError(
            f"useGpu=True for the training alone, but this cluster can't schedule a single stage on GPUs: {reason}. "
            "Give every task a GPU: --conf spark.task.resource.gpu.amount=1."
        ) from error


def count_executors(spark: SparkSession) -> int | None:
    """How many executors have registered; None for unknown.

    Args:
        spark: a session, not of Spark Connect.
    """
    try:
        number = spark.sparkContext._jsc.sc().getExecutorIds().size()
        return number if isinstance(number, int) else None
    except (*CHANGED, PySparkException):
        return None


def slots_elsewhere(spark: SparkSession, hosts: Collection[str]) -> int:
    """How many tasks the executors on other hosts than these can run at once. Unknown: 0.

    Args:
        spark: a session, not of Spark Connect.
        hosts: Spark's names of hosts.
    """
    try:
        known = list(_elements(spark.sparkContext._jsc.sc().statusStore().executorList(True)))
        names = {one.id(): one.hostPort().rsplit(":", 1)[0].strip("[]") for one in known}
        return sum(one.maxTasks() for one in known if one.id() != "driver" and names[one.id()] not in hosts)
    except Exception:  # whatever has changed
        return 0


def not_repeated(error: Exception) -> bool:
    """Whether an attempt failed at a barrier stage that Spark never repeats. Unknown: False."""
    return "Could not recover from a failed barrier ResultStage" in str(error)


def stage_failures(spark: SparkSession, tag: str) -> list[list[str]]:
    """The errors of each failed attempt at the stages of jobs with this tag, in order. Unknown: none.

    It is called after the ranks have succeeded, too, so it raises nothing: that would cost the trained model.

    Returns:
        list[list[str]]: for each attempt the errors of its tasks, most informative first, then Spark's own reason.
    """
    if is_connect(spark):
        return []
    try:
        context = spark.sparkContext._jsc.sc()
        with contextlib.suppress(Exception):  # then Spark may not have recorded all
            context.listenerBus().waitUntilEmpty(LISTENER_TIME)
        found: dict[tuple[int, int], list[str]] = {}
        for job in context.statusTracker().getJobIdsForTag(tag):
            for stage in _elements(context.statusStore().job(job).stageIds()):
                found |= _failed_attempts(spark, context.statusStore(), stage)
        return [found[key] for key in sorted(found)]
    except Exception:  # whatever has changed or failed
        return []


def running_tasks(spark: SparkSession, tag: str) -> int:
    """How many tasks of jobs with this tag still run, such as those that are being killed. Unknown: 0."""
    if is_connect(spark):
        return 0
    try:
        context = spark.sparkContext._jsc.sc()
        stages = {
            stage
            for job in context.statusTracker().getJobIdsForTag(tag)
            for stage in _elements(context.statusStore().job(job).stageIds())
        }
        found = [spark.sparkContext.statusTracker().getStageInfo(stage) for stage in stages]
        return sum(one.numActiveTasks for one in found if one is not None)
    except Exception:  # whatever has changed, or the session has ended
        return 0


def is_cancelled(error: Exception, but: str) -> bool:
    """Whether a job has failed because somebody cancelled it, by another tag than ``but``. Unknown: False."""
    return re.search(r"Job \d+ cancelled", str(error)) is not None and but not in str(error)


def _failed_attempts(spark: SparkSession, store: Any, stage: int) -> dict[tuple[int, int], list[str]]:
    """(stage, attempt) -> its errors."""
    jvm: Any = spark.sparkContext._jvm
    gateway: Any = spark.sparkContext._gateway
    quantiles = gateway.new_array(jvm.double, 0)
    found = {}
    for attempt in _elements(store.stageData(stage, False, jvm.java.util.ArrayList(), False, quantiles)):
        if not attempt.failureReason().isDefined():
            continue
        tasks = store.taskList(stage, attempt.attemptId(), MAX_TASKS)
        failed = [one for one in _elements(tasks) if one.errorMessage().isDefined()]
        errors = [(one.status(), one.errorMessage().get()) for one in failed]
        reasons = [text for status, text in errors if status == "FAILED"]
        reasons += [text for status, text in errors if status == "KILLED" and KILLED_WITH_STAGE not in text]
        found[stage, attempt.attemptId()] = [str(text) for text in (*reasons, attempt.failureReason().get())]
    return found


def _elements(sequence: Any) -> Iterator[Any]:
    """The elements of a Scala sequence."""
    return (sequence.apply(index) for index in range(sequence.size()))
