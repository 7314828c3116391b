"""What an object remembers, through JSON and arrays, and back: the same values of the same types."""

import contextlib
import datetime
import enum
import json
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.data import blobs
from cos_ml.network.keras_import import import_keras
from cos_ml.rank.callback_state import get_state, set_state

keras = import_keras()


class Holder:
    pass


class Phase(enum.Enum):
    WARM = "warm"


class Level(enum.IntEnum):
    HIGH = 2


def through(one, other=None):
    """Another object that has been given the state of ``one``, as a checkpoint stores it."""
    other = other or Holder()
    plain, arrays, lost = get_state(one)
    assert not lost
    set_state(other, json.loads(json.dumps(plain)), blobs.load(b"".join(blobs.dump(arrays))))
    return other


def came_back(value):
    one = Holder()
    one.value = value
    return through(one).value


def same(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, float) and one != one:
        return other != other
    if isinstance(one, Mapping):
        return len(one) == len(other) and all(
            same(a, b) and same(one[a], other[b]) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


NOW = datetime.datetime(2024, 10, 27, 2, 30, 1, 5)
VALUES = {
    "numbers": [None, True, 1, 2**70, -0.5, float("inf"), float("nan"), "text \ud83d"],
    "keys": {1: "a", "1": "b", (1, 2): "c", None: "d", 0.5: "e", frozenset([1]): "f", NOW: "g", Phase.WARM: 1},
    "tag": {"type": "dict", "items": [["a", 1]], "index": 3},
    "tuple": (1, (2, [3, ()])),
    "set": {1, (2, 3), "x"},
    "frozenset": frozenset([1.5]),
    "deque": deque([1, {2}], maxlen=5),
    "endless deque": deque(),
    "ordered": OrderedDict([("b", 1), ("a", 2)]),
    "counter": Counter("abba"),
    "defaultdict": {"a": defaultdict(list, {1: [2]}), "b": defaultdict(None, {1: 2})},
    "array": np.arange(6.0).reshape(2, 3),
    "empty": np.zeros((0, 3), np.int8),
    "arrays": [np.array(3), {"a": (np.array(["a", "bcd"]), np.array([NOW], "M8[us]"))}, np.zeros(2, bool)],
    "bfloat16": np.ones(3, ml_dtypes.bfloat16),
    "scalars": [np.float32(0.1), np.int64(3), np.bool_(True), np.float64(0.1), np.str_("x"), np.complex64(1j)],
    "times": [NOW, NOW.date(), NOW.time(), NOW.replace(tzinfo=datetime.UTC), datetime.timedelta(-3, 5, 7)],
    "zones": [
        NOW.replace(tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        NOW.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        NOW.time().replace(tzinfo=datetime.UTC),
    ],
    "bytes": [b"\x00\xff", bytearray(b"x"), 1 + 2j, range(3, 9, 2), slice(1, None, 2)],
    "exact": [Decimal("0.10"), Fraction(1, 3), UUID(int=5), Path("/tmp/x")],
    "enums": [Phase.WARM, Level.HIGH],
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_it_was(name):
    assert same(VALUES[name], came_back(VALUES[name]))


def test_the_end_of_a_deque_and_the_hour_that_comes_twice():
    assert came_back(deque([1, 2], maxlen=2)).maxlen == 2
    assert came_back(VALUES["zones"][0]).fold == 1
    assert came_back(VALUES["zones"][0]).utcoffset() == datetime.timedelta(hours=1)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
KEYS = st.integers() | st.text(max_size=3) | st.tuples(st.integers(), st.none()) | st.frozensets(st.integers())
PLAIN = st.recursive(
    LEAVES,
    lambda one: (
        st.lists(one) | st.tuples(one, one) | st.dictionaries(KEYS, one, max_size=3) | st.sets(KEYS, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_any_nesting_comes_back(value):
    assert same(value, came_back(value))


def test_what_came_back_can_be_changed():
    found = came_back([np.zeros(2), deque([np.ones(1)])])
    found[0][0] = 5
    found[1][0][0] = 6


def test_a_checkpoint_does_not_change_with_the_callback():
    one = Holder()
    one.value = np.zeros(2)
    _, arrays, _ = get_state(one)
    one.value[0] = 5
    assert arrays["0"].tolist() == [0, 0]


def test_variables_tensors_and_generators():
    one, other = Holder(), Holder()
    for holder in (one, other):
        holder.mean, holder.total = keras.Variable(0.0), tf.Variable([0, 0])
        holder.draw, holder.shuffle = np.random.default_rng(0), random.Random(0)
    kept = other.mean, other.draw
    one.mean.assign(3.0)
    one.total.assign([1, 2])
    one.last = tf.constant([1.5])
    one.draw.random(5), one.shuffle.random()
    through(one, other)
    assert (other.mean, other.draw) == kept  # whatever else refers to them sees the state, too
    assert float(other.mean) == 3
    assert other.total.numpy().tolist() == [1, 2]
    assert isinstance(other.last, tf.Tensor)
    assert (other.draw.random(), other.shuffle.random()) == (one.draw.random(), one.shuffle.random())


class Own(keras.callbacks.Callback):
    def __init__(self, threshold=3, seen=None, helper=None):
        super().__init__()
        self.threshold, self.helper, self.op = threshold, helper, np.less
        self.seen = seen or []


def test_arguments_that_a_callback_changes():
    one = Own(threshold=5)
    one.threshold, one.seen = 4, [1]
    other = through(one, Own(threshold=5))
    assert (other.threshold, other.seen, other.op) == (4, [1], np.less)


def test_keras_callbacks_keep_their_arguments():
    """EarlyStopping changes the sign of its min_delta at the beginning of each training."""
    one = keras.callbacks.EarlyStopping("loss", min_delta=0.1, mode="min")
    one.set_params({"epochs": 2})
    one.on_train_begin()
    one.wait, one.best, one.best_weights = 2, np.float32(0.5), [np.ones(2), np.zeros((1, 3))]
    other = through(one, keras.callbacks.EarlyStopping("loss", min_delta=0.1, mode="min"))
    assert (other.wait, other.best, other.min_delta, other.params) == (2, 0.5, 0.1, None)
    assert [array.tolist() for array in other.best_weights] == [[1, 1], [[0, 0, 0]]]


def endless():
    value = []
    value.append(value)
    return value


class Local(np.ndarray):
    pass


@pytest.mark.parametrize(
    "value",
    [
        object(), [object()], {"a": {1: object()}}, endless(), np.array([object()]), np.zeros(2).view(Local),
        np.zeros(2, [("a", "f4")]), defaultdict(lambda: 1), [keras.Variable(1.0)], keras.metrics.Mean(),
        enum.Enum("Unknown", "A").A, np.ma.masked_array([1, 2]), tf.constant(["text"]),
    ],
)  # fmt: skip
def test_what_is_no_data_is_named(value):
    one = Own()
    one.kept, one.value, one.later = np.ones(1), value, [np.zeros(1)]
    plain, arrays, lost = get_state(one)
    assert lost == ["value"]
    assert {"kept", "later", "seen"} <= set(plain)
    assert sorted(arrays) == ["0", "1"]  # none of the value's


def test_what_a_training_makes_anew_is_not_named(tmp_path):
    one = Own(helper=object())  # an argument
    one.function, one.net = came_back, keras.Sequential([keras.Input((2,))])
    one.optimizer, one.kind = keras.optimizers.SGD(), Holder
    with open(tmp_path / "log", "w") as one.file:
        assert get_state(one)[2] == []


@pytest.mark.parametrize(
    "value",
    [
        {"type": "os.system", "value": "true"},
        {"type": "enum", "module": "os", "class": "system", "name": "true"},
        {"type": "enum", "module": "antigravity", "class": "Enum", "name": "A"},
        {"type": "defaultdict", "items": [], "factory": "exec"},
    ],
)
def test_a_checkpoint_from_elsewhere_calls_nothing_else(value):
    one = Holder()
    one.value = before = Phase.WARM
    with contextlib.suppress(KeyError):
        set_state(one, {"value": value}, {})
    assert one.value is before or one.value.default_factory is None
