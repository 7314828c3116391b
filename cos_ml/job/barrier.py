"""Run a function on n ranks in one barrier job: placement, child processes, errors (both sides).

Top to bottom: ``run`` on the driver; ``_task`` in each barrier task, which spools its rows, meets the others and
watches its child; the child itself is ``rank_process.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import psutil
import pyarrow as pa
from pyspark import BarrierTaskContext
from pyspark.sql import DataFrame

from cos_ml import gpus, spark_internals
from cos_ml.data import blobs
from cos_ml.data.parquet import Shard, Shards
from cos_ml.data.spool import Spool, local_folder, small_batches, spread
from cos_ml.errors import ClusterError, InvalidInputError, RankError, from_spark
from cos_ml.job import preflight, progress, retries, slots
from cos_ml.job.auth import redacted
from cos_ml.job.rendezvous import (
    INTERFACE,
    Place,
    Rendezvous,
    all_ready,
    local_addresses,
    own_address,
    place,
    rank_environment,
)
from cos_ml.job.temp_dir import Scratch
from cos_ml.rank import heartbeat
from cos_ml.spec import TrainSpec

__all__ = ["Job", "run"]

RESULT_PART = 64 << 20  # bytes that reach the driver at a time
LOG_TAIL = 64 << 10  # bytes of a rank's output that are kept
STACK_SIGNAL = signal.SIGUSR1  # a rank then writes the stack of all its threads to its log
STACK_TIME = 1.0  # seconds that it has for that
MESSAGE_TAIL = 30  # lines of it in an exception
HOROVOD_ECHO = "Horovod has been shut down"  # what the other ranks' errors say when one fails
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


def _lost_each_other(results: list[dict[str, bytes]]) -> bool:
    """Whether ranks failed, and each of them only because it lost the others: none has a reason of its own."""
    if any(reason in result for result in results for reason in ("cluster", "problem", "failure")):
        return False
    errors = [result["error"].decode() for result in results if "error" in result]
    return bool(errors) and all(HOROVOD_ECHO in error for error in errors)


def _with_attempts(error: Exception, failures: list[str]) -> Exception:
    """What to raise for an exception of Spark's: with the cause of each attempt, where there were several."""
    known = from_spark(error)
    if len(failures) < 2 or isinstance(known, InvalidInputError):
        return known or error
    causes = "\n".join(f"Attempt {number}: {cause}" for number, cause in enumerate(failures, 1))
    return RankError(f"The fit failed {len(failures)} times, which is {retries.LIMIT}. {causes}")


def _raise_reported(results: list[dict[str, bytes]]) -> None:
    """Raise what the ranks report: bad rows first, then the rank that failed by itself and not because another did."""
    foreign = [result["cluster"].decode() for result in results if "cluster" in result]
    if foreign:
        raise ClusterError(foreign[0])
    problems = [result["problem"].decode() for result in results if "problem" in result]
    if problems:
        raise InvalidInputError(problems[0])
    ended = [result["failure"].decode() for result in results if "failure" in result]
    if ended:
        raise RankError(ended[0])
    failed = {rank: result["error"].decode() for rank, result in enumerate(results) if "error" in result}
    if failed:
        first = min(failed, key=lambda rank: (HOROVOD_ECHO in failed[rank], rank))
        host = results[first].get("host", b"?").decode()
        raise RankError(_message(f"Rank {first} on {host} failed.", failed[first], results[first].get("log", b"")))


def _message(what: str, traceback: str, log: bytes) -> str:
    tail = log.decode(errors="replace").splitlines()[-MESSAGE_TAIL:]
    parts = [what, traceback.strip(), "Its last output:\n" + "\n".join(tail) if tail else ""]
    return "\n".join(part for part in parts if part)


# ── barrier task ──────────────────────────────────────────────────────────────────────────────────────────────────────


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


@dataclass
class Meeting:
    """What the ranks know of each other once all have met.

    Attributes:
        tasks: what each task said, by rank.
        environment: in which ``hvd.init()`` finds the others.
        rendezvous: Horovod's server, in task 0 and where there is more than one rank.
        secret: of the rendezvous, which is to be in no log.
    """

    tasks: list[dict[str, Any]]
    environment: dict[str, str] = field(repr=False)
    rendezvous: Rendezvous | None
    secret: str = field(repr=False)

    def all_ready(self, rank: int, ready: bool) -> bool:
        """Say whether this task's rank can join, and wait until all have said it; returns whether all can."""
        first = self.tasks[0]  # it runs the server
        several = len(self.tasks) > 1
        return all_ready(first["address"], first["port"], self.secret, rank, ready) if several else ready

    def close(self) -> None:
        """Stop the rendezvous server, if it runs here and still does."""
        if self.rendezvous is not None:
            self.rendezvous.close()

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _meet(
    context: BarrierTaskContext, job: Job, hosts: list[str], places: list[Place], spool: Spool | Shard, problem: str
) -> Meeting:
    """Tell the others what this task has, and wait for all: one allGather, which is also the rendezvous for Horovod.

    Spark asks once a second whether all are there. Meanwhile the rank imports TensorFlow.
    """
    several = len(hosts) > 1
    task = context.partitionId()
    with contextlib.ExitStack() as unless_met:
        rendezvous, own = None, ""
        if several:
            own = own_address(hosts, task, job.specs[0].variables.get(INTERFACE))
        if several and task == 0:
            rendezvous = unless_met.enter_context(Rendezvous(own))
        mine = {
            "rank": places[task].rank, "partition": task, "problem": bool(problem),
            "rows": spool.rows, "digest": spool.digest, "skipped": spool.skipped,
            "validation": spool.rows["validation"], "shapes": spool.shapes, "dtypes": spool.dtypes,
            "addresses": list(local_addresses()) if several else [], "port": rendezvous.port if rendezvous else 0,
            "address": own, "secret": rendezvous.secret if rendezvous else "",
            **preflight.facts(),
        }  # fmt: skip
        message = json.dumps(mine)
        told = [json.loads(one) for one in (context.allGather(message) if several else [message])]
        if rendezvous is not None:
            rendezvous.serve(places, [address for other in told for address in other["addresses"]])
        unless_met.pop_all()
    secret = told[0]["secret"]
    server, port = told[0]["address"], told[0]["port"]
    environment = rank_environment(places[task], own, server, port, secret) if several else {}
    told = [{name: value for name, value in other.items() if name != "secret"} for other in told]
    return Meeting(sorted(told, key=lambda other: other["rank"]), environment, rendezvous, secret)


class RankProcess:
    """The child process of one barrier task, which is killed when the task leaves the ``with`` block."""

    def __init__(self, job: Job, here: Place, spool: Spool | Shard) -> None:
        self.here, self.spool, self.stall_timeout = here, spool, job.specs[0].stall_timeout
        self.secret = ""
        self.results, self.networks, self.log = (tempfile.TemporaryFile(dir=local_folder()) for _ in range(3))
        self.scratch = Scratch(local_folder())  # what libraries leave
        blobs.write(self.networks, {str(index): archive for index, archive in enumerate(job.networks)})
        events, events_of_child = os.pipe()
        start = {
            "function": job.function, "specs": [spec.to_json() for spec in job.specs], "place": asdict(here),
            "partition": BarrierTaskContext.get().partitionId(),
            "spool": spool.descriptors(), "shards": job.shards and job.shards.to_plain(),
            "networks": self.networks.fileno(), "results": self.results.fileno(), "events": events_of_child,
        }  # fmt: skip
        inherited = [events_of_child, self.networks.fileno(), self.results.fileno()]
        inherited += [fd for part in spool.descriptors().values() for fd in part.values()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cos_ml.rank"],
            env=_child_environment(job.specs[0], here) | {"TMPDIR": self.scratch.path},
            pass_fds=inherited, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log,
            start_new_session=True,  # so that what it forks can be ended with it
        )  # fmt: skip
        self.scratch.ends(self.process.pid)
        os.close(events_of_child)
        self.events = os.fdopen(events, "rb")
        self.told = self._told()
        self._say(start)

    def ready(self) -> bool:
        """Wait until the rank can meet the others; False where it has failed, and has said how in its result.

        Raises:
            RankError: it died without a word, or does not get on.
        """
        self.listener = heartbeat.Listener(self.stall_timeout, self._stopped)
        if any(event["event"] == "ready" for event in self.told):
            return True
        self.result([])
        return False

    def train(self, meeting: Meeting, reporter: progress.Reporter, notes: list[str]) -> dict[str, bytes]:
        """Let the rank begin, pass on what it reports, and return what it leaves.

        Raises:
            RankError: it died without a word, or does not get on; Spark then tries the whole stage again.
        """
        self.secret = meeting.secret
        self._say({"tasks": meeting.tasks, "environment": meeting.environment})
        self.listener = heartbeat.Listener(self.stall_timeout, self._stopped)  # it has waited for the others until now
        for event in self.told:
            if event["event"] == "note":
                notes = [*notes, event["text"]]
            if event["event"] == "joined":
                meeting.close()  # all ranks are connected: nobody has to be answered any more
            else:
                reporter.send(event)
        return self.result(notes)

    def result(self, notes: list[str]) -> dict[str, bytes]:
        """What the rank has left at its end, with all notes as "notes".

        Raises:
            RankError: it died without a word.
        """
        code = self.process.wait()
        log = self._log()
        result = blobs.read(self.results)
        if code or not result:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            hint = " The host may be out of memory." if code == -signal.SIGKILL else ""
            raise RankError(_message(f"Rank {self.here.rank} on {self.here.host} {how}.{hint}", "", log))
        return result | {"log": log, "notes": json.dumps(notes).encode()}

    def _told(self) -> Iterator[dict[str, Any]]:
        """What the rank reports beside that it lives, until it ends.

        Raises:
            RankError: it does not get on.
        """
        unfinished, poll = b"", select.poll()
        poll.register(self.events, select.POLLIN)
        while True:
            if poll.poll(heartbeat.BEAT * 1000):
                data = os.read(self.events.fileno(), 64 << 10)
                if not data:
                    return
                *lines, unfinished = (unfinished + data).split(b"\n")
                for event in map(json.loads, lines):
                    self.listener.hear(event)
                    if event["event"] != "alive":
                        yield event
            elif self.process.poll() is not None and not poll.poll(0):  # what it has forked holds the other end
                return
            if self.listener.stalled:
                raise self._stalled()

    def _stopped(self) -> bool:
        return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED

    def _stalled(self) -> RankError:
        """The error that says what this rank hangs at, with the stack of all its threads."""
        before = self._log_size()
        stopped = self._stopped()
        if not stopped:
            self.process.send_signal(STACK_SIGNAL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STACK_TIME)  # it goes on; its log gets the stack
        stack = self._log(self._log_size() - before).decode(errors="replace")
        state = "The process is stopped (SIGSTOP)." if stopped else f"Its stack:\n{stack}"
        return RankError(
            f"Rank {self.here.rank} on {self.here.host} made no progress for {self.stall_timeout:g} s (Param "
            f"stallTimeout). It was at: {self.listener.phase}. {state}".strip()
        )

    def _say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead already; its exit status says how

    def _log_size(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def _log(self, tail: int = LOG_TAIL) -> bytes:
        """The last bytes of what it printed; the offset in the file is the rank's, and stays."""
        size = self._log_size()
        return redacted(os.pread(self.log.fileno(), tail, max(0, size - tail)), self.secret)

    def __enter__(self) -> RankProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.scratch.close()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it did not live to read
            self.process.stdin.close()
        for file in (self.events, self.results, self.networks, self.log):
            file.close()
        self.spool.close()


def _child_environment(spec: TrainSpec, here: Place) -> dict[str, str]:
    """This worker's environment, with its import path and quiet TensorFlow; the task's own GPUs and no others."""
    environment = os.environ | spec.variables | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    environment.pop("OMP_NUM_THREADS", None)  # Spark sets it to spark.task.cpus for the Python worker
    assigned = BarrierTaskContext.get().resources().get("gpu")
    addresses = assigned.addresses if assigned else None
    return environment | gpus.environment(spec.use_gpu, addresses, here.local_rank, environment)
