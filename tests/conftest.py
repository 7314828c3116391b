"""Settings of all tests."""

import os

import pytest

# The JVMs of tests live for minutes: their second compiler would use more processor time than it saves.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

# The files of a folder that take longest come first, so that the processes of a run end at the same time.
LONGEST = (
    "test_tuning", "test_resuming", "test_parquet_feed", "test_saving", "test_native_columns", "test_failures",
    "test_examples", "test_notebooks",
    "test_steps", "test_grid", "test_train", "test_resume", "test_optimizers", "test_class_weights", "test_untrusted",
    "test_predict",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = list(dict.fromkeys(item.path.parent for item in items))
    order = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (folders.index(item.path.parent), order.get(item.path.stem, len(order))))
