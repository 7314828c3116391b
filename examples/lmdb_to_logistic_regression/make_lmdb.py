"""Convert MNIST's IDX files to Caffe's format: LMDB databases of Datums.

python examples/lmdb_to_logistic_regression/make_lmdb.py PATH    # the folder with MNIST's four IDX files, as .gz
"""

import gzip
import os
from pathlib import Path
import sys

import cos_ml
from cos_ml.sources import register
import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

PARTS = {"train": "mnist_train_lmdb", "t10k": "mnist_test_lmdb"}


def start_spark() -> SparkSession:
    """Start Spark on two cores of this machine, with the format "lmdb"."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # executors need the Python that has cos_ml
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(cos_ml.__file__).with_name("conf")))  # log errors only
    spark = SparkSession.builder.master("local[2]").getOrCreate()
    register(spark)
    return spark


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes as an array: its fourth byte is the number of axes, and their lengths follow."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(np.frombuffer(data, ">i4", axes, offset=4))


def make_lmdb(spark: SparkSession, folder: Path) -> None:
    """Write the databases into ``folder``, next to the IDX files; existing ones are kept."""
    for part, name in PARTS.items():
        if (folder / name).exists():
            continue
        images, labels = (read_idx(folder / f"{part}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
        count = len(labels)
        columns = {
            "id": [f"{row:08d}" for row in range(count)],
            "label": pa.array(labels, pa.int32()),
            "channels": pa.array(np.ones(count), pa.int32()),
            "height": pa.array(np.full(count, images.shape[1]), pa.int32()),
            "width": pa.array(np.full(count, images.shape[2]), pa.int32()),
            "data": [image.tobytes() for image in images],
        }
        spark.createDataFrame(pa.table(columns)).write.format("lmdb").mode("append").save(str(folder / name))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_lmdb.py PATH    (the folder with MNIST's four IDX files, as .gz)")
    make_lmdb(start_spark(), Path(sys.argv[1]))
