"""Our reader of LMDB's pages, against the lmdb package on good files, and on damaged ones."""

import os
import struct

import lmdb
import pytest

from cos_ml.errors import InvalidInputError
from cos_ml.sources.lmdb import LmdbDataSource, LmdbReader
from cos_ml.sources.lmdb_pages import Malformed, NamedDatabase, Span, open_pages

pytestmark = pytest.mark.once

KINDS = {
    "plain": {},
    "reverse": {"reverse_key": True},
    "numbers": {"integerkey": True},
    "duplicates": {"dupsort": True},
    "fixed": {"dupsort": True, "dupfixed": True},
    "integers": {"dupsort": True, "dupfixed": True, "integerdup": True},
}


def records_for(kind):
    """Keys with one value, some, and so many that they need a tree of their own; values of several sizes."""
    if kind == "numbers":
        return [(row.to_bytes(8, "little"), b"%d" % row) for row in (*range(300), 2**40)]
    if "dupsort" not in KINDS[kind]:
        return [(b"%05d" % row, bytes([row % 256]) * (row**2 % 9973)) for row in range(500)]
    size = 4 if kind == "integers" else 30
    several = [(b"many", row) for row in range(2000)] + [(b"some", row) for row in range(5)]
    return [(key, row.to_bytes(size, "little")) for key, row in [(b"one", 1), *several, (b"z", 3)]]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file with a named database of each kind."""
    path = tmp_path_factory.mktemp("kinds") / "data.mdb"
    with lmdb.open(str(path), subdir=False, map_size=1 << 26, max_dbs=len(KINDS), sync=False) as environment:
        for kind, how in KINDS.items():
            database = environment.open_db(kind.encode(), **how)
            with environment.begin(write=True, db=database) as transaction:
                for key, value in records_for(kind):
                    transaction.put(key, value)
    return str(path)


def read(path, count=3, **options):
    reader = LmdbReader(path, True, count, ["key", "value"], **options)
    parts = [list(reader.read(part)) for part in reader.partitions()]
    return [(row["key"], row["value"]) for part in parts for batch in part for row in batch.to_pylist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 50])
def test_a_named_database_is_read_as_the_package_reads_it(file, kind, count):
    with lmdb.open(file, subdir=False, readonly=True, lock=False, max_dbs=9) as environment:
        database = environment.open_db(kind.encode(), create=False)
        with environment.begin(db=database) as transaction:
            expected = list(transaction.cursor())
            assert transaction.stat(database)["entries"] == LmdbReader(file, True, 1, [], kind).count_rows()
    assert sorted(expected) == sorted(records_for(kind))
    assert read(file, count, database=kind) == expected


def test_named_databases_are_listed(file):
    for raw in (True, False):
        with pytest.raises(InvalidInputError, match=r"choose one of \['duplicates', .*'reverse'\] with the option"):
            LmdbReader(file, raw, None, []).partitions()
    with pytest.raises(InvalidInputError, match=r"has no database 'Plain'. Choose one of \['duplicates'"):
        LmdbReader(file, True, None, [], "Plain").partitions()


def test_a_file_without_named_databases(tmp_path):
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"x", b"y")
    assert read(str(tmp_path)) == [(b"x", b"y")]
    with pytest.raises(InvalidInputError, match=r"has no database 'x'\. It has no named ones: leave the option out"):
        read(str(tmp_path), database="x")


def test_records_beside_named_databases_are_found_out_by_the_task(tmp_path):
    with lmdb.open(str(tmp_path), max_dbs=1, map_size=1 << 24) as environment:
        environment.open_db(b"z")
        with environment.begin(write=True) as transaction:
            for row in range(500):
                transaction.put(b"%05d" % row, bytes(100))
    with pytest.raises(InvalidInputError, match=r"has named databases: choose one of \['z'\]"):
        read(str(tmp_path))


def test_writing_takes_no_name():
    from pyspark.sql import types as T

    schema = T.StructType().add("key", "binary").add("value", "binary")
    with pytest.raises(InvalidInputError, match=r"Option database: .* received 'x'. Leave the option out"):
        LmdbDataSource({"path": "x", "values": "raw", "database": "x"}).writer(schema, False)


def test_reading_needs_no_package(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    assert len(read(file, database="plain")) == 500


# --- files from elsewhere


def changed(file, tmp_path, at, value):
    content = bytearray(open(file, "rb").read())
    content[at : at + len(value)] = value
    (tmp_path / "data.mdb").write_bytes(content)
    return str(tmp_path)


@pytest.fixture
def small(tmp_path):
    """Two levels of pages: the root is an inner page."""
    path = str(tmp_path / "small")
    with lmdb.open(path, map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for row in range(300):
            transaction.put(b"%05d" % row, bytes(100))
    return str(tmp_path / "small" / "data.mdb")


def root_of(file):
    with open_pages(file) as pages:
        return pages.main.root, pages.size


def test_a_page_that_leads_back_to_itself(small, tmp_path):
    root, size = root_of(small)
    [first] = struct.unpack_from("=H", open(small, "rb").read(), root * size + 16)
    path = changed(small, tmp_path, root * size + first, root.to_bytes(6, "little")[:4])
    with pytest.raises(
        InvalidInputError, match=r"data.mdb is damaged: it (has a tree that is too deep|refers to the same)"
    ):
        read(path, count=100)


def test_pages_that_are_referred_to_again_and_again(small, tmp_path):
    """All nodes of the root lead to one leaf: as often as there are pages it is read, and no oftener."""
    root, size = root_of(small)
    page = open(small, "rb").read()[root * size :][:size]
    nodes = struct.unpack_from(f"={(int.from_bytes(page[12:14], 'little') - 16) // 2}H", page, 16)
    for at in nodes:
        page = page[:at] + page[nodes[0] :][:6] + page[at + 6 :]
    path = changed(small, tmp_path, root * size, page)
    with open_pages(f"{path}/data.mdb") as pages:
        again = [Span(root, 0, len(nodes))] * 100
        with pytest.raises(Malformed, match="refers to the same pages again and again"):
            list(pages.records(again))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\7", "has another page in the place of page"),
        (10, b"\0", "that is none of a tree"),
        (12, b"\xff\xff", "has a page whose table does not fit into it"),
        (12, b"\x03\0", "has a page whose table does not fit into it"),
        (16, b"\xff\xff", "has a node that does not fit into its page"),
        (None, b"\xff\xff\xff\x7f", "refers to page 2147483647, but its pages are 2 to"),
        (None, b"\1\0\0\0", "refers to page 1, but its pages"),
    ],
)
def test_what_contradicts_the_format_is_named(small, tmp_path, offset, value, message):
    root, size = root_of(small)
    if offset is None:
        [offset] = struct.unpack_from("=H", open(small, "rb").read(), root * size + 16)
    with pytest.raises(InvalidInputError, match=f"data.mdb is damaged: it .*{message}"):
        read(changed(small, tmp_path, root * size + offset, value), count=100)


def test_a_file_that_is_cut_off_while_it_is_read(small):
    """No signal (SIGBUS) that would kill the process, as a memory map has it."""
    reader = LmdbReader(small, True, 1, ["key"])
    [part] = reader.partitions()
    os.truncate(small, os.path.getsize(small) // 2)
    with pytest.raises(InvalidInputError, match="is truncated"):
        list(reader.read(part))


def test_large_values_are_handed_over_a_few_at_a_time(tmp_path):
    """A leaf refers to hundreds of them."""
    with lmdb.open(str(tmp_path), map_size=1 << 27) as environment, environment.begin(write=True) as transaction:
        for row in range(90):
            transaction.put(b"%05d" % row, bytes(1 << 19))
    with open_pages(str(tmp_path / "data.mdb")) as pages:
        [part] = pages.parts(pages.main, 1)
    with open_pages(str(tmp_path / "data.mdb")) as pages:
        sizes = [len(values) for _, values in pages.records(part)]
    assert sum(sizes) == 90
    assert max(sizes) == 2


def test_what_pages_say_of_themselves_is_no_error_of_python(file):
    with open_pages(file) as pages:
        part = pages.parts(pages.main, 1)[0]
    with open_pages(file) as pages, pytest.raises(NamedDatabase):
        list(pages.records(part))
    with pytest.raises(Malformed, match="does not begin as one"):
        open_pages(__file__).__enter__()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("file://{}/a b", "a b"),
        ("file://{}/a%20b", "a b"),
        ("file:{}/a%20b", "a b"),
        ("file://localhost{}/%C3%A4%25%23", "ä%#"),
        ("file://{}/a%20b", "a%20b"),
        ("{}/a%20b", "a%20b"),
        ("file://{}/a#b+c", "a#b+c"),
    ],
)
def test_file_urls(tmp_path, url, name):
    (tmp_path / name).mkdir()
    assert LmdbDataSource({"path": url.format(tmp_path)}).path == str(tmp_path / name)


def test_a_url_of_another_machine():
    assert LmdbDataSource({"path": "s3a://x/y"}).path == "s3a://x/y"
    for url in ("file://host/x", "file:x", ""):
        with pytest.raises(InvalidInputError, match="Expected the path of an LMDB database, or its URL"):
            LmdbDataSource({"path": url})
