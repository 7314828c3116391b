"""The formats: good files of each, how a program of a user's reads one, and what refuses a damaged one.

``read`` returns what the user would get, as bytes. Imports are in the functions: a process needs those of one format.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from cos_ml.errors import InvalidInputError, SavedModelError
from tests.fuzz import lmdb_files
from tests.fuzz.damage import damaged, damaged_member

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        make: writes good files into a folder.
        read: what a file holds, or an exception of ``refusals``.
        damage: changes a good file.
        inside: whether each value that ``read`` returns must be found in the file as it is.
        twice: whether it is read with memory filled in two ways; none that the JVM allocates is.
        ending: of a file's name.
        refusals: the documented exceptions.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], list[bytes]]
    damage: Damage = damaged
    inside: bool = False
    twice: bool = True
    ending: str = ""
    refusals: tuple[type[Exception], ...] = (InvalidInputError, SavedModelError)


# ── records ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_lmdb(file: Path) -> list[bytes]:
    """Keys and values of the main database, or of each of the named ones."""
    from cos_ml.sources.lmdb import LmdbReader

    found: list[bytes] = []
    for database in (None, "duplicates", "fixed", "numbers"):
        try:
            reader = LmdbReader(str(file), True, 3, ["key", "value"], database)
            for part in reader.partitions():
                for batch in reader.read(part):
                    found += [*batch["key"].to_pylist(), *batch["value"].to_pylist()]
            break
        except InvalidInputError as error:
            if database == "numbers" or not ("has named databases" in str(error) or "has no database" in str(error)):
                raise
    assert sum(map(len, found)) <= 10 * max(file.stat().st_size, 1 << 20), "more bytes than the file has"
    return found


def make_datums(folder: Path) -> None:
    """A Datum in each file: raw and encoded images, floats, packed floats and fields that a Datum does not have."""
    from tests.support.datums import JPEG, RAW, blob, number, one_float

    floats = b"".join(map(one_float, (1.5, -2.0, 3.25)))
    kinds = (
        RAW,
        JPEG,
        floats + number(5, 2),
        blob(6, struct.pack("<4f", *range(4))),
        RAW + blob(9, b"?") + number(11, 1),
    )
    for index, content in enumerate(kinds):
        (folder / f"{index}.datum").write_bytes(content)


def read_datum(file: Path) -> list[bytes]:
    """The values of a Datum, decoded in a batch with others, whose values it must not have, nor change."""
    import pyarrow as pa

    from cos_ml.sources.records import DATUMS, datum_columns
    from tests.support.datums import RAW

    alone = pa.RecordBatch.from_arrays(datum_columns(DATUMS.names, [b"key"], [file.read_bytes()], "it"), schema=DATUMS)
    three = datum_columns(DATUMS.names, [b"one", b"key", b"two"], [RAW, file.read_bytes(), RAW], "it")
    batch = pa.RecordBatch.from_arrays(three, schema=DATUMS)
    assert repr(batch.slice(1, 1).to_pylist()) == repr(alone.to_pylist()), "a Datum depends on its neighbours"
    assert {batch["data"][0].as_py(), batch["data"][2].as_py()} == {b"abcdef"}, "a Datum changes its neighbours"
    return [alone["data"][0].as_py() or b""]


def make_records(folder: Path) -> None:
    """TFRecord files: of Examples with features of each kind, with and without compression, and of bytes."""
    import numpy as np

    from cos_ml.network.keras_import import import_tensorflow

    tf = import_tensorflow()
    for kind in ("", "GZIP"):
        with tf.io.TFRecordWriter(str(folder / f"rows{kind}.tfrecord"), kind) as writer:
            for row in range(5):
                feature = {
                    "number": tf.train.Feature(int64_list=tf.train.Int64List(value=[row])),
                    "floats": tf.train.Feature(float_list=tf.train.FloatList(value=np.arange(row + 2.0))),
                    "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"text %d" % row])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def damaged_records(content: bytes, chance: random.Random) -> bytes:
    """Other bytes, half of them with right checksums."""
    if content[:2] == b"\x1f\x8b" or chance.random() < 0.3:
        return damaged(content, chance)
    records, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        records.append(content[at + 12 : at + 12 + size])
        at += 16 + size
    index = chance.randrange(len(records))
    records[index] = damaged(records[index], chance)
    return _records_of(records)


def _records_of(records: list[bytes]) -> bytes:
    import tempfile

    from cos_ml.network.keras_import import import_tensorflow

    with tempfile.NamedTemporaryFile() as file:
        with import_tensorflow().io.TFRecordWriter(file.name) as writer:
            for record in records:
                writer.write(record)
        return Path(file.name).read_bytes()


def read_records(file: Path) -> list[bytes]:
    """All columns of a file whose schema it tells itself, and of one that the user states."""
    from pyspark.sql import types as T

    from cos_ml.sources.tfrecord import TFRecordDataSource

    stated = T.StructType().add("number", T.IntegerType()).add("floats", T.ArrayType(T.FloatType()))
    kind = "gzip" if file.read_bytes()[:2] == b"\x1f\x8b" else "none"
    found = []
    source = TFRecordDataSource({"path": str(file), "compression": kind})
    for schema in (stated, source.schema()):
        reader = source.reader(schema)
        for part in reader.partitions():
            found += [repr(batch.to_pylist()).encode() for batch in reader.read(part)]
    return found


def make_images(folder: Path) -> None:
    """JPEG and PNG files of all kinds of pixels."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    for mode in ("L", "RGB", "CMYK"):
        image = Image.fromarray(pixels).convert("RGB").convert(mode)
        image.save(folder / f"{mode}.jpg", quality=80)
        image.save(folder / f"{mode}p.jpg", progressive=True)
    for mode in ("1", "L", "P", "RGB", "RGBA", "I;16"):
        image = Image.fromarray(pixels)
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8)
        else:
            image = image.convert("RGB" if mode == "P" else mode).convert(mode)
        image.save(folder / f"{mode.replace(';', '')}.png")


def read_image(file: Path) -> list[bytes]:
    """The pixels in three sizes."""
    import pyarrow as pa

    from cos_ml.sources.pixels import ImageSpec, decode_batches

    column = pa.array([file.read_bytes()])
    specs = [ImageSpec(8, 8, 3, "crop", "uint8"), ImageSpec(24, 20, 1, "stretch", "uint8")]
    return [one[0].as_py() for spec in specs for one in decode_batches(spec, "image", "error", iter([(column,)]))]


def read_sequence_file(file: Path) -> list[bytes]:
    """The values of a SequenceFile, as Spark reads it."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    from cos_ml import read_sequence_file

    try:
        rows = read_sequence_file(_spark(), file).collect()
    except (Py4JError, PySparkException) as error:
        if "Py4JNetwork" in repr(error):  # the JVM is gone
            raise
        raise InvalidInputError(str(error)[:200]) from None
    return [bytes(row["data"]) for row in rows]


@cache
def _spark() -> Any:
    from tempfile import mkdtemp

    from tests.support.sessions import session

    # A task that asks for an array larger than memory fails; else Spark would end the JVM, as docs/security.md says.
    settings = {"spark.executor.killOnFatalError.depth": "0", "spark.driver.memory": "512m"}
    return next(session("local[1]", Path(mkdtemp()), **settings))


def make_sequence_files(folder: Path) -> None:
    """Two files of records, one of them in compressed blocks."""
    spark = _spark()
    pairs = spark.sparkContext.parallelize([(f"key {row}", bytearray(b"value %d" % row)) for row in range(20)], 1)
    codec = "org.apache.hadoop.io.compress.DefaultCodec"
    for name, how in (("plain", None), ("compressed", codec)):
        pairs.saveAsSequenceFile(str(folder / name), how)
        shutil.move(next((folder / name).glob("part-*")), folder / f"{name}.seq")
        shutil.rmtree(folder / name)


# ── networks and weights ──────────────────────────────────────────────────────────────────────────────────────────────


def make_networks(folder: Path) -> None:
    """Networks whose archives differ in kind: layers, words, what Keras's format loses."""
    from cos_ml.network.archive import Network
    from cos_ml.network.keras_import import import_keras

    keras = import_keras()
    layers = keras.layers
    adapted = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(1)])
    adapted.layers[0].enable_lora(2)
    words = [keras.Input((1,), dtype="string"), layers.StringLookup(vocabulary=["a", "b"]), layers.Embedding(4, 2)]
    kinds = {
        "dense": keras.Sequential([keras.Input((3,)), layers.Dense(2, "relu"), layers.Dense(1)]),
        "images": keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3), layers.BatchNormalization()]),
        "series": keras.Sequential([keras.Input((3, 2)), layers.LSTM(2)]),
        "words": keras.Sequential(words),
        "state": adapted,
    }
    for name, model in kinds.items():
        (folder / f"{name}.keras").write_bytes(Network.of(model).archive)


def damaged_network(content: bytes, chance: random.Random) -> bytes:
    """Other bytes of the archive, or of a member."""
    return damaged(content, chance) if chance.random() < 0.2 else damaged_member(content, chance)


def read_network(file: Path) -> list[bytes]:
    """The weights of a .keras file."""
    from cos_ml.network import archive, untrusted
    from cos_ml.network.keras_import import import_keras

    try:
        data = archive.read_file(str(file))
        untrusted.check_archive(data)
        return [array.tobytes() for array in archive.load_model(data).get_weights()]
    finally:
        import_keras().backend.clear_session()


def make_weights(folder: Path) -> None:
    """Weights in Keras's files of today and of before version 3."""
    from cos_ml.network.keras_import import import_keras

    keras = import_keras()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(1, name="b")])
    model.save_weights(folder / "new.weights.h5")
    model.save(folder / "old.h5")


@cache
def _layers() -> Any:
    """A network that takes weights."""
    from cos_ml.network.keras_import import import_keras

    keras = import_keras()
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(1, name="b")])


def read_weights(file: Path) -> list[bytes]:
    """The weights that a network takes by initialWeights."""
    import tempfile

    import numpy as np

    from cos_ml import initial_weights
    from cos_ml.caffe.weights import assign
    from cos_ml.network import untrusted

    model, data = _layers(), file.read_bytes()
    for layer in model.layers:
        layer.set_weights([np.zeros_like(array) for array in layer.get_weights()])
    if file.suffix == ".caffemodel":
        assign(model, file)
    elif not data.startswith(initial_weights.HDF5):
        raise InvalidInputError("another kind of file")
    else:
        untrusted.check_h5_library(data)
        with tempfile.TemporaryDirectory() as folder:
            initial_weights._from_h5(model, data, Path(folder, "own.weights.h5"))
    return [array.tobytes() for array in model.get_weights()]


def make_caffemodels(folder: Path) -> None:
    """A caffemodel."""
    import numpy as np

    from tests.support.caffe_nets import write_caffemodel

    write_caffemodel(
        folder / "net.caffemodel", {"a": [np.ones((2, 3)), np.ones(2)], "b": [np.ones((1, 2)), np.ones(1)]}
    )


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────────────


def make_checkpoints(folder: Path) -> None:
    """A checkpoint with weights, metrics and what callbacks remember."""
    import numpy as np

    from cos_ml.rank.checkpoint_store import Checkpoint

    plain = {"stateful": {"stop": {"best": 0.5}}, "counts": [1], "stopped": False}
    arrays = {"weights/0": np.ones((3, 4), np.float32), "weights/1": np.array(7), "stateful/stop/0": np.arange(3)}
    (folder / "checkpoint").write_bytes(b"".join(map(bytes, Checkpoint(2, 0, plain, arrays).dump())))


def damaged_checkpoint(content: bytes, chance: random.Random) -> bytes:
    """Other bytes, most of them with a right hash."""
    if chance.random() < 0.1:
        return damaged(content, chance)
    changed = damaged(content[:-64], chance)
    return changed + hashlib.blake2b(changed).digest()


def read_checkpoint(file: Path) -> list[bytes]:
    """The newest checkpoint of a folder that has this one."""
    from cos_ml.rank.checkpoint_store import CheckpointStore
    from cos_ml.spec import CheckpointConfig

    store = CheckpointStore(CheckpointConfig(str(file.parent / "checkpoints")), [])
    Path(store.path).mkdir(parents=True, exist_ok=True)
    shutil.copy(file, Path(store.path, "checkpoint-auto-000002-000000000"))
    found = store.newest()
    if found is None:
        raise InvalidInputError(store.notes[0])
    return [found.arrays[name].tobytes() for name in sorted(found.arrays)]


def make_fits(folder: Path) -> None:
    """A fit.json."""
    (folder / "fit.json").write_text(json.dumps({"epochs": 3, "seed": 1, "loss": "mse", "columns": ["x", "y"]}))


def read_fit(file: Path) -> list[bytes]:
    """The folder is refused or the same fit's; a fit with resume="never" takes it in any case."""
    from cos_ml.rank.checkpoint_store import acquire
    from cos_ml.spec import CheckpointConfig

    folder = file.parent / "fit"
    folder.mkdir(exist_ok=True)
    shutil.copy(file, folder / "fit.json")
    fit = {"epochs": 3, "seed": 1, "loss": "mse", "columns": ["x", "y"]}
    try:
        acquire(CheckpointConfig(str(folder), fit=fit))
    finally:
        acquire(CheckpointConfig(str(folder), fit=fit, run="anew"))
    return []


# ── Parquet ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_tables(folder: Path, of_vectors: bool = False) -> None:
    """Files with several row groups, of plain numbers, arrays or Vectors, and texts, in the usual encodings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, options in {"plain": {"compression": "none", "use_dictionary": False}, "snappy": {}}.items():
        rows = range(12)
        x = [[float(n), -n] for n in rows]
        vectors = [
            {"type": 0, "size": 2, "indices": [1], "values": values[1:]}
            if values[0] % 2
            else {"type": 1, "size": None, "indices": None, "values": values}
            for values in x
        ]
        kind = pa.struct(
            {"type": pa.int8(), "size": pa.int32(), "indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
        )
        first = pa.array(vectors, kind) if of_vectors else x
        table = pa.table({"x": first, "y": [float(n % 3) for n in rows], "s": ["ab"] * 12})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=4, **options)


def damaged_table(content: bytes, chance: random.Random) -> bytes:
    """Other bytes, most of them in the footer."""
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return damaged(content, chance, footer if chance.random() < 0.7 else 0)


def read_table(file: Path) -> list[bytes]:
    """The rows of the feed "parquet": planned by the driver, read by a rank."""
    from dataclasses import asdict

    from cos_ml.data.columns import Column
    from cos_ml.data.parquet import Shards
    from cos_ml.data.parquet_plan import plan
    from cos_ml.rank.shard_rows import ShardRows
    from cos_ml.spec import TrainSpec

    columns = Column("x", "x0", (2,)), Column("s", "x1", (), "string")
    spec = TrainSpec(inputs=columns, labels=(Column("y", "y0"),))
    shards = plan(str(file), spec, {"x0": "x", "x1": "s", "y0": "y"}, 1)
    rows = ShardRows("train", spec, Shards(**json.loads(json.dumps(asdict(shards)))), 0)
    found: Iterator[Any] = rows.ordered(False, (1,)).batches(4, -(-rows.count // 4), {})
    return [bytes(batch.arrays[name]) for batch in found for name in sorted(batch.arrays) if name != "x1"]


FORMATS = {
    "lmdb": Format(lmdb_files.make, read_lmdb, lmdb_files.damaged, inside=True, twice=False, ending=".mdb"),
    "datum": Format(make_datums, read_datum, inside=True, twice=False),
    "tfrecord": Format(make_records, read_records, damaged_records, ending=".tfrecord"),
    "sequencefile": Format(make_sequence_files, read_sequence_file, twice=False, ending=".seq"),
    "image": Format(make_images, read_image),
    "keras": Format(make_networks, read_network, damaged_network, ending=".keras"),
    "h5": Format(make_weights, read_weights, ending=".h5"),
    "caffemodel": Format(make_caffemodels, read_weights, ending=".caffemodel"),
    "checkpoint": Format(make_checkpoints, read_checkpoint, damaged_checkpoint),
    "fit": Format(make_fits, read_fit),
    "parquet": Format(make_tables, read_table, damaged_table, ending=".parquet"),
    "vectors": Format(partial(make_tables, of_vectors=True), read_table, damaged_table, ending=".parquet"),
}
