"""Draw README's picture, docs/assets/overview.svg, from a run of README's example: python tools/picture.py."""

from __future__ import annotations

import os
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from tests.support.pages import blocks

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/assets/overview.svg"
LABELS = (0, 3, 6, 8)  # of the rows that are shown
# Readable on white and on black.
INK, NETWORK, GRADIENTS = "#7d8590", "#1a9c8c", "#d9822b"
STYLE = f"text{{font:17px system-ui,sans-serif;fill:{INK}}}.code{{font-family:ui-monospace,monospace}}"


def run_example() -> dict[str, Any]:
    """The names of README's example after a run."""
    names: dict[str, Any] = {}
    folder = os.getcwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for block in blocks(ROOT / "README.md")[:2]:
            exec(block.code, names)
        os.chdir(folder)
        of_each = names["test"].where(f"label in {LABELS}").dropDuplicates(["label"]).orderBy("label")
        names["scored"] = names["fitted"].transform(of_each).collect()
    return names


def picture(scored: list[Any], fitted: Any, **_: Any) -> str:
    """The SVG: rows on the left, ranks in the middle, the same rows with new columns on the right."""
    summary = fitted.stages[0].summary
    parts = [_text(8, 24, "a DataFrame"), _text(250, 24, "Spark tasks: ranks"), _text(492, 24, "with new columns")]
    for index, row in enumerate(scored):
        top = 44 + 64 * index
        rank = 74 + 128 * (index // 2)
        parts += [*_digit(row.features, 8, top), _text(68, top + 31, f"label {row.label}")]
        parts += [_arrow(150, top + 25, 222, rank), _arrow(422, rank, 482, top + 25)]
        parts += [*_strip(row.hidden, 492, top + 5), _text(640, top + 31, f"{row.prediction:.0f}", "code")]
    for rank in range(len(summary.ranks)):
        top = 44 + 128 * rank
        parts.append(f'<rect x="230" y="{top}" width="186" height="60" rx="8" fill="none" stroke="{NETWORK}"/>')
        parts += [_text(246, top + 26, f"rank {rank}"), _text(246, top + 48, "Keras, Horovod")]
    parts.append(_arrow(323, 136, 323, 110, GRADIENTS) + _arrow(323, 136, 323, 166, GRADIENTS))
    parts.append(_text(336, 142, "gradients"))
    parts += [_text(492, 318, "hidden", "code"), _text(612, 318, "prediction", "code")]
    accuracy = summary.history["accuracy"]
    parts += [_curve(accuracy, 230, 262), _text(8, 318, f"{summary.rows:,} rows, {len(accuracy)} epochs")]
    parts.append(_text(250, 318, f"accuracy {accuracy[0]:.2f} to {accuracy[-1]:.2f}"))
    body = "\n".join(parts)
    marker = '<marker id="head" markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto">'
    marker += f'<path d="M0,0L7,3.5L0,7" fill="{INK}"/></marker>'
    label = "Rows of a DataFrame train on two ranks; the trained network adds columns"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 332" role="img" aria-label="{label}">\n'
        f"<style>{STYLE}</style><defs>{marker}</defs>\n{body}\n</svg>\n"
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(text)}</text>'


def _digit(pixels: Any, left: float, top: float) -> list[str]:
    """An image of 8 x 8 pixels, 0 to 1."""
    frame = f'<rect x="{left}" y="{top}" width="50" height="50" rx="4" fill="none" stroke="{INK}" stroke-opacity=".5"/>'
    squares = [
        f'<rect x="{left + 1 + 6 * (index % 8)}" y="{top + 1 + 6 * (index // 8)}" width="6" height="6" fill="{INK}" '
        f'fill-opacity="{value:.2g}"/>'
        for index, value in enumerate(pixels)
        if value
    ]
    return [frame, *squares]


def _strip(values: Any, left: float, top: float) -> list[str]:
    """Numbers as bars from the same floor."""
    largest = max(values) or 1.0
    return [
        f'<rect x="{left + 4 * index}" y="{top + 40 * (1 - value / largest):.1f}" width="3" '
        f'height="{40 * value / largest:.1f}" fill="{NETWORK}"/>'
        for index, value in enumerate(values)
        if value > 0
    ] + [f'<path d="M{left},{top + 40}h{4 * len(values)}" stroke="{NETWORK}" stroke-opacity=".5"/>']


def _curve(values: list[float], left: float, top: float) -> str:
    step = 186 / (len(values) - 1)
    points = " ".join(f"{left + step * index:.1f},{top + 34 * (1 - value):.1f}" for index, value in enumerate(values))
    return f'<polyline points="{points}" fill="none" stroke="{NETWORK}" stroke-width="2.5"/>'


def _arrow(x1: float, y1: float, x2: float, y2: float, color: str = INK) -> str:
    return f'<path d="M{x1},{y1}L{x2},{y2}" stroke="{color}" stroke-width="1.5" marker-end="url(#head)"/>'


if __name__ == "__main__":
    PICTURE.write_text(picture(**run_example()))
