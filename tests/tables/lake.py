"""Delta and Iceberg: their jars, which ``python -m tests.tables.lake`` fetches once, and the settings of a session."""

from __future__ import annotations

import sys
from pathlib import Path

import pyspark

from tests.support import jars

HERE = Path(__file__).parent
SPARK = "4.0."  # for which these jars are
CATALOG = "spark.sql.catalog.lake"  # of Iceberg


def folder() -> Path:
    """The folder of the jars; raises RuntimeError if something is missing."""
    if not pyspark.__version__.startswith(SPARK):
        raise RuntimeError(f"The jars of these tests are for Spark {SPARK}x; here is PySpark {pyspark.__version__}.")
    return jars.folder(HERE, "the jars of Delta and Iceberg (53 MB)")


def settings(warehouse: Path) -> dict[str, str]:
    """Settings of a session whose tables are Delta's, and those of the catalog "lake" Iceberg's, in ``warehouse``."""
    return {
        "spark.driver.extraClassPath": f"{folder()}/*",  # spark.jars would copy them
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension,"
        "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "2",  # 50 by default, each a task
        CATALOG: "org.apache.iceberg.spark.SparkCatalog",
        f"{CATALOG}.type": "hadoop",
        f"{CATALOG}.warehouse": str(warehouse),
    }


if __name__ == "__main__":
    try:
        folder()
    except RuntimeError as error:
        sys.exit(f"make test-tables: {error}")
