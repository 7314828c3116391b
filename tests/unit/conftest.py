"""Small networks and spooled rows, without Spark."""

import numpy as np
import pytest
from hypothesis import settings

from cos_ml.data.spool import Spool
from cos_ml.network.keras_import import import_keras
from tests.support.ranks import RankRunner
from tests.support.spools import record_batch

keras = import_keras()

settings.register_profile("unit", deadline=None, max_examples=25, database=None, derandomize=True)
settings.load_profile("unit")


@pytest.fixture
def spool():
    """A function that spools arrays by field, in batches of so many rows; what it returns is closed in the end."""
    made = []

    def fill(spec, columns, size=1000):
        made.append(Spool(spec))
        batch = record_batch(columns)
        made[-1].fill(batch.slice(start, size) for start in range(0, batch.num_rows, size))
        return made[-1]

    yield fill
    for one in made:
        one.close()


@pytest.fixture
def classifier():
    """Four numbers in, probabilities of three classes out; always with the same weights."""
    return keras.Sequential(
        [
            keras.Input((4,), name="numbers"),
            keras.layers.Dense(5, activation="relu", name="hidden", kernel_initializer=_spread(0)),
            keras.layers.Dense(3, activation="softmax", name="classes", kernel_initializer=_spread(1)),
        ],
        name="classifier",
    )


def _spread(seed):
    return keras.initializers.RandomUniform(-1, 1, seed=seed)


@pytest.fixture
def numbers():
    """A function that makes float32 rows, always the same."""

    def make(*shape, seed=0):
        return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def ranks():
    """Ranks without Spark: ``ranks.fit`` trains on them."""
    runner = RankRunner()
    yield runner
    runner.close()
