import numpy as np
import pytest
from pyspark.sql import types as T

from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.sources.tfrecord import TFRecordDataSource, TFRecordReader

tf = import_tensorflow()

pytestmark = pytest.mark.once

IMAGE = bytes(range(256))


def integers(*values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def floats(*values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def raw(*values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def write(path, *records, compression=""):
    """A file by TensorFlow's own writer, of features by their names."""
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for features in records:
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def read(path, schema=None, **options):
    """The schema and the rows that Spark would read."""
    source = TFRecordDataSource({"path": str(path), **options})
    schema = schema or source.schema()
    reader = source.reader(schema)
    rows = [row for file in reader.partitions() for batch in reader.read(file) for row in batch.to_pylist()]
    return schema.simpleString(), rows


def columns(**types):
    return T.StructType([T.StructField(name, kind) for name, kind in types.items()])


@pytest.fixture
def folder(tmp_path):
    first = {"image/encoded": raw(IMAGE), "label": integers(3), "box": floats(0.5, 1.5), "words": raw(b"a", b"b")}
    write(tmp_path / "train-00000-of-00002", first, {"label": integers(-(2**40)), "box": floats(2.5)})
    write(tmp_path / "train-00001-of-00002", {"score": floats(0.25), "label": integers(1), "image/encoded": raw(b"")})
    (tmp_path / "_SUCCESS").write_bytes(b"")
    return tmp_path


def test_the_records_tell_the_columns(folder):
    schema, rows = read(folder)
    assert schema == "struct<box:array<float>,image/encoded:binary,label:bigint,words:array<binary>>"
    assert rows == [
        {"box": [0.5, 1.5], "image/encoded": IMAGE, "label": 3, "words": [b"a", b"b"]},
        {"box": [2.5], "image/encoded": None, "label": -(2**40), "words": []},
        {"box": [], "image/encoded": b"", "label": 1, "words": []},
    ]


def test_a_schema_chooses_features_and_types(folder):
    words, box = T.ArrayType(T.StringType()), T.ArrayType(T.DoubleType())
    schema = columns(words=words, score=T.DoubleType(), box=box)
    assert read(folder, schema)[1] == [
        {"words": ["a", "b"], "score": None, "box": [0.5, 1.5]},
        {"words": [], "score": None, "box": [2.5]},
        {"words": [], "score": 0.25, "box": []},
    ]


@pytest.mark.parametrize("path", ["train-00001-of-00002", "train-*1-of-*"])
def test_a_file_and_a_glob(folder, path):
    schema = columns(label=T.ByteType(), score=T.BooleanType())
    with pytest.raises(InvalidInputError, match="Expected type"):
        read(folder / path, schema)
    assert read(folder / path, columns(label=T.ByteType()))[1] == [{"label": 1}]
    assert read(folder / path, columns(label=T.BooleanType()))[1] == [{"label": True}]


def test_several_paths(folder):
    paths = f'["{folder}/train-00001-of-00002", "{folder}/train-00001-of-00002"]'
    assert len(read("", columns(label=T.LongType()), paths=paths)[1]) == 2


def test_compressed_files(tmp_path):
    write(tmp_path / "rows.gz", {"label": integers(1)}, compression="GZIP")
    write(tmp_path / "rows.zlib", {"label": integers(2)}, compression="ZLIB")
    assert read(tmp_path / "rows.gz")[1] == [{"label": 1}]
    assert read(tmp_path / "rows.zlib", compression="zlib")[1] == [{"label": 2}]
    with pytest.raises(InvalidInputError, match="compressed in another way"):
        read(tmp_path / "rows.zlib")


def test_records_of_other_kinds_as_they_are(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "rows")) as writer:
        writer.write(IMAGE)
    assert read(tmp_path / "rows", recordType="ByteArray") == (
        "struct<byteArray:binary>",
        [{"byteArray": IMAGE}],
    )
    with pytest.raises(InvalidInputError, match='recordType="ByteArray"'):
        read(tmp_path / "rows")


def test_many_records_in_batches_of_a_few_megabytes(tmp_path):
    values = np.random.default_rng(0).normal(size=(3000, 400)).astype(np.float32)
    write(tmp_path / "rows", *({"x": floats(*row)} for row in values.tolist()))
    reader = TFRecordDataSource({"path": str(tmp_path)}).reader(columns(x=T.ArrayType(T.FloatType())))
    batches = list(reader.read(reader.partitions()[0]))
    assert len(batches) == 3
    assert (np.concatenate([np.stack(batch["x"].to_pylist()) for batch in batches]) == values).all()


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path / "rows", *[{"label": integers(1)}] * 100)
    data = bytearray((tmp_path / "rows").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "rows").write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"rows is damaged, no TFRecord file.*corrupted record"):
        read(tmp_path / "rows", columns(label=T.LongType()))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (T.FloatType(), "several values|holds one"),
        (T.LongType(), "Expected type: int64"),
        (T.DecimalType(), "of type decimal"),
    ],
)
def test_a_column_of_another_type_than_the_feature(folder, kind, message):
    with pytest.raises(InvalidInputError, match=message):
        read(folder, columns(box=kind))


def test_a_number_that_is_too_large(folder):
    with pytest.raises(InvalidInputError, match="not in range"):
        read(folder, columns(label=T.IntegerType()))


def test_a_feature_of_two_kinds(tmp_path):
    write(tmp_path / "rows", {"x": integers(1)}, {"x": floats(1.0)})
    with pytest.raises(InvalidInputError, match="'x' is a int64_list and a float_list"):
        read(tmp_path / "rows")


def test_what_is_not_there(tmp_path):
    with pytest.raises(InvalidInputError, match=r"no TFRecord files at .*nowhere: expected a file, a folder or a glob"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="no record at"):
        read(tmp_path)
    assert read(tmp_path, columns(x=T.LongType()))[1] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recordType": "SequenceExample"}, "expected one of Example, ByteArray"),
        ({"compression": "lz4"}, "expected one of auto, none, gzip, zlib"),
    ],
)
def test_options_of_other_values(tmp_path, options, message):
    with pytest.raises(InvalidInputError, match=message):
        TFRecordDataSource({"path": str(tmp_path), **options})


def test_nothing_is_written(tmp_path):
    with pytest.raises(InvalidInputError, match="only read"):
        TFRecordDataSource({"path": str(tmp_path)}).writer(columns(x=T.LongType()), overwrite=False)


def test_a_byte_array_is_one_binary_column(tmp_path):
    with pytest.raises(InvalidInputError, match="one column"):
        TFRecordReader([str(tmp_path)], columns(x=T.LongType()), True, "auto")
