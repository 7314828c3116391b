"""examples/text_classification, on few sentences."""

import re

from tests.integrations.presets import save_classifier
from tests.support.examples import run


def accuracies(printed):
    return dict(re.findall(r"^(\w+): +(0\.\d{4}) accuracy on held-out sentences$", printed, re.MULTILINE))


def test_from_sentences_to_a_saved_pipeline(tmp_path):
    found = accuracies(run("text_classification/train.py", "--rows", "800", str(tmp_path / "model")))
    assert found.keys() == {"LogisticRegression", "network"}
    assert all(float(accuracy) > 0.4 for accuracy in found.values())  # of four classes
    printed = run("text_classification/score.py", "--path", str(tmp_path / "model"), "Draws the shape of an array.")
    assert re.search(
        r"^\|Draws the shape of an array\.\|(keras|numpy|pandas|pyspark) *\|0\.\d{3} +\|$", printed, re.MULTILINE
    )


def test_with_a_preset_of_keras_hub(tmp_path):
    preset = save_classifier(tmp_path / "preset")
    printed = run("text_classification/train.py", "--rows", "40", "--preset", preset, str(tmp_path / "model"))
    assert accuracies(printed).keys() == {"LogisticRegression", "network"}
