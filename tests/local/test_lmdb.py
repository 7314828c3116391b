"""The format "lmdb", against databases that the lmdb package wrote or reads."""

import os
import sys

import lmdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import Row
from pyspark.sql import types as T

from cos_ml import DeepNetModel
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.sources import register
from cos_ml.sources.convert import lmdb_to_sequence_file
from cos_ml.sources.images import read_sequence_file
from cos_ml.sources.lmdb import LmdbDataSource, LmdbReader, LmdbWriter
from tests.support.datums import JPEG, RAW, blob, number, one_float

MANY = 3000


def make(path, records, subdir=True, **how):
    environment = lmdb.open(str(path), subdir=subdir, map_size=1 << 28, **how)
    with environment, environment.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key, value)
    return str(path)


def records_of(path):
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


def read_ranges(path, count, columns=("key",), raw=True):
    """What the tasks of a scan read, without Spark: a list of rows for each."""
    reader = LmdbReader(str(path), raw, count, columns)
    return [
        [tuple(row.values()) for batch in reader.read(keys) for row in batch.to_pylist()]
        for keys in reader.partitions()
    ]


@pytest.fixture(scope="module")
def lmdb_spark(spark):
    register(spark)
    return spark


@pytest.fixture
def read(lmdb_spark):
    def load(path, **options):
        return lmdb_spark.read.format("lmdb").options(**options).load(str(path))

    return load


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A database with several levels of inner pages: keys as Caffe makes them, values of 784 bytes and a label."""
    records = {
        b"%08d_name.jpg" % row: number(1, 1) + number(2, 28) + number(3, 28) + blob(4, bytes([row % 256]) * 784)
        + number(5, row % 10) for row in range(MANY)
    }  # fmt: skip
    return make(tmp_path_factory.mktemp("many") / "lmdb", records)


def fails(message):
    """Spark wraps what its Python workers raise; the text of it is in the message."""
    return pytest.raises(Exception, match=f"(?s)InvalidInputError: .*{message}")


# --- reading


def test_spark_finds_the_format_by_itself(spark, tmp_path):
    """In a session where nobody has registered it."""
    path = make(tmp_path / "db", {b"a": RAW})
    assert spark.newSession().read.format("lmdb").load(path).count() == 1


def test_datums_become_rows(read, tmp_path):
    floats = number(1, 2) + number(2, 1) + number(3, 1) + one_float(0.5) + one_float(-2)
    rows = read(make(tmp_path / "db", {b"a": RAW, b"b": JPEG, b"c": floats, b"d": b""})).orderBy("id").collect()
    assert rows == [
        Row(id="a", label=7, channels=3, height=2, width=1, encoded=False, data=bytearray(b"abcdef"), float_data=None),
        Row(id="b", label=300, channels=0, height=0, width=0, encoded=True, data=bytearray(b"\xff\xd8 a picture"),
            float_data=None),
        Row(id="c", label=0, channels=2, height=1, width=1, encoded=False, data=None, float_data=[0.5, -2.0]),
        Row(id="d", label=0, channels=0, height=0, width=0, encoded=False, data=None, float_data=None),
    ]  # fmt: skip


@pytest.mark.once
def test_plain_keys_and_values(read, tmp_path):
    records = {b"\xff\x00key": b"not a Datum", b"k": b"", b"z": b"1" * 5000}
    found = read(make(tmp_path / "db", records), values="raw", numPartitions=2)
    assert found.schema.simpleString() == "struct<key:binary,value:binary>"
    assert {bytes(row.key): bytes(row.value) for row in found.collect()} == records


@pytest.mark.once
def test_keys_that_are_no_text(read, tmp_path):
    rows = read(make(tmp_path / "db", {b"\xffkey": RAW, "schlüssel".encode(): RAW})).collect()
    assert {row.id for row in rows} == {r"\xffkey", "schlüssel"}


def test_the_columns_of_a_schema_of_ones_own_in_its_order(lmdb_spark, many):
    rows = lmdb_spark.read.format("lmdb").schema("label int, id string").load(many).orderBy("id").take(2)
    assert rows == [Row(label=0, id="00000000_name.jpg"), Row(label=1, id="00000001_name.jpg")]


@pytest.mark.once
def test_a_database_of_one_file_and_one_without_records(read, tmp_path):
    assert read(make(tmp_path / "file.mdb", {b"a": RAW}, subdir=False)).count() == 1
    assert read(make(tmp_path / "empty", {}), numPartitions=3).collect() == []
    assert read(f"file://{make(tmp_path / 'url', {b'a': RAW})}").count() == 1
    assert read(f"local://{tmp_path / 'url'}").count() == 1  # a URL of fsspec's: each executor reads a copy


@pytest.mark.once
def test_a_read_only_folder_stays_as_it_is(read, many):
    before = sorted(os.listdir(many))
    os.remove(os.path.join(many, "lock.mdb"))
    assert read(many).count() == MANY
    assert sorted(os.listdir(many)) == [name for name in before if name != "lock.mdb"]


def test_pixels_go_into_a_network_as_they_are(read, many):
    import keras

    network = keras.Sequential([keras.Input((28, 28, 1), dtype="uint8"), keras.layers.GlobalMaxPooling2D()])
    scored = DeepNetModel(model=network, featuresCol="data").transform(read(many)).orderBy("id")
    assert [row.prediction for row in scored.select("prediction").collect()] == [row % 256 for row in range(MANY)]


# --- ranges of keys


@pytest.mark.once
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_ranges_are_as_many_as_asked_for_and_even(read, many, count):
    found = read(many, numPartitions=count)
    assert found.rdd.getNumPartitions() == count
    sizes = [len(rows) for rows in read_ranges(many, count, ["id"], raw=False)]
    assert sum(sizes) == MANY
    assert max(sizes) < 1.1 * MANY / count


@pytest.mark.once
def test_planning_reads_inner_pages(many):
    """Of 3000 records with about 4 to a page, planning for 2 ranges looks at those of the first page."""
    ranges = LmdbReader(many, True, 2, ["key"]).partitions()
    starts = [part.spans[0].page for part in ranges]
    assert len(ranges) == 2
    assert max(map(len, (part.spans for part in ranges))) < 60, starts


@pytest.mark.once
def test_without_numpartitions_it_is_a_range_for_each_core(many):
    assert len(LmdbReader(many, True, None, ["key"]).partitions()) == os.cpu_count()


@pytest.mark.once
@pytest.mark.parametrize("flag", [0x02, 0x08], ids=["reverse_key", "integerkey"])
def test_keys_in_another_order(tmp_path, flag):
    """The package makes no such database, others do: a flag in both of its meta pages declares it as one."""
    records = {b"%08d" % row: b"%d" % row for row in range(600)}
    path = make(tmp_path / "db", records)
    with open(os.path.join(path, "data.mdb"), "r+b") as file:
        for page in (0, 1):
            file.seek(page * os.sysconf("SC_PAGESIZE") + 92)
            file.write(bytes([flag]))
    ranges = read_ranges(path, 4, ["key", "value"])
    assert len(ranges) == 4
    assert dict(row for rows in ranges for row in rows) == records


@pytest.mark.once
@settings(max_examples=25, deadline=None)
@given(
    keys=st.sets(
        st.binary(min_size=1, max_size=12) | st.integers(0, 99_999).map(lambda row: b"%08d_name" % row), max_size=300
    ),
    copies=st.integers(1, 40),
    count=st.integers(1, 50),
    size=st.sampled_from([0, 100, 3000]),
)
def test_every_record_is_in_exactly_one_range(tmp_path_factory, keys, copies, count, size):
    records = {key + b"%d" % copy: bytes(size) for key in keys for copy in range(copies if size < 3000 else 1)}
    path = make(tmp_path_factory.mktemp("random") / "db", records, sync=False)
    rows = [row for rows in read_ranges(path, count, ["key", "value"]) for row in rows]
    assert [key for key, _ in rows] == sorted(records)
    assert dict(rows) == records


@pytest.mark.once
def test_a_named_database_with_duplicates(read, tmp_path):
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 24, max_dbs=2) as environment:
        environment.open_db(b"empty")
        database = environment.open_db(b"train", dupsort=True)
        with environment.begin(write=True, db=database) as transaction:
            for row in range(5000):
                transaction.put(b"%d" % (row % 7), b"%06d" % row)
    found = read(tmp_path / "db", values="raw", database="train", numPartitions=3)
    assert sorted(bytes(row.value) for row in found.collect()) == [b"%06d" % row for row in range(5000)]
    assert read(tmp_path / "db", database="empty").collect() == []
    for values in ("raw", "datum"):
        with fails(r"has named databases: choose one of \['empty', 'train'\] with the option database"):
            read(tmp_path / "db", values=values).count()


# --- what can't be read


@pytest.mark.once
def test_there_is_no_database(read, tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with fails("There is no LMDB database at"):
            read(path).count()


@pytest.mark.once
def test_a_foreign_file(read, tmp_path):
    for content in (b"", b"x" * 10, b"x" * 20_000):
        (tmp_path / "data.mdb").write_bytes(content)
        with fails("is not a readable LMDB database"):
            read(tmp_path).count()


@pytest.mark.once
def test_a_truncated_file(read, many, tmp_path):
    with open(os.path.join(many, "data.mdb"), "rb") as whole:
        (tmp_path / "data.mdb").write_bytes(whole.read(1_000_000))
    with fails("data.mdb is truncated: it has 1,000,000 of"):
        read(tmp_path).count()


@pytest.mark.once
def test_a_value_that_is_no_datum(read, tmp_path):
    path = make(tmp_path / "db", {b"good": RAW, b"wrong": b"hello"})
    with fails("the value of key b'wrong' .* Datum.*values.*raw"):
        read(path).collect()


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "x", "numPartitions": "0"}, "Option numPartitions: expected an integer >= 1, received '0'"),
        ({"path": "x", "numPartitions": "two"}, "received 'two'"),
        ({"path": "x", "values": "caffe"}, "Option values: expected one of datum, raw, received 'caffe'"),
        ({}, "Expected the path of an LMDB database"),
    ],
)
def test_options_that_can_not_be(options, message):
    with pytest.raises(InvalidInputError, match=message):
        LmdbDataSource(options)


def test_a_column_that_is_not_there(lmdb_spark, many):
    with fails("There is no column 'label' of type bigint: expected some of id string, label int"):
        lmdb_spark.read.format("lmdb").schema("label bigint").load(many).count()


@pytest.mark.once
def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    schema = T.StructType().add("id", "string").add("data", "binary")
    with pytest.raises(SetupError, match=r'pip install "cos-ml\[lmdb\]"'):
        LmdbDataSource({"path": "x"}).writer(schema, False)


# --- writing


def write(frame, path, mode="overwrite", **options):
    frame.write.format("lmdb").options(**options).mode(mode).save(str(path))


@pytest.mark.once
def test_what_is_written_is_what_the_package_reads(lmdb_spark, tmp_path):
    rows = [("b", 300, None, bytearray(b"\xff\xd8 a picture"), True), ("a", 7, 3, bytearray(b"abcdef"), None)]
    frame = lmdb_spark.createDataFrame(rows, "id string, label int, channels int, data binary, encoded boolean")
    write(frame, tmp_path / "db")
    zeros = number(2, 0) + number(3, 0)
    assert records_of(tmp_path / "db") == {
        b"a": number(1, 3) + zeros + blob(4, b"abcdef") + number(5, 7) + number(7, 0),
        b"b": number(1, 0) + zeros + blob(4, b"\xff\xd8 a picture") + number(5, 300) + number(7, 1),
    }
    assert os.listdir(tmp_path) == ["db"]


@pytest.mark.more
def test_a_database_written_again_is_the_same(read, lmdb_spark, many, tmp_path):
    write(read(many, numPartitions=3).repartition(4), tmp_path / "db", "append")
    assert read(tmp_path / "db").orderBy("id").collect() == read(many).orderBy("id").collect()
    write(read(many, values="raw"), tmp_path / "raw", values="raw")
    assert records_of(tmp_path / "raw") == records_of(many)


def test_floats_come_back(read, lmdb_spark, tmp_path):
    frame = lmdb_spark.createDataFrame([("a", [0.5, 2.0]), ("b", [1.0])], "id string, float_data array<float>")
    write(frame, tmp_path / "db")
    assert [row.float_data for row in read(tmp_path / "db").orderBy("id").collect()] == [[0.5, 2.0], [1.0]]


def test_overwrite_replaces_even_what_is_being_read(read, lmdb_spark, tmp_path):
    path = make(tmp_path / "db", {b"a": RAW, b"b": RAW})
    write(read(path).filter("id = 'b'"), path)
    assert set(records_of(path)) == {b"b"}
    assert os.listdir(tmp_path) == ["db"]


def test_append_refuses_a_database_that_is_there(read, tmp_path):
    path = make(tmp_path / "db", {b"a": RAW})
    with fails('already exists, and rows can\'t be appended to a database. Use mode\\("overwrite"\\)'):
        write(read(path), path, "append")


@pytest.mark.once
def test_overwrite_refuses_what_is_no_database(read, lmdb_spark, many, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with fails("is not the folder of an LMDB database"):
        write(read(many), tmp_path)
    assert os.listdir(tmp_path) == ["precious.txt"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("rows", "schema", "message"),
    [
        ([("a", b"1"), ("a", b"2")], "id string, data binary", "Two rows have the key b'a'"),
        ([("", b"1")], "id string, data binary", "keys of 1 to 511 bytes"),
        ([("k" * 600, b"1")], "id string, data binary", "keys of 1 to 511 bytes, received one of 600"),
        ([(None, b"1")], "id string, data binary", "A row's id is null"),
        ([("a", None)], "id string, data binary", "The row with id 'a' has neither data nor float_data"),
        ([("a", 1)], "id string, label int", "Expected columns id, and data or float_data"),
        ([("a", 1)], "id string, data int", "There is no column 'data' of type int"),
    ],
)
def test_rows_that_can_not_be_written_leave_nothing_behind(lmdb_spark, tmp_path, rows, schema, message):
    frame = lmdb_spark.createDataFrame(rows, schema)
    with fails(message):
        write(frame, tmp_path / "db")
    assert os.listdir(tmp_path) == []


@pytest.mark.once
def test_it_grows_as_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("cos_ml.sources.lmdb.SPARE", 1 << 16)
    monkeypatch.setattr("cos_ml.sources.lmdb.os.path.getsize", lambda file: 0)
    writer = LmdbWriter(str(tmp_path / "db"), True, ["key", "value"], False)
    records = {b"%d" % row: bytes(5000) for row in range(300)}
    batch = pa.record_batch([pa.array(list(records)), pa.array(list(records.values()))], ["key", "value"])
    writer.commit([writer.write(iter([batch])), None])
    assert records_of(tmp_path / "db") == records


@pytest.mark.once
def test_a_folder_that_executors_do_not_see(tmp_path):
    writer = LmdbWriter(str(tmp_path / "db"), True, ["key", "value"], False)
    writer.abort([])
    with pytest.raises(InvalidInputError, match="must be on a file system that the driver and all executors share"):
        writer.write(iter([]))
    assert os.listdir(tmp_path) == []


# --- as SequenceFiles


def test_records_become_sequence_files_and_the_same_columns(lmdb_spark, read, tmp_path):
    floats = number(1, 2) + number(2, 1) + number(3, 1) + one_float(0.5) + one_float(-2)
    path = make(tmp_path / "db", {b"a": RAW, b"b": JPEG, b"c": floats, "ä".encode(): b""})
    lmdb_to_sequence_file(path, str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["db", "out"]
    found = read_sequence_file(lmdb_spark, str(tmp_path / "out"), values="datum")
    assert found.schema == read(path).schema
    assert sorted(found.collect()) == sorted(read(path).collect())
    with pytest.raises(InvalidInputError, match="expected 'raw' or 'datum', received 'image'"):
        read_sequence_file(lmdb_spark, str(tmp_path / "out"), values="image")


def test_sequence_files_of_no_datums(lmdb_spark, tmp_path):
    lmdb_to_sequence_file(make(tmp_path / "db", {b"key": b"no Datum"}), str(tmp_path / "out"))
    with pytest.raises(Exception, match="the value of key b'key'"):
        read_sequence_file(lmdb_spark, str(tmp_path / "out"), values="datum").collect()
