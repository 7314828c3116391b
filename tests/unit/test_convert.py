"""``cos-ml convert`` without Spark: what is made, and what becomes of a conversion that is killed."""

import io
import os
import subprocess
import sys

import lmdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from cos_ml import cli
from cos_ml.errors import InvalidInputError
from cos_ml.sources import convert
from cos_ml.sources import lmdb as lmdb_source
from cos_ml.sources.records import DATUMS
from tests.support.datums import JPEG, RAW, blob, number, one_float

FLOATS = number(1, 2) + number(2, 1) + number(3, 1) + one_float(0.5) + one_float(-2)
ROWS = 600


def records_of(path):
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


@pytest.fixture
def database(tmp_path):
    """A function that writes records as a database."""

    def make(records, name="lmdb"):
        environment = lmdb.open(str(tmp_path / name), map_size=1 << 26)
        with environment, environment.begin(write=True) as transaction:
            for key, value in records.items():
                transaction.put(key, value)
        return str(tmp_path / name)

    return make


@pytest.fixture
def many(database):
    """A database of several parts, with ``small_parts``."""
    return database({b"%05d" % row: number(5, row) + blob(4, bytes([row % 256]) * 300) for row in range(ROWS)})


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(convert, "PART_BYTES", 2000)
    monkeypatch.setattr(lmdb_source, "PARTITION_BYTES", 50_000)


@pytest.fixture
def photos(tmp_path):
    """A folder of files, and the lines that label them."""
    names = [f"class {row % 3}/{row}.jpg" for row in range(20)]
    for row, name in enumerate(names):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([row]) * 500)
    (tmp_path / "labels.txt").write_text("".join(f"{name}\t {row % 3 - 1}\n" for row, name in enumerate(names)) + "\n")
    return tmp_path


def folder(path):
    """All files below, by name."""
    return {name: (path / name).read_bytes() for name in sorted(os.listdir(path))}


def test_datums_to_parquet_and_back(database, tmp_path):
    source = database({b"a": RAW, b"b": JPEG, b"c": FLOATS})
    convert.lmdb_to_parquet(source, str(tmp_path / "parquet"))
    rows = ds.dataset(tmp_path / "parquet").to_table().to_pylist()
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert rows[0] == {
        "id": "a", "label": 7, "channels": 3, "height": 2, "width": 1, "encoded": False, "data": b"abcdef",
        "float_data": None,
    }  # fmt: skip
    assert rows[2]["float_data"] == [0.5, -2.0]
    convert.parquet_to_lmdb(str(tmp_path / "parquet"), str(tmp_path / "back"))
    # The same as what another library reads, though a Datum has several ways to be written.
    again, before = (lmdb_source.LmdbReader(path, False, None, DATUMS.names) for path in (
        str(tmp_path / "back"), source))  # fmt: skip
    tables = [pa.Table.from_batches(b for part in one.partitions() for b in one.read(part)) for one in (again, before)]
    assert tables[0] == tables[1]
    assert sorted(os.listdir(tmp_path)) == ["back", "lmdb", "parquet"]


def test_plain_keys_and_values(database, tmp_path):
    records = {b"\xff\x00": b"", b"key": b"value"}
    convert.lmdb_to_parquet(database(records), str(tmp_path / "parquet"), raw=True)
    convert.parquet_to_lmdb(str(tmp_path / "parquet"), str(tmp_path / "back"), raw=True)
    assert records_of(tmp_path / "back") == records


def test_an_empty_database(database, tmp_path):
    convert.lmdb_to_parquet(database({}), str(tmp_path / "parquet"))
    assert ds.dataset(tmp_path / "parquet").to_table().schema == DATUMS


def test_many_parts(many, small_parts, tmp_path):
    convert.lmdb_to_parquet(many, str(tmp_path / "parquet"))
    assert len(os.listdir(tmp_path / "parquet")) > 3
    assert ds.dataset(tmp_path / "parquet").to_table()["label"].to_pylist() == list(range(ROWS))


def test_images_with_their_labels(photos, small_parts):
    convert.images_to_parquet(str(photos / "photos"), str(photos / "out"), labels=str(photos / "labels.txt"))
    assert len(os.listdir(photos / "out")) == 5
    rows = ds.dataset(photos / "out").to_table().to_pylist()
    assert rows[4] == {"id": "class 1/4.jpg", "label": 0, "encoded": True, "data": bytes([4]) * 500}
    assert [row["label"] for row in rows] == [row % 3 - 1 for row in range(20)]
    # What Caffe's own tool would have made of them.
    convert.parquet_to_lmdb(str(photos / "out"), str(photos / "lmdb"))
    found = records_of(photos / "lmdb")[b"class 1/4.jpg"]
    assert found.endswith(blob(4, bytes([4]) * 500) + number(5, 0) + number(7, 1))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("class 0/0.jpg 1\nclass 1/1.jpg cat\n", "line 2: expected an image's path, white space and an integer"),
        ("class 0/0.jpg\n", "line 1: expected an image's path"),
        ("class 0/0.jpg 12345678901\n", "line 1: expected an image's path"),
        ("class 0/0.jpg 1\n\nclass 0/0.jpg 2\n", "line 3: 'class 0/0.jpg' is listed twice"),
        ("class 0/0.jpg 1\nclass 0/x.jpg 1\nclass 0/y.jpg 1\n", "2 of the 3 images .* are not .* 'class 0/x.jpg'"),
    ],
)
def test_label_files_that_are_wrong(photos, lines, message):
    (photos / "labels.txt").write_text(lines)
    with pytest.raises(InvalidInputError, match=message):
        convert.images_to_parquet(str(photos / "photos"), str(photos / "out"), labels=str(photos / "labels.txt"))
    assert not {"out", ".out.converting"} & set(os.listdir(photos))


def test_numbers_of_other_types_and_a_key_of_another_name(tmp_path):
    table = pa.table({"path": [1, 2], "data": [b"x", b"y"], "label": pa.array([3, 4], pa.int64()), "more": [0.5, 1]})
    pq.write_table(table, tmp_path / "rows.parquet")
    convert.parquet_to_lmdb(str(tmp_path / "rows.parquet"), str(tmp_path / "out"), id_column="path")
    found = records_of(tmp_path / "out")
    assert list(found) == [b"1", b"2"]
    assert blob(4, b"x") + number(5, 3) in found[b"1"]


def test_columns_in_any_case(tmp_path):
    pq.write_table(pa.table({"ID": ["a"], "Data": [b"x"], "LABEL": [3]}), tmp_path / "rows.parquet")
    convert.parquet_to_lmdb(str(tmp_path / "rows.parquet"), str(tmp_path / "out"))
    assert blob(4, b"x") + number(5, 3) in records_of(tmp_path / "out")[b"a"]
    pq.write_table(pa.table({"id": ["a"], "Id": ["b"], "DATA": [b"x"]}), tmp_path / "rows.parquet")
    convert.parquet_to_lmdb(str(tmp_path / "rows.parquet"), str(tmp_path / "exact"))
    assert list(records_of(tmp_path / "exact")) == [b"a"]
    with pytest.raises(InvalidInputError, match=r"Column 'ID' is ambiguous: it means each of \['id', 'Id'\]"):
        convert.parquet_to_lmdb(str(tmp_path / "rows.parquet"), str(tmp_path / "more"), id_column="ID")


def test_labels_in_the_names_of_folders(tmp_path):
    for label in (0, 1):
        (tmp_path / f"rows/label={label}").mkdir(parents=True)
        pq.write_table(pa.table({"id": [f"row {label}"], "data": [b"x"]}), tmp_path / f"rows/label={label}/0.parquet")
    convert.parquet_to_lmdb(str(tmp_path / "rows"), str(tmp_path / "out"))
    assert blob(4, b"x") + number(5, 1) in records_of(tmp_path / "out")[b"row 1"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "b", "a"], "data": [b"x", b"y", b"z"]}, "Two rows have the key b'a'"),
        ({"id": ["a", "b", "a"], "data": [b"x", b"y", b"x"]}, "has 3 rows, but only 2 different keys"),
        ({"id": ["a", None], "data": [b"x", b"y"]}, "id is null"),
        ({"id": ["a"], "data": pa.array([None], pa.binary())}, "neither data nor float_data"),
        ({"id": ["a"], "data": [b"x"], "label": ["cat"]}, "can't be converted .*cat"),
        ({"id": ["a"], "data": [b"x"], "label": [2**40]}, "can't be converted"),
        ({"id": ["a"], "label": [1]}, "Expected columns id, and data or float_data"),
        ({"data": [b"x"]}, "Expected columns id, and data or float_data"),
        ({"id": ["a" * 600], "data": [b"x"]}, "keys of 1 to 511 bytes"),
    ],
)
def test_rows_that_are_no_records(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(InvalidInputError, match=message):
        convert.parquet_to_lmdb(str(tmp_path / "rows.parquet"), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["rows.parquet"]


def test_what_is_no_parquet(tmp_path):
    (tmp_path / "rows.parquet").write_text("no")
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("rows.parquet", "can't be read as Parquet"),
        ("nowhere", "can't be"),
        ("empty", "no Parquet"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            convert.parquet_to_lmdb(str(tmp_path / source), str(tmp_path / "out"))


def test_the_folder_of_a_table_is_refused(tmp_path):
    (tmp_path / "table" / "_delta_log").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match="table of Delta Lake: its folder also has files of deleted"):
        convert.parquet_to_lmdb(tmp_path / "table", tmp_path / "lmdb")


def test_a_target_that_is_there_stays(database, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InvalidInputError, match="already exists"):
        convert.lmdb_to_parquet(database({b"a": RAW}), str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


# A process that ends by SIGKILL at the n-th call of a function.
KILLED = """
import os, signal, sys
from cos_ml import cli
from cos_ml.sources import convert, lmdb
convert.PART_BYTES, lmdb.PARTITION_BYTES, convert.BATCH_ROWS = 2000, 50_000, 20
homes = {"lmdb": lmdb, "convert": convert, "convert.shutil": convert.shutil}
home, name, calls = homes[sys.argv[1]], sys.argv[2], int(sys.argv[3])
function = getattr(home, name)
def counted(*arguments, **named):
    global calls
    calls -= 1
    if calls < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **named)
setattr(home, name, counted)
cli.main(sys.argv[4:])
"""


def killed(home, name, calls, *arguments):
    done = subprocess.run([sys.executable, "-c", KILLED, home, name, str(calls), *map(str, arguments)], timeout=60)
    assert done.returncode == -9


@pytest.mark.parametrize("at", ["write_text", "write_parquet_part"])
def test_a_killed_conversion_resumes(many, small_parts, tmp_path, monkeypatch, capsys, at):
    convert.lmdb_to_parquet(many, str(tmp_path / "whole"))
    killed("convert", at, 3, "convert", "lmdb-to-parquet", many, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    written = []
    write = convert.write_parquet_part
    monkeypatch.setattr(convert, "write_parquet_part", lambda *part: written.append(part[3]) or write(*part))
    assert cli.main(["convert", "lmdb-to-parquet", many, str(tmp_path / "out")]) == 0
    parts = len(os.listdir(tmp_path / "whole"))
    assert written == list(
        range({"write_text": 2, "write_parquet_part": 3}[at], parts)
    )  # the first write_text is the plan's
    assert folder(tmp_path / "out") == folder(tmp_path / "whole")
    assert not (tmp_path / ".out.converting").exists()
    assert "rows are already converted" in capsys.readouterr().err


def test_a_database_that_was_killed_within_a_part(many, small_parts, tmp_path):
    convert.lmdb_to_parquet(many, str(tmp_path / "parquet"))
    killed("lmdb", "put_records", 12, "convert", "parquet-to-lmdb", tmp_path / "parquet", tmp_path / "out")
    convert.parquet_to_lmdb(str(tmp_path / "parquet"), str(tmp_path / "out"))
    convert.parquet_to_lmdb(str(tmp_path / "parquet"), str(tmp_path / "whole"))
    assert records_of(tmp_path / "out") == records_of(tmp_path / "whole")
    assert len(records_of(tmp_path / "out")) == ROWS


def test_another_source_starts_afresh(photos, small_parts):
    arguments = ["convert", "images-to-parquet", photos / "photos", photos / "out", "--labels", photos / "labels.txt"]
    killed("convert", "write_text", 3, *arguments)
    (photos / "photos/class 0/0.jpg").write_bytes(b"new")
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert ds.dataset(photos / "out").to_table()["data"][0].as_py() == b"new"


def test_a_source_of_the_same_size_and_another_content_starts_afresh(photos, small_parts):
    arguments = ["convert", "images-to-parquet", photos / "photos", photos / "out", "--labels", photos / "labels.txt"]
    killed("convert", "write_text", 3, *arguments)
    first = photos / "photos/class 0/0.jpg"
    again = bytes(first.stat().st_size)
    first.write_bytes(again)
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert ds.dataset(photos / "out").to_table()["data"][0].as_py() == again


def test_labels_that_are_no_text(photos, capsys):
    (photos / "labels.txt").write_bytes("Käse 1\n".encode("latin-1"))
    arguments = ["convert", "images-to-parquet", photos / "photos", photos / "out", "--labels", photos / "labels.txt"]
    assert cli.main([str(argument) for argument in arguments]) == 1
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_what_was_left_after_the_target_was_in_place(many, tmp_path):
    """Killed between its last two steps; later the target was removed."""
    target = tmp_path / "out"
    for _ in range(2):
        killed("convert.shutil", "rmtree", 0, "convert", "lmdb-to-parquet", many, target)
        assert len(ds.dataset(target).to_table()) == ROWS
        for file in target.iterdir():
            file.unlink()
        target.rmdir()


def test_two_at_once(many, tmp_path):
    target = str(tmp_path / "out")
    with convert.working_folder(target, []), pytest.raises(InvalidInputError, match="Another process"):
        convert.lmdb_to_parquet(many, target)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert cli.main(["convert", "lmdb-to-parquet", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("cos-ml: There is no LMDB database at ")
    assert cli.main(["convert", "lmdb-to-parquet", "hdfs://host/set", str(tmp_path / "out")]) == 1
    assert "a database on this machine, received 'hdfs://host/set'" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


class Gone(io.StringIO):
    """The pipe of a reader that has ended."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [None, Gone()])
def test_nobody_reads_the_bar(many, small_parts, tmp_path, monkeypatch, stream):
    """A conversion ends as one that is watched does, and resumes from marks that count its rows."""
    monkeypatch.setattr(sys, "stderr", stream)
    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_parquet_part", interrupted_after(3))
        with pytest.raises(KeyboardInterrupt):
            convert.lmdb_to_parquet(many, tmp_path / "out")
    assert cli.main(["convert", "lmdb-to-parquet", many, str(tmp_path / "out")]) == 0
    assert ds.dataset(tmp_path / "out").count_rows() == ROWS


def interrupted_after(calls):
    """``write_parquet_part``, interrupted at a later call."""
    write, left = convert.write_parquet_part, iter(range(calls))

    def part(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*arguments)

    return part


def test_ctrl_c(many, tmp_path, monkeypatch, capsys):
    def stopped(*part):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "write_parquet_part", stopped)
    assert cli.main(["convert", "lmdb-to-parquet", many, str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.endswith("cos-ml: interrupted\n")
