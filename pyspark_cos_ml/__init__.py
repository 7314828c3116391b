"""The format "lmdb", where Spark looks for formats of Python's: ``DefaultSource`` of modules named pyspark_... .

It looks when it first meets the name of a format that it does not have, on the driver.
"""

from cos_ml.sources.lmdb import LmdbDataSource as DefaultSource

__all__ = ["DefaultSource"]
