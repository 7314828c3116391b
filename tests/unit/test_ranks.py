import contextlib
import io
import os
import tempfile
import types
from functools import partial

import pytest

from cos_ml.data import blobs
from cos_ml.data.columns import Column
from cos_ml.errors import RankError
from cos_ml.job import barrier, messages, task, watchdog
from cos_ml.job.placement import RankInfo
from cos_ml.rank import heartbeat
from cos_ml.spec import TrainSpec

ECHO = {"error": b"Traceback ...: Horovod has been shut down. This was caused by an exception on one of the ranks."}


@pytest.mark.parametrize(
    ("results", "lost"),
    [
        ([ECHO, ECHO], True),
        ([ECHO, {"0/summary": b"{}"}], True),  # the other one had just come to its end
        ([ECHO, {"error": b"ValueError: this layer broke"}], False),
        ([ECHO, {"problem": b"column 'label', row 3: is null"}], False),
        ([ECHO, {"failure": b"The loss is NaN"}], False),
        ([{"cluster": b"other versions"}, {}], False),
        ([{}, {}], False),
    ],
)
def test_ranks_that_only_lost_each_other_have_no_reason_of_their_own(results, lost):
    assert messages.lost_each_other(results) == lost


def test_the_wait_for_other_ranks_is_not_a_stall(monkeypatch):
    """One that has been ready for long, because another partition is larger, is not given up when all have met."""
    now = [0.0]
    monkeypatch.setattr(heartbeat, "Listener", partial(watchdog.Listener, timer=lambda: now[0]))
    events, child = os.pipe()
    with os.fdopen(events, "rb") as read, tempfile.TemporaryFile() as results, tempfile.TemporaryFile() as log:
        blobs.write(results, {"network": b"trained"})
        one = object.__new__(child.ChildProcess)
        one.stall_timeout, one.events, one.results, one.log = 40.0, read, results, log
        one.process = types.SimpleNamespace(stdin=io.BytesIO(), wait=lambda: 0, poll=lambda: None)
        one.told, one._stopped = one._told(), lambda: False
        os.write(child, b'{"event": "alive", "done": 0, "phase": "starting", "processor": 1}\n{"event": "ready"}\n')
        assert one.ready()
        now[0] += 10 * watchdog.START
        os.write(child, b'{"event": "joined"}\n')
        os.close(child)
        result = one.train(messages.PeerInfo([], {}, None, "secret"), types.SimpleNamespace(send=None), [])
        assert result["network"] == b"trained"


def test_a_task_without_the_others_does_not_train(monkeypatch):
    """It would, as a fit of one rank on its part of the rows."""
    alone = [types.SimpleNamespace(address="host:1")]
    context = types.SimpleNamespace(getTaskInfos=lambda: alone, partitionId=lambda: 0)
    monkeypatch.setattr(barrier.BarrierTaskContext, "get", lambda: context)
    with pytest.raises(RankError, match="Spark repeated only some of the tasks"):
        next(task.run_task(barrier.Job("", (), ()), 2, []))


def test_one_rank_asks_nobody():
    """Spark's allGather takes up to a second."""
    context = types.SimpleNamespace(partitionId=lambda: 0)  # without an allGather
    here = RankInfo(rank=0, size=1, local_rank=0, local_size=1, cross_rank=0, cross_size=1, host="here")
    spool = types.SimpleNamespace(rows={"train": 3, "validation": 0}, digest={}, skipped=0, shapes={}, dtypes={})
    with messages.wait_for_peers(context, barrier.Job("", (), ()), ["here"], [here], spool, "") as meeting:
        assert [task["rows"]["train"] for task in meeting.tasks] == [3]
        assert meeting.environment == {}
        assert meeting.all_ready(0, True)


def test_tasks_meet_while_their_ranks_import_tensorflow(monkeypatch):
    seen = []

    class Rank(contextlib.AbstractContextManager):
        def __init__(self, job, here, spool):
            seen.append("the rank starts")
            self.here = here

        def __exit__(self, *error):
            seen.append("the rank ends")

        def ready(self):
            seen.append("the rank is ready")
            return True

        def train(self, meeting, reporter, notes):
            return {"network": b"trained"}

    def meet(*arguments):
        seen.append("the tasks meet")
        return messages.PeerInfo([{"problem": False, "rows": {"train": 1}, "shapes": {}, "versions": {}}], {}, None, "")

    context = types.SimpleNamespace(
        getTaskInfos=lambda: [types.SimpleNamespace(address="host:1")], partitionId=lambda: 0
    )
    monkeypatch.setattr(barrier.BarrierTaskContext, "get", lambda: context)
    monkeypatch.setattr(barrier, "ChildProcess", Rank)
    monkeypatch.setattr(barrier, "Spool", lambda spec: None)
    monkeypatch.setattr(barrier, "_fill", lambda spool, batches: "")
    monkeypatch.setattr(barrier, "wait_for_peers", meet)
    monkeypatch.setattr(barrier.checks, "need_of", lambda *arguments, **options: None)
    monkeypatch.setattr(barrier.checks, "resource_warnings", lambda *arguments: [])
    spec = TrainSpec(inputs=(Column("x", "x0", (1,)),), labels=(Column("y", "y0"),))
    (batch, *_) = task.run_task(barrier.Job("", (spec,), (b"network",)), 1, [])
    assert seen == ["the rank starts", "the tasks meet", "the rank is ready", "the rank ends"]
    assert b"trained" in batch.column("data").to_pylist()
