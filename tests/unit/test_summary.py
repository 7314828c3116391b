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


def test_a_history_by_steps():
    """Ends of epochs after steps 10 and 15, the last one partial; validations after 4, 8 and 12."""
    nan = float("nan")
    history = {"step": [4, 8, 10, 12, 15], "loss": [5.0, 4.0, 3.0, 2.0, 1.0], "rate": [nan, nan, 0.1, nan, 0.1]}
    summary = TrainingSummary(
        history=history, rows=80, validationRows=0, steps=10, ranks=[{}], seconds=[{}], epochSeconds=[1.0, 1.0],
        logs=[""], totalSteps=15,
    )  # fmt: skip
    assert summary.objectiveHistory == [3.0, 1.0]
    assert str(summary).startswith("2 epochs of 80 rows, 10 steps each (15 in all), on 1 ranks")
    axes = summary.plot().axes
    assert [one.get_xlabel() for one in axes] == ["step", "step"]
    assert list(axes[0].lines[0].get_xdata()) == history["step"]

    class Session:
        def createDataFrame(self, rows, schema):
            return rows, schema

    rows, schema = summary.toDataFrame(Session())
    assert schema == "epoch int, step long, `loss` double, `rate` double"
    assert [row[:3] for row in rows] == [(1, 4, 5.0), (1, 8, 4.0), (1, 10, 3.0), (2, 12, 2.0), (2, 15, 1.0)]
