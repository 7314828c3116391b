"""Rows, networks and summaries as HTML for notebooks, without JavaScript (driver side)."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cos_ml.data.frames import check_not_streaming
from cos_ml.data.names import fold, is_case_sensitive
from cos_ml.errors import InvalidInputError, ParamTypeError, SetupError
from cos_ml.network.keras_import import import_keras
from cos_ml.thumbnails import Picture, pictures

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from cos_ml.summary import TrainingSummary

__all__ = ["Html", "model_html", "show", "show_network", "summary_html", "values_html"]

MAX_TEXT = 60  # characters of a cell
MAX_VALUES = 4  # numbers of a Vector or array
GRAY = "#808080"  # readable on white and on black

# Every color is the notebook's own, or in between: one table for light and dark. Some notebooks drop <style> elements.
TABLE = "border-collapse:collapse;font-size:13px;margin:0"
CELL = "text-align:left;padding:4px 12px;vertical-align:middle;border:0;border-bottom:1px solid rgba(128,128,128,.25)"
HEAD = f"{CELL};border-bottom:1px solid rgba(128,128,128,.8);font-weight:600;white-space:nowrap"
WRONG = "color:#e0434b;font-weight:600;white-space:nowrap"
FAINT = "opacity:.7;font-size:12px;margin:4px 0"


class Html:
    """What a notebook shows as HTML, and a console as text."""

    def __init__(self, markup: str, text: str) -> None:
        self._markup, self._text = markup, text

    def _repr_html_(self) -> str:
        return self._markup

    def __repr__(self) -> str:
        return self._text


@dataclass(frozen=True)
class Cell:
    """A cell of a table, as text and as HTML."""

    text: str
    markup: str
    style: str = ""


def show(
    df: DataFrame,
    n: int = 20,
    *,
    images: Sequence[str] | Mapping[str, Sequence[int] | None] | None = None,
    label: str | None = None,
    predictions: Sequence[str] | None = None,
) -> Html:
    """Show the first rows of a DataFrame: thumbnails of images, and predictions beside labels, wrong ones marked.

    Columns of images are recognized: files (JPEG, PNG, ...), the columns of ImageAssembler, of the format "lmdb" and
    of Spark's format "image", nested arrays of height and width, or of height, width and channels, and Vectors, arrays
    and bytes without names whose number of values is that of a square image of 8 x 8 or more.

    Args:
        df: the rows; only ``n`` of them are computed.
        n: number of rows (>= 1).
        images: names of the columns to show as images, or a dict with their shapes, as ``{"pixels": (32, 48, 3)}``; an
            empty list shows none.
        label: column of labels. Default: "label", if there is one.
        predictions: columns of predicted classes. Default: those whose name ends with "prediction", "predictedLabel".

    Returns:
        Html: the table, for a notebook or a console.

    Raises:
        InvalidInputError: a column is missing, or has no images; ``n`` is not an integer >= 1; ``df`` is a stream.
        SetupError: Pillow is not installed, and ``images`` names columns.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise InvalidInputError(f"n: expected an integer >= 1, received {n!r}.")
    check_not_streaming(df, "show")
    names = [field.name for field in df.schema.fields]
    index_of = _finder(names, is_case_sensitive(df))
    wanted = None if images is None else {index_of(name): _shape_of(images, name) for name in images}
    labels = [index_of(label)] if label is not None else [at for at, name in enumerate(names) if name == "label"]
    guessed = [at for at, name in enumerate(names) if name.lower().endswith(("prediction", "predictedlabel"))]
    predicted = guessed if predictions is None else [index_of(name) for name in predictions]
    predicted = [at for at in predicted if not fold(names[at]).endswith("rawprediction")]
    rows = [tuple(row) for row in df.limit(int(n)).collect()]
    thumbnails = pictures(df.schema, rows, wanted)
    columns = {at: _cells(df.schema.fields[at], [row[at] for row in rows]) for at in range(len(names))}
    columns |= {at: [_picture_cell(one) for one in found] for at, found in thumbnails.items()}
    wrong = _mark(df.schema.fields, rows, labels[:1], predicted, columns)
    order = list(dict.fromkeys([*thumbnails, *labels[:1], *predicted, *range(len(names))]))
    caption = f"{len(rows)} row{'s' * (len(rows) != 1)}"
    caption += "".join(f", {number} wrong in {names[at]}" for at, number in wrong.items())
    return _table([names[at] for at in order], list(zip(*(columns[at] for at in order), strict=True)), caption)


def show_network(model: Any) -> Html:
    """Show the layers of a network: name, type, shape of the output, number of parameters, and which are frozen.

    Args:
        model: a ``keras.Model``, a DeepNetModel, or a DeepNetEstimator, whose ``frozenLayers`` are marked too.

    Raises:
        InvalidInputError: ``model`` is none of these, or its network is not set.
    """
    network, frozen = _network_of(model)
    rows, total, fixed = [], 0, 0
    for name, depth, layer, is_frozen in _walk(network, frozen):
        own = not getattr(layer, "layers", None)  # the weights of a model inside are those of its layers
        rows.append(_layer_cells(name, depth, layer, is_frozen))
        total += _parameters(layer.weights) if own else 0
        fixed += _parameters(layer.weights if is_frozen else layer.non_trainable_weights) if own else 0
    total = max(total, _parameters(network.weights))  # of a subclassed model, whose own weights are in no layer
    caption = f"{network.name}: {total:,} parameters"
    caption += f", of which {fixed:,} are frozen or statistics" if fixed else ""
    return _table(["layer", "type", "output", "parameters", ""], rows, caption)


def model_html(model: Any) -> str:
    """A DeepNetModel in a notebook: its ``repr``, and its layers."""
    found = f'<p style="margin:4px 0"><b>{html.escape(repr(model))}</b></p>'
    return found + (show_network(model)._repr_html_() if model.isSet("model") else "")


def summary_html(summary: TrainingSummary, history: Mapping[str, Sequence[float]]) -> str:
    """A TrainingSummary in a notebook: the curves, the values at the end, and where and how it ran."""
    curves = {name: values for name, values in history.items() if len(values)}
    names = [name for name in curves if not name.startswith("val_")]
    names += [name for name in curves if name.startswith("val_") and name.removeprefix("val_") not in names]
    held = [name for name in names if curves.get(f"val_{name}")]
    headers = ["metric", "training", *(["validation"] if held else [])]
    rows = [
        [_cell(name), *(_cell(_number(curves[key][-1]) if key in curves else "") for key in (name, f"val_{name}"))]
        for name in names
    ]
    last = _table(headers, [row[: len(headers)] for row in rows], "at the end")._repr_html_()
    facts = "".join(f'<p style="{FAINT}">{html.escape(line)}</p>' for line in str(summary).splitlines())
    notes = "".join(f'<p style="{FAINT}">{html.escape(str(note))}</p>' for note in summary.notes)
    return f"<div>{_curves(summary)}{last}{facts}{notes}</div>"


def values_html(values: Mapping[str, Any]) -> str:
    """What ``evaluate`` returns, in a notebook."""
    rows = [[_cell(str(name)), _cell(_abbreviated(value))] for name, value in values.items()]
    return _table(["metric", "value"], rows, "")._repr_html_()


def _finder(names: Sequence[str], exact: bool) -> Any:
    """A function from the name of a column, as Spark resolves it, to its index."""

    def index_of(name: Any) -> int:
        key = fold(name.strip("`"), exact) if isinstance(name, str) else None
        found = [at for at, one in enumerate(names) if fold(one, exact) == key]
        if len(found) != 1:
            problem = f"several columns are named {name!r}" if found else f"there is no column {name!r}"
            raise InvalidInputError(f"show(): {problem} in {list(names)}.")
        return found[0]

    return index_of


def _shape_of(images: Any, name: str) -> Sequence[int] | None:
    shape = images.get(name) if isinstance(images, Mapping) else None
    if shape is not None and not (len(shape) in (2, 3) and all(isinstance(side, int) and side > 0 for side in shape)):
        raise InvalidInputError(
            f"images: expected (height, width) or (height, width, channels) for column {name!r}, received {shape!r}."
        )
    return shape


def _cell(text: str, style: str = "") -> Cell:
    return Cell(text, html.escape(text), style)


def _picture_cell(picture: Picture | None) -> Cell:
    return _cell("no image", FAINT) if picture is None else Cell(str(picture), picture.html())


def _cells(field: Any, values: Sequence[Any]) -> list[Cell]:
    """Cells of values; a class that has a name is shown with it."""
    names = _class_names(field)
    cells = []
    for value in values:
        text, index = _abbreviated(value), _index(value, len(names))
        cells.append(_cell(text if index is None else f"{text} ({_shortened(names[index])})"))
    return cells


def _class_names(field: Any) -> list[str]:
    """The names of the classes of a column, as StringIndexer and DeepNetModel write them."""
    attributes = field.metadata.get("ml_attr", {})
    return list(attributes.get("vals", ())) if attributes.get("type") == "nominal" else []


def _index(value: Any, size: int) -> int | None:
    is_whole = isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
    return int(value) if is_whole and 0 <= value < size else None


def _mark(
    fields: Sequence[Any],
    rows: Sequence[tuple[Any, ...]],
    labels: Sequence[int],
    predicted: Sequence[int],
    columns: dict[int, list[Cell]],
) -> dict[int, int]:
    """Mark the wrong predictions in ``columns``; returns their number, by the index of the column of predictions."""
    wrong: dict[int, int] = {}
    for label in labels:
        names = next((found for at in (label, *predicted) if (found := _class_names(fields[at]))), [])
        actual = [_class_of(row[label], names) for row in rows]
        for at in predicted:
            guessed = [_class_of(row[at], names) for row in rows]
            missing = [row[at] is None or row[at] != row[at] for row in rows]
            fits = (one or type(guess) is type(actual[0]) for one, guess in zip(missing, guessed, strict=True))
            if at == label or None in actual or not all(fits):
                continue  # numbers of a regression are neither right nor wrong
            marks = [one != other for one, other in zip(actual, guessed, strict=True)]
            wrong[at] = sum(marks)
            columns[at] = [
                Cell(f"{one.text} ✗", f"{one.markup} ✗", WRONG) if mark else one
                for one, mark in zip(columns[at], marks, strict=True)
            ]
    return wrong


def _class_of(value: Any, names: Sequence[str]) -> float | str | None:
    """A class as a number, or as its name where classes have names; None for a value that is not a class."""
    if hasattr(value, "toArray") or isinstance(value, (list, tuple)):  # one-hot
        values = np.asarray(value.toArray() if hasattr(value, "toArray") else value)
        one_hot = values.ndim == 1 and values.dtype.kind in "iuf" and sorted(values)[-2:-1] == [0] and values.sum() == 1
        value = int(values.argmax()) if one_hot else None
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, (int, float)) and float(value).is_integer():
        index = _index(value, len(names))
        return float(value) if index is None else names[index]
    return value if isinstance(value, str) else None


def _abbreviated(value: Any) -> str:
    """A value in a few characters."""
    if hasattr(value, "toArray"):
        value = value.toArray()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return _number(value)
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value):,} bytes"
    if isinstance(value, list):
        shown = ", ".join(map(_abbreviated, value[:MAX_VALUES]))
        return _shortened(f"[{shown}{f', … {len(value):,} in all' if len(value) > MAX_VALUES else ''}]")
    return _shortened(str(value))


def _number(value: float) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return str(int(value)) if math.isfinite(value) and abs(value) < 1e15 else f"{value:.4g}"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str) -> Html:
    """A table as HTML, which scrolls sideways where it is too wide, and as text."""
    head = "".join(f'<th style="{HEAD}">{html.escape(name)}</th>' for name in headers)
    cells = [[f'<td style="{CELL};{cell.style}">{cell.markup}</td>' for cell in row] for row in rows]
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    table = f'<table style="{TABLE}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    note = f'<p style="{FAINT}">{html.escape(caption)}</p>' if caption else ""
    lines = [list(headers), *([cell.text for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return Html(f'<div style="overflow-x:auto;max-width:100%">{table}</div>{note}', "\n".join([*text, caption]).strip())


def _network_of(model: Any) -> tuple[Any, list[str]]:
    """The ``keras.Model``, and the names in the Param frozenLayers."""
    keras = import_keras()
    if isinstance(model, keras.Model):
        return model, []
    if not hasattr(model, "getModel"):
        raise ParamTypeError(
            "show_network(): expected a keras.Model, a DeepNetModel or a DeepNetEstimator (a stage of a PipelineModel "
            f"is in its stages), received {type(model).__name__}."
        )
    if not model.isSet("model"):
        raise InvalidInputError("show_network(): Param model is not set: pass a keras.Model to the stage.")
    return model.getModel(), list(model.getFrozenLayers())


def _walk(
    model: Any, frozen: Sequence[str], prefix: str = "", is_frozen: bool = False
) -> Iterator[tuple[str, int, Any, bool]]:
    """Every layer with its name, depth and whether it is frozen; after a model, the layers inside it."""
    for layer in model.layers:
        if prefix and isinstance(layer, import_keras().layers.InputLayer):
            continue
        here = is_frozen or not layer.trainable or layer.name in frozen or prefix + layer.name in frozen
        yield prefix + layer.name, prefix.count("/"), layer, here
        if getattr(layer, "layers", None):
            yield from _walk(layer, frozen, f"{prefix}{layer.name}/", here)


def _layer_cells(name: str, depth: int, layer: Any, is_frozen: bool) -> list[Cell]:
    count = _parameters(layer.weights)
    return [
        Cell(name, html.escape(name), f"padding-left:{12 + 16 * depth}px"),
        _cell(type(layer).__name__),
        _cell(_output_shape(layer)),
        _cell(f"{count:,}" if layer.built else "not built", "font-variant-numeric:tabular-nums"),
        _cell("frozen" if is_frozen and count else "", FAINT),
    ]


def _parameters(weights: Iterable[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in {id(one): one for one in weights}.values())


def _output_shape(layer: Any) -> str:
    """The shape of a layer's output; empty where it is called several times, or never on symbolic tensors."""
    try:
        shapes = [tuple(one.shape[1:]) for one in import_keras().tree.flatten(layer.output)]
    except (AttributeError, RuntimeError, ValueError):
        return ""
    return ", ".join(" × ".join("?" if side is None else str(side) for side in shape) or "1" for shape in shapes)


def _curves(summary: TrainingSummary) -> str:
    """The plot, in colors for light and dark notebooks; empty without matplotlib, or where nothing was trained."""
    try:
        figure = summary.plot()
    except (SetupError, ValueError):
        return ""
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=GRAY)
        for one in (axes.title, axes.xaxis.label, axes.yaxis.label):
            one.set_color(GRAY)
        for spine in axes.spines.values():
            spine.set_edgecolor(GRAY)
        if legend := axes.get_legend():
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color(GRAY)
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=True, dpi=110)
    width = int(figure.get_figwidth() * 80)
    data = base64.b64encode(out.getvalue()).decode()
    alt = html.escape("curves of " + ", ".join(axes.get_title() for axes in figure.axes))
    return f'<img src="data:image/png;base64,{data}" alt="{alt}" style="width:{width}px;max-width:100%;height:auto">'
