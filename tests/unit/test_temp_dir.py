import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cos_ml.job.temp_dir import TempDir

pytestmark = pytest.mark.once

LEAVES = """
import os, signal, sys
from cos_ml.job.temp_dir import TempDir
temp_dir = TempDir(sys.argv[1])
open(temp_dir.path + "/file", "w").close()
os.kill(os.getpid(), signal.SIGKILL)
"""


LEAVES_A_PROCESS = """
import os, signal, subprocess, sys
from cos_ml.job.temp_dir import TempDir
temp_dir = TempDir(sys.argv[1])
rank = subprocess.Popen(["sh", "-c", "sleep 1000 & wait"], start_new_session=True)  # holds this one's output
temp_dir.kill_group(rank.pid)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_is_the_owner_s_alone_and_removed_on_close(tmp_path):
    temp_dir = TempDir(str(tmp_path))
    assert stat.S_IMODE(Path(temp_dir.path).stat().st_mode) == 0o700
    Path(temp_dir.path, "file").touch()
    temp_dir.close()
    assert not list(tmp_path.iterdir())


def test_it_is_removed_after_a_process_that_is_killed(tmp_path):
    killed = subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    ended = threading.Event()
    while list(tmp_path.iterdir()):  # a failure would never end
        ended.wait(0.01)


def test_what_the_rank_has_forked_is_killed_after_a_process_that_is_killed(tmp_path):
    command = [sys.executable, "-c", LEAVES_A_PROCESS, str(tmp_path)]
    killed = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL  # and so has all that could write to the pipe
