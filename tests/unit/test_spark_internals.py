"""Spark has changed what is not its public API: stand-ins lack it, reject it, or return other types."""

import json
import sys
import types

import pandas as pd
import pytest
from py4j.protocol import Py4JError, Py4JNetworkError
from pyspark.errors import IllegalArgumentException
from pyspark.sql import Row
from pyspark.sql import types as T

from cos_ml import cancellation, spark_internals
from cos_ml.data.columns import Column
from cos_ml.errors import ClusterError
from cos_ml.job import barrier, retries, slots
from cos_ml.job.messages import Job
from cos_ml.spec import TrainSpec


class Lacking:
    """An object whose attributes are gone."""


class Rejecting:
    """A JVM object that has none of the methods that are called."""

    def __getattr__(self, name):
        def method(*arguments):
            raise Py4JError(f"An error occurred while calling o1.{name}. Trace: Method {name} does not exist")

        return method


class Returning:
    """A JVM object whose methods return objects of another type."""

    def __getattr__(self, name):
        return lambda *arguments: Returning()


class Late(Returning):
    """A JVM object of which only what its methods return lacks what is asked next."""

    def __getattr__(self, name):
        return lambda *arguments: Rejecting()


CHANGES = [Lacking(), Rejecting(), Returning(), Late()]
changed = pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)


class Settings(dict):
    set, unset = dict.__setitem__, dict.pop


class Session:
    """A session of classic Spark, with what a fit asks of its public API."""

    def __init__(self, jvm=None, **conf):
        self.conf = Settings({name.replace("_", "."): value for name, value in conf.items()})
        self.sparkContext = types.SimpleNamespace(**dict.fromkeys(cancellation.CLASSIC_TAGS, lambda tag: None))
        if jvm is not None:
            self.sparkContext._jsc = self.sparkContext._jvm = self.sparkContext._gateway = jvm


class ConnectSession(Session):
    __module__ = "pyspark.sql.connect.session"


def test_a_session_of_connect_is_known_by_its_module():
    assert spark_internals.is_connect(ConnectSession())
    assert spark_internals.is_connect(type("Derived", (ConnectSession,), {"__module__": "elsewhere"})())
    assert not spark_internals.is_connect(Session())  # whatever is unknown is taken for classic Spark


@pytest.mark.parametrize("writer", [None, Lacking(), types.SimpleNamespace(handleOverwrite=lambda path: None)])
def test_nothing_is_removed_where_connect_s_writer_has_changed(monkeypatch, writer):
    """Its module, its method or the method's arguments are others."""
    module = None if writer is None else types.SimpleNamespace(RemoteMLWriter=writer)
    monkeypatch.setitem(sys.modules, "pyspark.ml.connect.readwrite", module)
    spark_internals.remove_saved(ConnectSession(), "/nowhere")


def test_what_is_saved_is_removed_where_connect_s_writer_is_known(monkeypatch):
    removed = []
    writer = types.SimpleNamespace(handleOverwrite=lambda path, overwrite: removed.append((path, overwrite)))
    monkeypatch.setitem(sys.modules, "pyspark.ml.connect.readwrite", types.SimpleNamespace(RemoteMLWriter=writer))
    spark_internals.remove_saved(ConnectSession(), "/saved")
    assert removed == [("/saved", True)]


@changed
def test_nothing_is_removed_where_the_jvm_has_changed(change):
    spark_internals.remove_saved(types.SimpleNamespace(_jvm=change), "/nowhere")


@changed
def test_a_plan_that_can_not_be_read_is_repartitioned(change):
    assert not spark_internals.fits_barrier(types.SimpleNamespace(sparkSession=Session(), _jdf=change), 2)
    assert not spark_internals.fits_barrier(types.SimpleNamespace(sparkSession=Session()), 2)


class Dataset:
    """An RDD, or a dependency on it, of one partition; ``before`` is the one that it is made of."""

    def __init__(self, before=None):
        self.before = before

    def getNumPartitions(self):
        return 1

    def dependencies(self):
        return types.SimpleNamespace(size=lambda: 0 if self.before is None else 1, apply=lambda _: self)

    def getClass(self):
        return types.SimpleNamespace(getSimpleName=lambda: "OneToOneDependency")

    def rdd(self):
        return self.before


def test_a_lineage_may_be_long():
    dataset = None
    for _ in range(2 * sys.getrecursionlimit()):
        dataset = Dataset(dataset)
    plan = types.SimpleNamespace(nodeName=lambda: "Scan", execute=lambda: dataset)
    query = types.SimpleNamespace(executedPlan=lambda: plan)
    df = types.SimpleNamespace(sparkSession=Session(), _jdf=types.SimpleNamespace(queryExecution=lambda: query))
    assert spark_internals.fits_barrier(df, 1)
    assert not spark_internals.fits_barrier(df, 2)


@changed
def test_a_session_is_taken_to_live_where_spark_does_not_say(change):
    assert not spark_internals.has_ended(Session(change))
    assert not spark_internals.has_ended(Session())
    assert not spark_internals.has_ended(ConnectSession())


@pytest.mark.parametrize("error", [Py4JNetworkError("Answer from Java side is empty"), ConnectionRefusedError()])
def test_a_session_has_ended_where_nobody_answers(error):
    class Gone:
        def sc(self):
            raise error

    assert spark_internals.has_ended(Session(Gone()))


def test_plans_of_connect_are_hidden():
    assert not spark_internals.fits_barrier(types.SimpleNamespace(sparkSession=ConnectSession()), 2)


@pytest.mark.parametrize("converter", [None, lambda: None, lambda kind: lambda column: list(column)])
def test_a_spark_that_converts_columns_of_arrays_is_known(monkeypatch, converter):
    """Its converter is gone, takes other arguments, or makes lists."""
    import pyspark.sql.pandas.types as module

    if converter is None:
        monkeypatch.delattr(module, "_create_converter_from_pandas")
    else:
        monkeypatch.setattr(module, "_create_converter_from_pandas", converter)
    assert not spark_internals.passes_unchanged(pd.Series([[1.0]]))


@changed
@pytest.mark.parametrize("profile", [None, types.SimpleNamespace(), types.SimpleNamespace(_java_resource_profile=None)])
def test_where_slots_can_not_be_counted_spark_decides(change, profile):
    session = Session(change, spark_master="spark://host:7077")
    assert spark_internals.max_concurrent_tasks(session, profile) is None
    assert spark_internals.max_concurrent_tasks(Session(), profile) is None
    assert spark_internals.count_executors(session) is spark_internals.count_executors(Session()) is None
    slots.check_cluster(session, 1000, profile)


def context_with(manager=None, **methods):
    """A SparkContext's JVM side with these methods."""
    default = types.SimpleNamespace(defaultResourceProfile=lambda: "default", addResourceProfile=lambda profile: None)
    scala = types.SimpleNamespace(resourceProfileManager=lambda: manager or default, **methods)
    return types.SimpleNamespace(sc=lambda: scala)


def test_slots_are_counted_for_the_profile_of_the_tasks():
    session = Session(context_with(maxNumConcurrentTasks={"default": 4, "gpu": 2}.get))
    assert spark_internals.max_concurrent_tasks(session) == 4
    profile = types.SimpleNamespace(_java_resource_profile="gpu")
    assert spark_internals.max_concurrent_tasks(session, profile) == 2


class Py4JJavaError(Py4JError):
    java_exception = types.SimpleNamespace(getMessage=lambda: "TaskResourceProfiles are only supported for Yarn.\n at")


@pytest.mark.parametrize(
    "error",
    [
        Py4JJavaError("An error occurred while calling o1.addResourceProfile.\n..."),
        IllegalArgumentException("TaskResourceProfiles are only supported for Yarn.\n at"),
    ],
)
def test_a_cluster_that_can_not_schedule_a_single_stage_on_gpus(error):
    """PySpark makes its own of some of the JVM's exceptions."""

    def reject(profile):
        raise error

    session = Session(context_with(types.SimpleNamespace(addResourceProfile=reject)))
    with pytest.raises(ClusterError, match=r"GPUs: TaskResourceProfiles .* for Yarn\. Give .*task\.resource\.gpu"):
        spark_internals.max_concurrent_tasks(session, types.SimpleNamespace(_java_resource_profile=None))


@changed
def test_failures_that_can_not_be_read_are_unknown(change):
    assert spark_internals.stage_failures(Session(change), "tag") == []
    assert spark_internals.stage_failures(Session(), "tag") == []
    assert spark_internals.stage_failures(ConnectSession(), "tag") == []


class Sequence(list):
    """A Scala sequence."""

    def size(self):
        return len(self)

    def apply(self, index):
        return self[index]


@changed
def test_slots_on_other_hosts_that_can_not_be_counted_are_none(change):
    assert spark_internals.slots_elsewhere(Session(change), ["a"]) == 0


def test_slots_on_other_hosts():
    executors = [("driver", "a:1", 0), ("0", "a:2", 1), ("1", "[fd77::2]:3", 2), ("2", "10.0.0.3:4", 4)]
    known = Sequence(
        types.SimpleNamespace(
            id=lambda one=one: one[0], hostPort=lambda one=one: one[1], maxTasks=lambda one=one: one[2]
        )
        for one in executors
    )
    store = types.SimpleNamespace(executorList=lambda active: known)
    session = Session(context_with(statusStore=lambda: store))
    assert spark_internals.slots_elsewhere(session, []) == 7
    assert spark_internals.slots_elsewhere(session, ["fd77::2"]) == 5
    assert spark_internals.slots_elsewhere(session, ["a", "10.0.0.3"]) == 2


def option(value):
    """A Scala option."""
    return types.SimpleNamespace(isDefined=lambda: value is not None, get=lambda: value)


def status_store(*attempts):
    """A session whose one stage had these attempts: (reason, [(status of a task, its error), ...])."""

    def attempt(number, reason):
        return types.SimpleNamespace(attemptId=lambda: number, failureReason=lambda: option(reason))

    def tasks(stage, number, most):
        found = attempts[number][1]
        return Sequence(
            types.SimpleNamespace(status=lambda status=status: status, errorMessage=lambda text=text: option(text))
            for status, text in found
        )

    store = types.SimpleNamespace(
        job=lambda job: types.SimpleNamespace(stageIds=lambda: Sequence([7])),
        stageData=lambda *arguments: Sequence(attempt(number, reason) for number, (reason, _) in enumerate(attempts)),
        taskList=tasks,
    )
    tracker = types.SimpleNamespace(getJobIdsForTag=lambda tag: [0])
    jvm = Returning()  # for an empty list, and an empty array
    session = Session(context_with(statusTracker=lambda: tracker, statusStore=lambda: store, listenerBus=Lacking))
    session.sparkContext._jvm = session.sparkContext._gateway = types.SimpleNamespace(
        new_array=lambda kind, size: [], double=None, java=types.SimpleNamespace(util=jvm)
    )
    return session


def test_the_errors_of_an_attempt_come_most_informative_first():
    killed = ("KILLED", "Stage cancelled because of another task")
    session = status_store(
        ("stage failed", [killed, ("KILLED", "worker lost"), ("FAILED", "rank died"), ("SUCCESS", None)]),
        ("executor lost", []),
        (None, []),
    )
    assert spark_internals.stage_failures(session, "tag") == [
        ["rank died", "worker lost", "stage failed"],
        ["executor lost"],
    ]


def test_errors_of_another_type_are_text():
    """So that whoever reads them can't fail."""
    session = status_store((Lacking(), [("FAILED", Lacking())]))
    assert all(isinstance(text, str) for text in spark_internals.stage_failures(session, "tag")[0])
    assert len(retries.failures(session, "tag")) == 1


class Frame:
    """A DataFrame of which a barrier job makes the rows that one rank returned."""

    def __init__(self, spark):
        self.sparkSession = spark
        self.schema = T.StructType()

    def __getattr__(self, name):
        return lambda *arguments: self

    def toLocalIterator(self):
        return iter([Row(rank=0, name="0/network", part=0, data=b"trained")])


@changed
def test_a_trained_model_survives_whatever_spark_does_not_answer(monkeypatch, change):
    """Of a fit whose ranks have succeeded, the causes of earlier attempts are unknown, and nothing else is lost."""
    monkeypatch.setattr(barrier, "repartition_to_ranks", lambda df, ranks: df)
    spec = TrainSpec(inputs=(Column("x", "x0", (1,)),), labels=())
    session = Session(change, spark_master="spark://host:7077")
    outcome = barrier.run(Frame(session), Job("", (spec,), (b"network",)), 1)
    assert outcome.results == [{"0/network": b"trained"}]
    assert outcome.failures == []
    assert json.dumps(outcome.notes) == "[]"


@changed
def test_without_sparks_operator_a_udf_is_an_ordinary_column(change):
    class Planned:
        """A DataFrame whose plan Spark does not show any more."""

        sparkSession, _jdf = Session(change), change

        def __init__(self, *_):
            pass

        def withColumn(self, *_):
            return self

    Planned.sparkSession._jvm = Planned.sparkSession._jsparkSession = change
    assert spark_internals.evaluated_once(Planned(), "scored", None) is None


@changed
def test_without_its_file_a_broadcast_is_kept(change):
    assert spark_internals.broadcast_file(change) is None
    assert spark_internals.is_alive(change) in (True, False)


def test_the_value_of_a_broadcast_is_not_kept():
    known = types.SimpleNamespace(value=b"a", _value=b"a", _path="file")
    assert spark_internals.broadcast_value(known) == b"a"
    assert not hasattr(known, "_value")
    assert spark_internals.broadcast_value(types.SimpleNamespace(value=b"a")) == b"a"
