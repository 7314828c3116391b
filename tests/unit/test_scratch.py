import signal
import stat
import subprocess
import sys
from pathlib import Path

from cos_ml.scratch import Scratch

LEAVES = """
import os, signal, sys
from cos_ml.scratch import Scratch
scratch = Scratch(sys.argv[1])
open(scratch.path + "/file", "w").close()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_is_the_owners_alone_and_goes(tmp_path):
    scratch = Scratch(str(tmp_path))
    assert stat.S_IMODE(Path(scratch.path).stat().st_mode) == 0o700
    scratch.close()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path):
    living = Scratch(str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    another = Scratch(str(tmp_path))
    assert {str(path) for path in tmp_path.iterdir()} == {living.path, another.path}
    another.close()
    living.close()
    assert not list(tmp_path.iterdir())
