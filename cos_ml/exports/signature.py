"""What an exported file takes and returns, and the columns that it stands for (driver side)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cos_ml.data.columns import Column
from cos_ml.errors import ExportError
from cos_ml.sources.pixels import ImageSpec

__all__ = ["ExportedTensor", "Images", "Source", "named"]


@dataclass(frozen=True)
class ExportedTensor:
    """An input or an output of an exported file.

    Attributes:
        name: its name in the file.
        column: the column of ``transform`` that it stands for.
        dtype: NumPy's name of its element type, or "string".
        shape: its shape, with None for a free dimension, such as the number of rows.
    """

    name: str
    column: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sides = ", ".join("?" if side is None else str(side) for side in self.shape)
        return f"{self.name} {self.dtype}[{sides}]"


@dataclass(frozen=True)
class Images:
    """Image files that an ImageAssembler decodes.

    Attributes:
        files: the column of the files.
        pixels: the column of their pixels.
        spec: the size and type of the pixels.
    """

    files: str
    pixels: str
    spec: ImageSpec


@dataclass(frozen=True)
class Source:
    """An input of the exported file, for one column.

    Attributes:
        name: its name in the file.
        column: the column, of which ``shape`` and ``dtype`` are the input's too.
        images: what the file decodes this input with: then it takes whole image files, as strings.
    """

    name: str
    column: Column
    images: Images | None = None

    def tensor(self, batch: int | None) -> ExportedTensor:
        """The input as it is declared, for so many rows; None for any number."""
        if self.images:
            return ExportedTensor(self.name, self.images.files, "string", (batch,))
        return ExportedTensor(self.name, self.column.name, self.column.dtype, (batch, *self.column.shape))


def named(feeds: Sequence[Sequence[Source]]) -> list[list[Source]]:
    """The sources of each input of a network, with the names that they have in a file: those of their columns.

    Other characters than letters, digits and "_" become "_", as TensorFlow itself replaces them.

    Raises:
        ExportError: two columns would have the same name.
    """
    found = [[replace(one, name=_name(one)) for one in sources] for sources in feeds]
    columns = {(one.name, one.tensor(None).column) for sources in found for one in sources}
    for name, count in Counter(name for name, _ in columns).items():
        if count > 1:
            same = sorted(column for other, column in columns if other == name)
            raise ExportError(f"The columns {same} would be inputs of the same name {name!r}: rename one.")
    return found


def _name(source: Source) -> str:
    name = re.sub(r"\W", "_", source.tensor(None).column, flags=re.ASCII)
    return name if re.match("[A-Za-z]", name) else f"arg_{name}"
