"""Imports of Keras where there is no standard error."""

import subprocess
import sys

import pytest

from tests.support.sessions import ROOT

pytestmark = pytest.mark.once

# What _silent does, without the import of Keras itself, which takes seconds.
PROGRAM = "from cos_ml.network.keras_import import _silent\nwith _silent():\n    print('imported')\n"


@pytest.mark.parametrize(
    "without",
    [
        "import sys; sys.stderr = None",
        "import sys; sys.stderr.close()",
        "import os; os.close(2)",
        "import resource, os; os.closerange(3, 99); resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))",
    ],
    ids=["none", "closed", "descriptor closed", "no more descriptors"],
)
def test_what_is_imported_needs_no_standard_error(without):
    program = f"import tempfile, contextlib\nfrom cos_ml.network import keras_import\n{without}\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert (done.stdout, done.returncode) == ("imported\n", 0)


def test_an_import_that_fails_says_why_though_nobody_reads_it():
    program = "import os\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 2)\n" + PROGRAM.replace(
        "print('imported')", "os.write(2, b'x'); raise ImportError('its own')"
    )
    program = f"try:\n    exec({program!r})\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "its own\n"
