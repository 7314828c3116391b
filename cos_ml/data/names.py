"""Names of columns, resolved as Spark resolves those of its own stages (driver side)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeGuard

from cos_ml.errors import InvalidInputError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql import types as T

__all__ = ["VECTOR_PARTS", "Resolved", "find", "fold", "is_case_sensitive", "last_part", "quoted", "resolve", "taken"]

VECTOR_PARTS = ("indices", "values")  # of the entries that are not 0
PART = r"`(?:[^`]|``)+`|[^`.]+"  # of a name: what stands in backticks may contain dots


@dataclass(frozen=True)
class Resolved:
    """A column of a DataFrame, or a field of one of its structs.

    Attributes:
        path: the exact names of the column, and of the fields within it.
        data_type: its type.
        nullable: whether it may be null; so is a field of a struct that may be.
        metadata: the metadata of the column or the field.
        part: "indices" or "values" for those of a Vector's entries; empty for a whole column.
    """

    path: tuple[str, ...]
    data_type: T.DataType
    nullable: bool
    metadata: dict[str, Any]
    part: str = ""

    @property
    def sql_name(self) -> str:
        """The name of the whole column or field in backticks: Spark reads it whatever characters it has."""
        return ".".join(map(quoted, self.path))

    @property
    def values(self) -> Column:
        """The Spark expression that reads it."""
        from pyspark.sql import functions as F

        return _entries(F.col(self.sql_name), self.part) if self.part else F.col(self.sql_name)


def resolve(df: DataFrame, name: str) -> Resolved:
    """The column that a name means to Spark: ``x`` finds ``X``, ``s.x`` a field of a struct, "`a.b`" a column ``a.b``.

    ``v.indices`` and ``v.values`` are those of the entries of a Vector that are not 0, dense or sparse.

    Upper and lower case differ only with ``spark.sql.caseSensitive``. A name that Spark does not find is taken as it is
    written, so that a column ``a.b`` needs no backticks where there is no ``a``.

    Raises:
        InvalidInputError: there is no such column, or more than one.
    """
    found = find(df, name)
    if found is not None:
        return found
    parts = _parts(name) or ()
    struct = find(df, quoted(parts[0])) if len(parts) > 1 else None
    if struct is not None:
        kind = struct.data_type
        fields = f" has the fields {kind.names}" if _is_struct(kind) else f" is of type {kind.simpleString()}"
        vector = ", not a Vector" if parts[-1] in VECTOR_PARTS else ""
        raise InvalidInputError(f"There is no column {name!r}: {parts[0]!r}{fields}{vector}.")
    raise InvalidInputError(f"There is no column {name!r}. The DataFrame has columns {df.columns}.")


def find(df: DataFrame, name: str) -> Resolved | None:
    """As ``resolve``; None where there is no such column."""
    return _within(df, _parts(name) or (), name) or _within(df, (name,), name) or _of_vector(df, name)


def taken(df: DataFrame, name: str) -> bool:
    """Whether a new column ``name`` would replace one of ``df``, or could not be told from it."""
    return name in df.columns or (fold(name) in map(fold, df.columns) and not is_case_sensitive(df))


def is_case_sensitive(df: DataFrame) -> bool:
    """Whether names that differ only in case are different columns in the session of ``df``."""
    return (df.sparkSession.conf.get("spark.sql.caseSensitive", None) or "false").lower() == "true"


@lru_cache(maxsize=100_000)  # each column of a wide table is compared with all
def fold(name: str, case_sensitive: bool = False) -> str:
    """What is the same for names that Spark takes for one: Java's ``equalsIgnoreCase`` folds each character alone."""
    folded = ((char.upper() if len(char.upper()) == 1 else char).lower()[0] for char in name)
    return name if case_sensitive else "".join(folded)


def last_part(name: str) -> str:
    """The name of the column or field that a path leads to, as ``select`` would name it."""
    return (_parts(name) or (name,))[-1]


def _within(df: DataFrame, parts: Sequence[str], name: str) -> Resolved | None:
    """The column at the path ``parts``, with the names that it has in the schema."""
    kind: Any = df.schema
    path: tuple[str, ...] = ()
    nullable = False
    field = None
    for part in parts:
        if not _is_struct(kind):
            return None
        same = [one for one in kind.fields if fold(one.name) == fold(part)]
        if any(one.name != part for one in same) and is_case_sensitive(df):  # which the JVM knows
            same = [one for one in same if one.name == part]
        if len(same) > 1:
            inside = f" of struct {'.'.join(path)!r}" if path else ""
            raise InvalidInputError(
                f"Column {name!r} is ambiguous: it means each of {[one.name for one in same]}{inside}. Drop or rename "
                f"the others{', or set spark.sql.caseSensitive=true' if len({one.name for one in same}) > 1 else ''}."
            )
        if not same:
            return None
        field = same[0]
        path, kind, nullable = (*path, field.name), field.dataType, nullable or field.nullable
    return None if field is None else Resolved(path, kind, nullable, dict(field.metadata or {}))


def _of_vector(df: DataFrame, name: str) -> Resolved | None:
    """The indices or the values of a column of Vectors."""
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql import types as T

    whole, _, part = name.rpartition(".")
    if whole and fold(part) in VECTOR_PARTS and not is_case_sensitive(df):
        part = fold(part)
    found = find(df, whole) if whole and part in VECTOR_PARTS else None
    if found is None or found.part or not isinstance(found.data_type, VectorUDT):
        return None
    element = T.IntegerType() if part == "indices" else T.DoubleType()
    return replace(found, data_type=T.ArrayType(element, containsNull=False), part=part)


def _entries(vector: Column, part: str) -> Column:
    """The indices or the values of the entries of a Vector that are not 0, so that equal Vectors give the same."""
    from pyspark.sql import functions as F

    plain = F.unwrap_udt(vector)
    values, none = plain["values"], F.array().cast("array<int>")
    every = F.when(F.size(values) > 0, F.sequence(F.lit(0), F.size(values) - 1)).otherwise(none)
    indices = F.when(plain["type"] == 1, every).otherwise(plain["indices"])  # 1 is dense
    wanted = values if part == "values" else indices
    # Spark does not compile filters, and most sparse Vectors have no zeros among their entries.
    kept = F.filter(wanted, lambda _, place: F.get(values, place) != 0)
    return F.when(F.array_contains(values, 0.0), kept).otherwise(wanted)


def _is_struct(kind: T.DataType) -> TypeGuard[T.StructType]:
    return hasattr(kind, "fields")


def quoted(part: str) -> str:
    """The name of one column or field, as Spark reads it whatever it contains."""
    return "`" + part.replace("`", "``") + "`"


def _parts(name: str) -> tuple[str, ...] | None:
    """The parts of a name between its dots, each maybe in backticks; None where Spark could not read it."""
    if not re.fullmatch(rf"(?:{PART})(?:\.(?:{PART}))*", name):
        return None
    parts = re.findall(PART, name)
    return tuple(part[1:-1].replace("``", "`") if part.startswith("`") else part for part in parts)
