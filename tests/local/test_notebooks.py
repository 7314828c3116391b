"""The notebooks, from top to bottom in kernels of their own."""

import re

import pytest

from tests.support.sessions import FORKED
from tools.run_notebooks import FOLDER, execute

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path):
    outputs = [one for cell in execute(path, **FORKED).cells for one in cell.get("outputs", ())]
    shares = [float(one) for output in outputs for one in re.findall(r" (0\.\d{4})", output.get("text", ""))]
    assert max(shares) > 0.7
    assert any("<img" in output.get("data", {}).get("text/html", "") for output in outputs)
