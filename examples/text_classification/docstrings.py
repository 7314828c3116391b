"""What train.py and score.py share: the Spark session, and the texts.

The texts are sentences that nobody made up for an example, and that are on this machine: from the docstrings of four
libraries. The class of a sentence is the library that it describes. Their names are taken out of the sentences.
"""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
import os
from pathlib import Path
import re
import sys
import tempfile

import cos_ml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

LIBRARIES = ["keras", "numpy", "pandas", "pyspark"]
NAMES = re.compile(r"\b(keras|tensorflow|tf|jax|torch|numpy|np|pandas|pd|pyspark|spark|ps)\b", re.IGNORECASE)
RANKS = 2
DEFAULT_PATH = str(Path(tempfile.gettempdir(), "cos_ml-text-classification"))


def start_spark() -> SparkSession:
    """Start Spark on two cores of this machine, one per rank."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # executors need the Python that has cos_ml
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(cos_ml.__file__).with_name("conf")))  # log errors only
    return SparkSession.builder.master(f"local[{RANKS}]").config("spark.sql.shuffle.partitions", RANKS).getOrCreate()


def load_texts(spark: SparkSession, per_library: int) -> tuple[DataFrame, DataFrame]:
    """Return training and held-out rows: text (string), and label, the library's place in LIBRARIES."""
    rows = []
    for label, library in enumerate(LIBRARIES):
        found = set()  # many sentences occur several times
        for text in sentences(library):
            if text not in found:
                found.add(text)
                rows.append((text, label))
            if len(found) == per_library:
                break
    texts = spark.createDataFrame(rows, "text string, label int").repartition(RANKS, "text").cache()
    held_out = F.pmod(F.hash("text"), F.lit(5)) == 0
    return texts.filter(~held_out), texts.filter(held_out)


def sentences(library: str) -> Iterator[str]:
    """Yield the sentences of a library's docstrings that have from 6 to 40 words, file by file."""
    root = Path(find_spec(library).origin).parent
    for file in sorted(root.rglob("*.py")):
        if "test" in str(file.relative_to(root)):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                prose = re.split(r"\n\s*\n|(?<=[.])\s+", ast.get_docstring(node) or "")
                cleaned = (" ".join(NAMES.sub(" ", text).split()) for text in prose if ">>>" not in text)
                yield from (text for text in cleaned if 6 <= len(text.split()) <= 40)
