import pytest

from cos_ml import spark_internals
from cos_ml.errors import InvalidInputError


class Session:
    """As much of a session of Spark Connect as is looked at."""

    def __init__(self, **conf):
        self.conf = {name.replace("_", "."): value for name, value in conf.items()}


class Classic(Session):
    _jsparkSession = None


def test_a_session_of_connect_is_known_by_what_it_lacks():
    assert spark_internals.is_connect(Session())
    assert not spark_internals.is_connect(Classic())


def test_networks_that_are_too_large_for_a_query(monkeypatch):
    monkeypatch.setattr(spark_internals, "LONGEST_MESSAGE", 3 << 20)
    megabyte = bytes(1 << 20)
    spark_internals.check_size(Session(), [megabyte] * 2)
    spark_internals.check_size(Classic(), [megabyte] * 4)
    with pytest.raises(InvalidInputError, match="has 4 MiB, and Spark Connect sends a query of 3 MiB"):
        spark_internals.check_size(Session(), [megabyte] * 4)
