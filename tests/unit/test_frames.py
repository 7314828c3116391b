from contextlib import ExitStack

import pytest

from cos_ml.data.columns import Column
from cos_ml.data.frames import SETTING, small_batches
from cos_ml.spec import TrainSpec


class Session:
    """The settings of a session."""

    def __init__(self, **settings):
        self.settings = settings
        self.conf = self

    def get(self, name, default):
        return self.settings.get(name, default)

    def set(self, name, value):
        self.settings[name] = str(value)

    def unset(self, name):
        del self.settings[name]


@pytest.mark.parametrize(
    ("size", "users", "used"),
    [(784, None, 668), (784, "100", 100), (784, "0", 668), (4, None, 10_000), (100_000, None, 16), (None, None, 2048)],
)
def test_batches_are_small_while_a_fit_runs(size, users, used):
    session = Session(**({SETTING: users} if users else {}))
    before = dict(session.settings)
    with small_batches(session, TrainSpec((Column("x", "x0", (size,)),), ())):
        assert session.settings == {SETTING: str(used)}
    assert session.settings == before


def test_fits_side_by_side_share_the_size_of_batches():
    session = Session(**{SETTING: "5000"})
    with ExitStack() as one, ExitStack() as other:
        for stack, size in ((one, 784), (other, 7840)):
            stack.enter_context(small_batches(session, TrainSpec((Column("x", "x0", (size,)),), ())))
        assert session.settings == {SETTING: "66"}
        one.close()
        assert session.settings == {SETTING: "66"}
        other.close()
        assert session.settings == {SETTING: "5000"}


def test_sessions_have_settings_of_their_own():
    one, other = Session(**{SETTING: "5000"}), Session()
    spec = TrainSpec((Column("x", "x0", (784,)),), ())
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(small_batches(one, spec))
        second.enter_context(small_batches(other, spec))
        first.close()
        assert one.settings == {SETTING: "5000"}
        assert other.settings == {SETTING: "668"}
        second.close()
        assert other.settings == {}
