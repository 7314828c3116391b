"""A daemon of Spark's Python workers in which a rank is a fork, and not a new process (``tests/support/forks.py``).

Spark runs this module in place of ``pyspark.daemon`` (the setting ``spark.python.daemon.module``). It behaves like that
one, unless the environment of the workers has ``RANKS``: "forked", or "none", where the workers have no ranks and find
TensorFlow imported. See ``tests/support/sessions.py``.
"""

from __future__ import annotations

import os
import sys

RANKS = "COS_ML_TEST_RANKS"

if __name__ == "__main__":
    # Spark puts two archives before the packages that are installed. Each task of an RDD would read the lists of their
    # files anew, in a third of a second, for workers forget what importers know.
    for path in [one for one in sys.path if one.endswith((".zip", ".jar"))]:
        sys.path.remove(path)
        sys.path_importer_cache.pop(path, None)
    if RANKS in os.environ and "pyspark.worker" in sys.argv:  # the workers of data sources have daemons of their own
        port = os.dup(1)  # where the daemon writes its port, and nothing else may be written
        os.dup2(2, 1)
        from tests.support import forks

        forks.import_what_ranks_import()
        if os.environ[RANKS] == "forked":
            from cos_ml.job import child, horovod_env

            horovod_env.JOIN_TIMEOUT = "20"  # Gloo's for all it does: a rank that has lost the others may wait so long
            child.start_process, child.start_forked = forks.ForkedRank, lambda *_: None
        os.dup2(port, 1)
        os.close(port)
    from pyspark.daemon import manager

    manager()
