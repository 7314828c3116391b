import sys

import pytest

from cos_ml.errors import SetupError
from cos_ml.summary import TrainingSummary


def summary_of(epochs=3, **more):
    history = {"accuracy": [0.5] * epochs, "loss": [1.0 / (1 + epoch) for epoch in range(epochs)]}
    held = {"val_accuracy": [0.4] * epochs, "val_loss": [0.9] * epochs}
    return TrainingSummary(
        history=history | held | more, rows=1200, validationRows=300, steps=10, ranks=[{"host": "a"}, {"host": "b"}],
        seconds=[{"start": 1.0, "train": 2.0}] * 2, epochSeconds=[0.5] * epochs, logs=["", ""],
    )  # fmt: skip


def test_the_text_is_for_people():
    text = str(summary_of())
    assert text.splitlines()[0] == "3 epochs of 1,200 rows and 300 validation rows, 10 steps each, on 2 ranks"
    assert "loss 0.3333" in text
    assert "start 1.0, train 2.0" in text


@pytest.mark.parametrize("epochs", [1, 30])
def test_a_panel_for_each_metric(tmp_path, epochs):
    figure = summary_of(epochs, mae=[0.1] * epochs).plot(str(tmp_path / "history.png"))
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy", "mae"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 1]
    assert [axes.get_legend() is not None for axes in figure.axes] == [True, True, False]
    assert figure.axes[0].lines[0].get_xdata()[-1] == epochs
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SetupError, match=r"pip install \"cos-ml\[plot\]\""):
        summary_of().plot()
