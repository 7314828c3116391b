"""Rows of different lengths, and how they become arrays (every side)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Ragged", "bucket", "cut", "longest"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows that differ in length in one dimension; it stands where an array would if they had the same length.

    Attributes:
        values: the elements of all rows, end to end: an array, or what gives one for a slice.
        offsets: int64 [rows + 1]: where each row starts in ``values``, and where the last one ends.
        dims: the shape of a row, with None for the dimension in which rows differ.
        padding: the number that ``padded`` puts at the end of rows; strings are padded with empty ones.
    """

    values: Any
    offsets: np.ndarray
    dims: tuple[int | None, ...]
    padding: float = 0.0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of all rows: their number, then ``dims``."""
        return (len(self), *self.dims)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self.values.dtype  # type: ignore[no-any-return]

    @property
    def flat_values(self) -> Any:
        """The elements of these rows alone, end to end."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [rows]: how long each row is in the dimension in which rows differ."""
        return np.diff(self.offsets) // math.prod(side for side in self.dims if side is not None)

    def __getitem__(self, rows: Any) -> Ragged:
        """Some of the rows: a slice, a boolean array or an array of indices."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            offsets = self.offsets[start : max(start, stop) + 1]
            return self._with(self.values[offsets[0] : offsets[-1]], np.diff(offsets))
        indices = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        starts, stops = self.offsets[indices], self.offsets[indices + 1]
        # An index array would take eight bytes for each element, and can't read from a file by ranges.
        pieces = [self.values[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        return self._with(np.concatenate(pieces) if pieces else self.values[:0], stops - starts)

    def _with(self, values: Any, sizes: np.ndarray) -> Ragged:
        return Ragged(values, offsets_of(sizes), self.dims, self.padding)

    def padded(self, length: int | None = None) -> np.ndarray:
        """The rows as one array, each padded at its end to ``length``: that of the longest row, but at least 1."""
        length = longest(self) if length is None else length
        varying = self.dims.index(None)
        shape = (len(self), *self.dims[:varying], length, *self.dims[varying + 1 :])
        values, sizes = self.flat_values, np.diff(self.offsets)
        if (sizes == math.prod(shape[1:])).all():  # type: ignore[arg-type]
            return values.reshape(shape)  # type: ignore[no-any-return]
        # A row consists of runs of elements, one for each place in the dimensions before the varying one.
        runs, width = math.prod(shape[1 : varying + 1]), math.prod(shape[varying + 1 :])  # type: ignore[arg-type]
        found = np.full((len(self) * runs, width), b"" if values.dtype == object else self.padding, values.dtype)
        found[np.arange(width) < np.repeat(sizes // runs, runs)[:, None]] = values
        return found.reshape(shape)  # type: ignore[arg-type]

    @staticmethod
    def join(parts: Sequence[Ragged]) -> Ragged:
        """The rows of all ``parts``, one part after the other."""
        values = np.concatenate([part.flat_values for part in parts])
        return parts[0]._with(values, np.concatenate([np.diff(part.offsets) for part in parts]))


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    """int64 [rows + 1]: where rows of these sizes start that lie end to end, and where the last one ends."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def longest(rows: Ragged) -> int:
    """The length of the longest row, but at least 1: few layers work on rows without any elements."""
    return max(int(rows.lengths.max(initial=0)), 1)


def cut(arrays: Mapping[str, Any], rows: Any, lengths: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Some of the rows of ``arrays`` by field, as arrays: rows that differ in length are padded to ``lengths``.

    Args:
        arrays: arrays or Ragged by field.
        rows: a slice, a boolean array or an array of indices.
        lengths: the length to pad to, by field; where a field is missing, that of its longest row.
    """
    chosen = {field: array[rows] for field, array in arrays.items()}
    lengths = lengths or {}
    return {
        field: array.padded(lengths.get(field)) if isinstance(array, Ragged) else array
        for field, array in chosen.items()
    }


def bucket(lengths: Any) -> np.ndarray:
    """Round lengths up to 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: powers of two and the middles between them.

    A compiler that translates a network anew for every length meets few of them, and padding is at most a third of the
    longest row.
    """
    lengths = np.asarray(lengths, np.int64)
    power = 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    middle = power // 4 * 3
    return np.where(lengths < 1, 0, np.where((lengths <= middle) & (power > 2), middle, power))
