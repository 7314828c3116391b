"""A rank's row groups as petastorm reads them (rank side)."""

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from cos_ml.data.parquet import Shards, column_names
from cos_ml.errors import SetupError

__all__ = ["PetastormReader", "read_groups"]

ATTEMPTS = 10  # to read all row groups in one pass


class PetastormReader:
    """The row groups of one rank of a dataset of local files."""

    def __init__(self, shards: Shards, rank: int) -> None:
        self.shards, self.rank = shards, rank

    def read(
        self, fields: Sequence[str], seed: int, shuffle: bool, row_bytes: int, convert: Callable[..., Any]
    ) -> Iterator[Any]:
        """As ``ParquetReader.read``. petastorm's pool may take a slow start for the end; then it is asked again."""
        columns = column_names([self.shards.names[field] for field in fields], {})
        done = 0
        for _ in range(ATTEMPTS):
            for group in itertools.islice(read_groups(self.shards, columns, self.rank, seed, shuffle), done, None):
                yield convert(group, 0, {})
                done += 1
            if done >= self.shards.filled[self.rank]:
                return


def read_groups(shards: Shards, columns: list[str], rank: int, seed: int, shuffle: bool) -> Iterator[pa.Table]:
    """This rank's row groups that have rows, as petastorm reads them.

    Raises:
        SetupError: petastorm's reader no longer has the pool of workers that this function uses.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)  # petastorm uses deprecated parts of pyarrow
    from petastorm.reader import make_batch_reader
    from petastorm.workers_pool import EmptyResultError

    reader = make_batch_reader(
        [url for _, url, _ in shards.files],
        schema_fields=[re.escape(column) for column in columns],
        reader_pool_type="thread",
        workers_count=1,  # several workers would finish in a different order in each pass
        results_queue_size=2,
        shuffle_row_groups=shuffle,
        seed=seed if shuffle else None,  # petastorm shuffles the shard's row groups whenever it gets a seed
        cur_shard=rank,
        shard_count=min(len(shards.rows), shards.groups),  # petastorm refuses more shards than row groups
    )
    with reader, contextlib.suppress(EmptyResultError):
        # Not public: the reader's own iterator converts to NumPy, where nulls are lost and rows of different sizes are
        # an error that names no row.
        get_results = getattr(getattr(reader, "_workers_pool", None), "get_results", None)
        if get_results is None:
            raise SetupError(
                "This version of petastorm is not supported: its reader has no _workers_pool.get_results. Install "
                'petastorm 0.13, or set feed="parquet".'
            )
        while True:
            yield get_results()
