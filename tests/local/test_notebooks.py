"""The notebooks, from top to bottom in kernels of their own."""

import re

import pytest

from tests.support.sessions import FORKED
from tools.run_notebooks import FOLDER, execute

pytestmark = [pytest.mark.processes, pytest.mark.long, pytest.mark.filterwarnings("default")]


# What each notebook is about: the figures that it prints, by name, and the least that each may be.
FIGURES = {
    "1_digits_in_ten_minutes": {"prediction": 0.93, "lr_prediction": 0.93},
    "2_images_with_a_pretrained_backbone": {"with the backbone": 0.7, "after loading": 0.7},
    "3_from_caffeonspark_to_a_saved_pipeline": {"prediction": 0.88, "lr_prediction": 0.88, "'accuracy'": 0.88},
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path):
    outputs = [one for cell in execute(path, **FORKED).cells for one in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")

    def figure(name):
        (found,) = re.findall(rf"(?<!\w){re.escape(name)}:? +(\d\.\d+)", printed)
        return float(found)

    low = {name: found for name, least in FIGURES[path.stem].items() if (found := figure(name)) < least}
    assert not low, printed
    if "backbone" in path.stem:
        assert figure("after loading") == figure("with the backbone")
        assert figure("on pixels") < 0.5
    markup = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    assert re.search(r'<img [^>]*alt="\d+x\d+ image"', markup)  # of display.show
    assert ("curves of loss, accuracy" in markup) == ("backbone" not in path.stem)  # whose network Keras trains alone
