from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from tests.support import reference
from tests.support.sessions import forked_ranks, session
from tests.tables import lake

ROWS, KEPT = 60, 40  # those with the greatest ids are deleted
FEATURES, LABELS, _ = reference.data(ROWS)
# How a row that is deleted stays in the files -> a new table, and what makes it so.
TABLES = {
    "rewritten": "USING delta TBLPROPERTIES (delta.enableDeletionVectors=false)",
    "deletion vectors": "USING delta PARTITIONED BY (day) TBLPROPERTIES (delta.enableDeletionVectors=true)",
    "delete files": "USING iceberg TBLPROPERTIES ('format-version'=2, 'write.delete.mode'='merge-on-read')",
}


@dataclass(frozen=True)
class Table:
    """A table of 40 rows, in whose folder are 60."""

    name: str
    folder: str


def rows(spark: SparkSession, ids: Sequence[int]) -> DataFrame:
    """Rows of ``reference.data`` by their number, as columns that every format has, in three partitions."""
    found = [(one, one % 3, FEATURES[one].tolist(), float(LABELS[one])) for one in ids]
    return spark.createDataFrame(found, "id bigint, day int, features array<float>, label double").repartition(3, "id")


def create(spark: SparkSession, name: str, how: str) -> None:
    columns = "id bigint, day int, features array<float>, label double"
    spark.sql(f"CREATE TABLE {name} ({columns}) {how}")
    rows(spark, range(ROWS)).writeTo(name).append()


@pytest.fixture(scope="package")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="package")
def spark(warehouse: Path) -> Iterator[SparkSession]:
    for spark in session("local[3]", warehouse, **lake.settings(warehouse / "lake")):
        with forked_ranks(spark):
            yield spark


@pytest.fixture(scope="package")
def tables(spark: SparkSession, warehouse: Path) -> dict[str, Table]:
    """By how their deleted rows stay in the files."""
    spark.sql("CREATE NAMESPACE lake.db")
    found = {}
    for index, (key, how) in enumerate(TABLES.items()):
        iceberg = "iceberg" in how
        name = f"lake.db.t{index}" if iceberg else f"t{index}"
        folder = warehouse / "lake" / "db" if iceberg else warehouse / "warehouse"
        create(spark, name, how)
        spark.sql(f"DELETE FROM {name} WHERE id >= {KEPT}")
        found[key] = Table(name, str(folder / f"t{index}"))
    return found
