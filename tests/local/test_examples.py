"""The examples, as a user runs them: on small data, each in a process of its own."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.support.examples import run

pytestmark = pytest.mark.processes


def write_idx(path: Path, array: np.ndarray) -> None:
    """A file as MNIST's are."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.mark.long
def test_from_lmdb_to_logistic_regression(tmp_path):
    digits = load_digits()
    pixels = np.kron(digits.images * 255 / 16, np.ones((1, 3, 3)))
    images = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    for part, rows in (("train", slice(0, 1437)), ("t10k", slice(1437, None))):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images[rows])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", digits.target[rows])
    run("lmdb_to_logistic_regression/make_lmdb.py", str(tmp_path))
    printed = run("lmdb_to_logistic_regression/train.py", str(tmp_path))
    accuracies = re.findall(r"^(\w+): +(0\.\d{4}) test accuracy$", printed, re.MULTILINE)
    assert [name for name, _ in accuracies] == ["lenet_prediction", "prediction"]
    assert all(float(accuracy) > 0.7 for _, accuracy in accuracies)
    assert (tmp_path / "mnist_pipeline" / "stages").is_dir()


@pytest.mark.long
def test_from_a_folder_of_images():
    printed = run("image_folder/train.py")
    (accuracy,) = re.findall(r"^held-out accuracy for 10 classes: (0\.\d{4})$", printed, re.MULTILINE)
    assert float(accuracy) > 0.9


@pytest.mark.long
def test_captions():
    printed = run("captions/train.py", "1000", "3")
    (accuracy,) = re.findall(r"^token accuracy on held-out pictures: (0\.\d{4})$", printed, re.MULTILINE)
    assert float(accuracy) > 0.4  # 0.98 takes all pictures and epochs
    assert re.search(r"^captions without a mistake: 0\.\d{4}$", printed, re.MULTILINE)
    assert re.search(r"^\|an? [a-z ]+\|(an?|two) [a-z ]+\|0\.\d{3} +\|$", printed, re.MULTILINE)


@pytest.mark.long
def test_page_ranking():
    printed = run("page_ranking/train.py", "800")
    found = dict(re.findall(r"^(as shown|LogisticRegression|network) +(0\.\d{4})$", printed, re.MULTILINE))
    assert len(found) == 3
    assert float(found["network"]) > max(float(found["LogisticRegression"]), float(found["as shown"]))
