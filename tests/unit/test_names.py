"""Names of columns: what Spark finds, and what it says where it finds none or several."""

from types import SimpleNamespace

import pytest
from pyspark.sql import types as T

from cos_ml.data import names
from cos_ml.errors import InvalidInputError

pytestmark = pytest.mark.once


def struct(*fields, nullable=True):
    """A struct with fields of these names: integers, or as (name, struct)."""
    pairs = [(field, T.IntegerType()) if isinstance(field, str) else field for field in fields]
    return T.StructType([T.StructField(name, kind, nullable) for name, kind in pairs])


def frame(*fields, case_sensitive=False, nullable=True):
    """What is read of a DataFrame, without a session."""
    types = struct(*fields, nullable=nullable)
    conf = {"spark.sql.caseSensitive": str(case_sensitive).lower()}
    return SimpleNamespace(schema=types, columns=types.fieldNames(), sparkSession=SimpleNamespace(conf=conf))


DOTTED = "a.b", ("a", struct("b", ("C", struct("D")))), "w.", "t`k"


@pytest.mark.parametrize(
    ("fields", "name", "path"),
    [
        (["Features"], "features", ("Features",)),
        (["features"], "FEATURES", ("features",)),
        (["features"], "`Features`", ("features",)),
        ([("S", struct("Features"))], "s.features", ("S", "Features")),
        (DOTTED, "a.b", ("a", "b")),
        (DOTTED, "`a.b`", ("a.b",)),
        (DOTTED, "A.`c`.d", ("a", "C", "D")),
        (DOTTED, "a", ("a",)),
        (DOTTED, "`t``k`", ("t`k",)),
        (["a.b"], "A.B", ("a.b",)),  # as it is written, where Spark finds nothing
        (DOTTED, "w.", ("w.",)),
        (DOTTED, "t`k", ("t`k",)),
        ([".x"], ".x", (".x",)),
        (["one two"], "one two", ("one two",)),
        (["ŠTÍTEK"], "štítek", ("ŠTÍTEK",)),
    ],
)
def test_what_is_found(fields, name, path):
    found = names.resolve(frame(*fields), name)
    assert found.path == path
    assert isinstance(found.data_type, T.StructType if name == "a" else T.IntegerType)


def test_a_field_of_a_struct_that_may_be_null_may_be_null():
    assert names.resolve(frame(("a", struct("d", nullable=False))), "a.d").nullable
    assert not names.resolve(frame(("a", struct("d", nullable=False)), nullable=False), "a.d").nullable


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        (["x"], "y", r"There is no column 'y'. The DataFrame has columns \['x'\]"),
        (["x"], "`x", "There is no column '`x'"),
        (["x"], "", "There is no column ''"),
        ([("s", struct("x"))], "s.y", r"There is no column 's.y': 's' has the fields \['x'\]"),
        (["s"], "s.y", "There is no column 's.y': 's' is of type int"),
        (["x", "X"], "x", r"Column 'x' is ambiguous: it means each of \['x', 'X'\].*caseSensitive=true"),
        (["x", "x"], "X", r"Column 'X' is ambiguous: it means each of \['x', 'x'\]. Drop or rename the others\.$"),
        ([("s", struct("x", "X"))], "s.x", r"'s.x' is ambiguous: it means each of \['x', 'X'\] of struct 's'"),
    ],
)
def test_what_is_not_found(fields, name, message):
    with pytest.raises(InvalidInputError, match=message):
        names.resolve(frame(*fields), name)


def test_upper_and_lower_case_differ_where_the_session_says_so():
    df = frame("x", "X", "Y", case_sensitive=True)
    assert names.resolve(df, "X").path == ("X",)
    assert names.resolve(df, "x").path == ("x",)
    assert names.find(df, "y") is None
    assert (names.taken(df, "y"), names.taken(df, "Y")) == (False, True)
    assert names.taken(frame("Y"), "y")
    assert not names.taken(frame(("s", struct("y"))), "s.y")


@pytest.mark.parametrize(
    ("one", "other", "same"), [("İ", "i", True), ("ı", "I", True), ("ß", "SS", False), ("K", "k", True)]
)
def test_case_is_that_of_java(one, other, same):
    """``equalsIgnoreCase`` compares character by character, and folds a dotless and a dotted i."""
    assert (names.fold(one) == names.fold(other)) is same
    assert names.fold(one, case_sensitive=True) == one


@pytest.mark.parametrize(
    ("name", "last"), [("x", "x"), ("s.x", "x"), ("`s.x`", "s.x"), ("s.`x.y`", "x.y"), ("w.", "w.")]
)
def test_the_last_part(name, last):
    assert names.last_part(name) == last
