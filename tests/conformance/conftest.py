from collections.abc import Iterator

import pytest

from tests.conformance.pair import Pair


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """The two ranks that train all cases."""
    made = Pair()
    yield made
    made.close()
