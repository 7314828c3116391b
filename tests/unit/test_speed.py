"""What ranks compute with the Params for speed: ranks without Spark."""

import ast

import keras
import numpy as np
import pytest

from cos_ml.callbacks import callback
from cos_ml.data.columns import Column
from cos_ml.spec import TrainSpec
from tests.support import reference
from tests.support.reference import assert_same_weights, split

pytestmark = pytest.mark.once

INPUTS = (Column("features", "x0", (12,)),)
VARIANTS = {
    "exact": {},
    "fp16": {"compression": "fp16"},
    "accumulated": {"accumulation": 2},
    "large": {"batch_size": 32},
    "mixed_bfloat16": {"dtype_policy": "mixed_bfloat16"},
    "mixed_float16": {"dtype_policy": "mixed_float16"},
    "accumulated in half precision": {"accumulation": 2, "dtype_policy": "mixed_float16"},
    "xla": {"jit_compile": True},
}


def spec_of(labels=None, loss="sparse_categorical_crossentropy", **fields):
    compiled = {"optimizer": "sgd", "loss": loss}
    labels = labels or Column("label", "y0", classes=3)
    fixed = {"learning_rate": 0.1, "epochs": 3, "batch_size": 16, "shuffle": False}
    return TrainSpec(INPUTS, (labels,), compile=compiled, **fixed | fields)


def columns_of(features, labels, _=None):
    return {"x0": features, "y0": labels}


def differences(model, other):
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    return max(float(np.abs(one - two).max()) for one, two in pairs)


@pytest.fixture(scope="module")
def of_two(ranks):
    """The networks that two ranks trained, by variant; in one job."""
    parts = [columns_of(*part) for part in split(reference.data(128), 64, 64)]
    specs = [spec_of(**fields) for fields in VARIANTS.values()]
    trained = ranks.fit(specs, [reference.network()], parts)
    return dict(zip(VARIANTS, (one.network for one in trained), strict=True))


@pytest.fixture(scope="module")
def exact(of_two):
    return of_two["exact"]


def test_compressed_gradients_have_three_digits(of_two, exact):
    assert 0 < differences(of_two["fp16"], exact) < 1e-3


def test_accumulated_gradients_are_those_of_larger_batches(ranks):
    variants = [{"batch_size": 16, "accumulation": 4}, {"batch_size": 64}, {"batch_size": 16}]
    specs = [spec_of(**fields) for fields in variants]
    trained = ranks.fit(specs, [reference.network()], [columns_of(*reference.data(128))])
    accumulated, large, small = (one.network for one in trained)
    assert_same_weights(accumulated, large, 1e-5)
    assert differences(small, large) > 1e-3


def test_a_small_fit_imports_nothing_that_its_server_has_not_and_collects_no_garbage_of_a_trace(ranks, tmp_path):
    told = callback("tests.support.late_imports:TellImports", file=str(tmp_path / "told"))
    spec = spec_of(callbacks=(told,), modules=("tests.support.late_imports",), epochs=1)
    ranks.fit([spec], [reference.network()], [columns_of(*part) for part in split(reference.data(64), 32, 32)])
    found = ast.literal_eval((tmp_path / "told").read_text())
    assert found == {"late": [], "collected": [False, True]}


@pytest.mark.parametrize(("variant", "bound"), [("accumulated", 1e-5), ("accumulated in half precision", 2e-2)])
def test_accumulated_gradients_of_two_ranks(of_two, variant, bound):
    """In half precision too, where the loss is scaled."""
    assert_same_weights(of_two[variant], of_two["large"], bound)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_while_training_and_full_precision_after_it(of_two, exact, policy):
    model = of_two[policy]
    assert 1e-7 < differences(model, exact) < 2e-2
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert {weight.dtype for weight in model.weights} == {"float32"}


def test_a_gradient_too_large_for_half_precision_on_one_rank_lets_all_skip_the_step(ranks):
    """The one step there is: the weights stay as they were. Without that rank's row, they change."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1)])
    spec = spec_of(Column("label", "y0"), "mse", dtype_policy="mixed_float16", epochs=1)
    features, labels, _ = reference.data(32)
    rows = columns_of(features[:16] / 100, labels[:16] / 100)
    (changed,) = ranks.fit([spec], [network], [rows, columns_of(features[16:] / 100, labels[16:] / 100)])
    (skipped,) = ranks.fit([spec], [network], [rows, columns_of(1000 * features[:1], labels[:1])])
    assert differences(changed.network, network) > 0
    assert differences(skipped.network, network) == 0


def test_xla_computes_the_same(of_two, exact):
    assert_same_weights(of_two["xla"], exact, 1e-5)
