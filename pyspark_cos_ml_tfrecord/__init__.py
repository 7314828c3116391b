"""The format "tfrecord", where Spark looks for formats of Python's: see ``pyspark_cos_ml``."""

from cos_ml.sources.tfrecord import TFRecordDataSource as DefaultSource

__all__ = ["DefaultSource"]
