"""A short run of ``make fuzz`` for the formats that are read in no time."""

import ctypes

import pytest

from tests.fuzz.cases import M_PERTURB, case, outcome_of
from tests.fuzz.formats import FORMATS

pytestmark = pytest.mark.once

FILES = {
    "lmdb": 400,
    "datum": 400,
    "image": 100,
    "checkpoint": 200,
    "fit": 100,
    "caffemodel": 100,
    "h5": 12,
    "vectors": 60,
}
WRONG_BEFORE = {
    "parquet": [*range(100), 151, 440, 744, 3823, 8300],
    "checkpoint": [235, 7412],
    "caffemodel": [667, 839],
    "vectors": [7574],
}  # numbers of files


@pytest.mark.parametrize("name", [*FILES, "parquet"])
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    (tmp_path / "good").mkdir()
    FORMATS[name].make(tmp_path / "good")
    goods = [file.read_bytes() for file in sorted((tmp_path / "good").iterdir())]
    try:
        found = [
            outcome_of(FORMATS[name], case(FORMATS[name], goods, 0, index), tmp_path / f"one{FORMATS[name].ending}")
            for index in (*range(FILES.get(name, 0)), *WRONG_BEFORE.get(name, []))
        ]
    finally:
        ctypes.CDLL(None).mallopt(M_PERTURB, 0)
    assert set(found) <= {"read", "refused"}
    assert found.count("refused") > len(found) / 10
