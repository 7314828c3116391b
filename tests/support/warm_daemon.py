"""A daemon of Spark's Python workers in which a rank is a fork, and not a new process (``tests/support/forks.py``).

Spark runs this module in place of ``pyspark.daemon`` (the setting ``spark.python.daemon.module``). It behaves like that
one, unless ``RANKS`` in the environment of the workers is "forked": see ``tests/support/sessions.py``.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

RANKS = "COS_ML_TEST_RANKS"


def gather_by_files() -> None:
    """Let the tasks of a stage's first attempt exchange messages by files: Spark looks once a second if all are there.

    A retry exchanges them as Spark does; it knows itself by what the first attempt has left.
    """
    infos, all_gather = BarrierTaskContext.getTaskInfos, BarrierTaskContext.allGather
    first_attempts: set[int] = set()  # the tasks, by their unique numbers

    def file_of(context: Any, task: int) -> Path:
        return Path(local_folder(), f"pyspark-gather-{os.getppid()}-{context.stageId()}-{task}")

    def get_task_infos(context: Any) -> list[Any]:
        with contextlib.suppress(FileExistsError):
            Path(f"{file_of(context, context.partitionId())}-started").touch(exist_ok=False)
            first_attempts.add(context.taskAttemptId())
        return infos(context)

    def gather(context: Any, message: str = "") -> list[str]:
        if context.taskAttemptId() not in first_attempts:
            return all_gather(context, message)
        own = file_of(context, context.partitionId())
        Path(f"{own}-part").write_text(message)
        os.replace(f"{own}-part", own)
        files = [file_of(context, task) for task in range(len(infos(context)))]
        while not all(file.exists() for file in files):
            time.sleep(0.005)
        return [file.read_text() for file in files]

    BarrierTaskContext.getTaskInfos, BarrierTaskContext.allGather = get_task_infos, gather


if __name__ == "__main__":
    if os.environ.get(RANKS) == "forked":
        port = os.dup(1)  # where the daemon writes its port, and nothing else may be written
        os.dup2(2, 1)
        from tests.support import forks

        forks.import_what_ranks_import()
        from pyspark import BarrierTaskContext

        from cos_ml.data.spool import local_folder
        from cos_ml.job import child, horovod_env

        horovod_env.JOIN_TIMEOUT = "20"  # Gloo's for all it does: a rank that has lost the others may wait that long
        child.start_process, child.start_forked = forks.ForkedRank, lambda *_: None
        gather_by_files()
        os.dup2(port, 1)
        os.close(port)
    from pyspark.daemon import manager

    manager()
