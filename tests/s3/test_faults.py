"""S3 away, busy or read-only in mid-fit, and a writer that is killed while it uploads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import s3fs

from cos_ml.errors import InvalidInputError
from cos_ml.rank.checkpoint_store import Checkpoint, CheckpointStore, acquire
from cos_ml.spec import CheckpointConfig
from tests.s3.proxy import AWAY, each
from tests.support import reference
from tests.support.reference import assert_same_weights, estimator
from tests.support.sessions import ROOT, frame, rows_of

SECOND = "checkpoint-auto-000002"
WRITER = """
import sys
import numpy as np
from cos_ml.rank.checkpoint_store import Checkpoint, CheckpointStore
from cos_ml.spec import CheckpointConfig
CheckpointStore(CheckpointConfig(sys.argv[1]), []).write(Checkpoint(2, 0, {}, {"w": np.zeros(int(sys.argv[2]))}))
"""


@pytest.mark.parametrize(("numbers", "killed_at"), [(1000, SECOND), (15 << 20, "partNumber=2")])
def test_a_state_whose_writer_is_killed_is_absent(s3, folder, numbers, killed_at):
    """Of one request, and of several: 120 MB are uploaded in parts of 50."""
    config, found = CheckpointConfig(folder), []
    acquire(config)
    CheckpointStore(config, []).write(Checkpoint(1, 0, {}, {}))

    def kill(method, path):
        if method != "PUT" or killed_at not in path:
            return None
        found.append(CheckpointStore(config, []).newest().epoch)  # a reader, meanwhile
        writer.kill()
        return AWAY

    s3.rules.append(kill)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, folder, str(numbers)], cwd=ROOT)
    assert writer.wait(120) < 0
    s3.rules.clear()
    assert set(found) == {1}
    assert CheckpointStore(config, []).newest().epoch == 1
    CheckpointStore(config, []).write(Checkpoint(2, 0, {}, {"w": np.zeros(numbers)}))
    assert CheckpointStore(config, []).newest().arrays["w"].size == numbers


@pytest.fixture(scope="module")
def rows(spark):
    return frame(spark, [rows_of(*reference.data(100))])


@pytest.fixture(scope="module")
def est():
    return estimator(reference.network(), epochs=3, numTrainWorkers=1)


@pytest.fixture(scope="module")
def undisturbed(est, rows):
    return est.fit(rows)


def test_what_a_busy_store_refuses_is_tried_again(est, rows, undisturbed, s3, folder):
    s3.rules.append(each("PUT", SECOND, 503, times=2))
    model = est.copy({est.checkpointDir: folder}).fit(rows)
    assert model.summary.notes == []
    assert sum(SECOND in path for method, path in s3.requests if method == "PUT") == 3
    assert_same_weights(model.toKeras(), undisturbed.toKeras(), 0)


@pytest.mark.parametrize("status", [AWAY, 503, 403])
def test_what_can_not_be_written_is_noted_and_the_fit_goes_on(est, rows, undisturbed, s3, folder, status):
    est = est.copy({est.checkpointDir: folder})
    s3.rules.append(each("PUT", SECOND, status))
    model = est.fit(rows)
    (note,) = model.summary.notes
    assert note.startswith("The checkpoint after epoch 2, step 0 could not be written: "), note
    assert_same_weights(model.toKeras(), undisturbed.toKeras(), 0)
    names = [path.rsplit("/", 1)[-1] for path in s3fs.S3FileSystem(skip_instance_cache=True).find(folder)]
    assert sorted(names) == [f"checkpoint-auto-{epoch:06d}-000000000" for epoch in (1, 3)] + ["fit.json"]
    again = est.fit(rows)
    assert again.summary.resumedAt == (3, 0)


def test_a_store_that_denies_writes_is_found_before_the_job(est, rows, s3, folder):
    s3.rules.append(each("PUT", "fit.json", 403))
    with pytest.raises(InvalidInputError, match=r"Param checkpointDir: .* can't be used: PermissionError"):
        est.copy({est.checkpointDir: folder}).fit(rows)


def test_ranks_read_on_where_the_store_was_busy(est, rows, undisturbed, s3, folder):
    rows.write.parquet(f"{folder}/rows".replace("s3://", "s3a://"))
    reads = []

    def busy(method, path):
        if method != "GET" or not path.split("?")[0].endswith(".parquet"):
            return None
        reads.append(path)
        return None if len(reads) % 3 else 503

    s3.rules.append(busy)
    assert_same_weights(est.fitParquet(f"{folder}/rows").toKeras(), undisturbed.toKeras(), 1e-6)
    assert len(reads) > 3


def test_a_cache_that_can_not_be_removed_costs_no_fit(est, rows, undisturbed, s3, folder, caplog):
    def deny(method, path):  # once ranks read what Spark has written
        reads = any("/cache/" in path and ".parquet" in path for method, path in s3.requests if method == "GET")
        return 403 if reads and (method == "DELETE" or path.endswith("?delete")) else None

    s3.rules.append(deny)
    model = est.copy({est.feed: "parquet", est.cacheDir: f"{folder}/cache"}).fit(rows)
    assert_same_weights(model.toKeras(), undisturbed.toKeras(), 1e-6)
    (warning,) = [record.message for record in caplog.records if "could not be removed" in record.message]
    assert f"{folder}/cache/cos_ml-" in warning
    assert "PermissionError" in warning
