"""Caffe's solver files: what they become, and what is refused."""

import keras
import numpy as np
import pytest

from cos_ml.caffe import read_solver
from cos_ml.errors import InvalidInputError
from cos_ml.network.rates import scale_rates
from tests.support.caffe_solvers import CaffeSolver

pytestmark = pytest.mark.once

NET = """
name: "net"
layer { name: "data" type: "MemoryData" top: "data" top: "label"
        memory_data_param { batch_size: 4 channels: 1 height: 5 width: 5 } }
layer { name: "stem/conv" type: "Convolution" bottom: "data" top: "c" include { stage: "deep" }
        param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
        convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "skip" type: "Power" bottom: "data" top: "c" exclude { stage: "deep" } }
layer { name: "ip" type: "InnerProduct" bottom: "c" top: "ip" param { lr_mult: 0.5 } param { decay_mult: 0 }
        inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
HEAD = 'net: "net.prototxt" base_lr: 0.1 train_state { stage: "deep" } max_iter: 10\n'


@pytest.fixture
def solver(tmp_path):
    """A function that reads a solver beside the network, of these lines."""
    (tmp_path / "net.prototxt").write_text(NET)

    def read(lines, head=HEAD, **options):
        (tmp_path / "solver.prototxt").write_text(head + lines)
        return read_solver(tmp_path / "solver.prototxt", **options)

    return read


POLICIES = {
    'lr_policy: "fixed"': lambda i: 0.1,
    'lr_policy: "step" gamma: 0.5 stepsize: 3': lambda i: 0.1 * 0.5 ** (i // 3),
    'lr_policy: "exp" gamma: 0.9': lambda i: 0.1 * 0.9**i,
    'lr_policy: "inv" gamma: 0.1 power: 0.75': lambda i: 0.1 * (1 + 0.1 * i) ** -0.75,
    'lr_policy: "multistep" gamma: 0.1 stepvalue: 2 stepvalue: 5': lambda i: 0.1 * 0.1 ** ((i >= 2) + (i >= 5)),
    'lr_policy: "poly" power: 2': lambda i: 0.1 * (1 - i / 10) ** 2,
    'lr_policy: "sigmoid" gamma: 0.5 stepsize: 4': lambda i: 0.1 / (1 + np.exp(-0.5 * (i - 4))),
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_policies(solver, policy, size):
    rate = solver(f"{policy} iter_size: {size}")["optimizer"].get_config()["learning_rate"]
    found = keras.saving.deserialize_keras_object(rate) if isinstance(rate, dict) else lambda step: rate
    for step in range(10 * size):  # Keras counts steps, Caffe iterations of iter_size steps
        np.testing.assert_allclose(float(found(step)), POLICIES[policy](step // size), rtol=1e-5, atol=1e-9)


SOLVERS = {
    "": {"kind": "SGD"},
    "momentum: 0.9 weight_decay: 0.05": {"kind": "SGD", "momentum": 0.9, "weight_decay": 0.05},
    'type: "Nesterov" momentum: 0.8 clip_gradients: 0.5': {"kind": "Nesterov", "momentum": 0.8, "clip": 0.5},
    "solver_type: ADAGRAD delta: 1e-3": {"kind": "AdaGrad", "delta": 1e-3},
    'type: "RMSProp" rms_decay: 0.9 weight_decay: 0.1 regularization_type: "L1"': {
        "kind": "RMSProp", "rms_decay": 0.9, "weight_decay": 0.1, "norm": "L1",
    },
    'type: "AdaDelta" momentum: 0.95 delta: 1e-6': {"kind": "AdaDelta", "momentum": 0.95, "delta": 1e-6},
    'type: "Adam" momentum: 0.9 weight_decay: 0.01': {"kind": "Adam", "momentum": 0.9, "weight_decay": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("lines", SOLVERS)
def test_solvers(solver, lines):
    found = solver(f'{lines} lr_policy: "step" gamma: 0.5 stepsize: 3')
    model, optimizer, rates = found["model"], found["optimizer"], found["layerLearningRates"]
    assert rates == {"stem_conv/bias": 2.0, "ip/kernel": 0.5}
    oracle = CaffeSolver(
        rate=lambda i: 0.1 * 0.5 ** (i // 3), lr_mults=(1, 2, 0.5, 1), decay_mults=(1, 0, 1, 0), **SOLVERS[lines]
    )
    weights, rng = model.trainable_variables, np.random.default_rng(0)
    values = [one.numpy().astype(np.float64) for one in weights]
    scale_rates([optimizer], model, rates)
    for iteration in range(7):
        gradients = [rng.normal(size=one.shape).astype(np.float32) for one in weights]
        optimizer.apply(gradients, weights)
        values = oracle.updated([one.astype(np.float64) for one in gradients], values, iteration)
    for weight, value in zip(weights, values, strict=True):
        np.testing.assert_allclose(weight.numpy(), value, rtol=0, atol=1e-5)


def test_what_counts_iterations_counts_steps(solver):
    lines = 'lr_policy: "fixed" iter_size: 2 test_interval: 5 test_iter: 3 snapshot: 4 snapshot_prefix: "snaps/net" '
    found = solver(lines + "random_seed: 7 clip_gradients: 3 display: 1 solver_mode: GPU")
    expected = {
        "gradientAccumulationSteps": 2, "maxSteps": 20, "validationSteps": 10, "seed": 7, "batchSize": 4,
        "checkpointDir": "snaps/net", "checkpointSteps": 8,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found.keys() - expected.keys() == {"model", "optimizer", "layerLearningRates"}
    assert found["optimizer"].global_clipnorm == 1.5


def test_what_is_passed_over_is_named_in_one_line(solver, caplog):
    lines = "display: 100 average_loss: 4 solver_mode: CPU test_iter: 2 snapshot: 5 test_state { stage: 'all' }"
    solver(f'lr_policy: "fixed" {lines}')
    (line,) = [one.getMessage() for one in caplog.records if "passed over" in one.getMessage()]
    for name in ("display", "average_loss", "solver_mode (useGpu", "test_iter (validation reads all", "snapshot (",
                 "test_state ("):  # fmt: skip
        assert name in line


def test_stages_and_other_networks(solver, tmp_path):
    head = HEAD.replace('train_state { stage: "deep" }', "")
    assert [one.name for one in solver('lr_policy: "fixed"', head)["model"].layers if one.weights] == ["ip"]
    deep = solver('lr_policy: "fixed"', head, stages=["deep"])["model"]
    assert [one.name for one in deep.layers if one.weights] == ["stem_conv", "ip"]
    inside = head.replace('net: "net.prototxt"', f"net_param {{ {NET} }}")
    assert solver('lr_policy: "fixed"', inside)["batchSize"] == 4
    (tmp_path / "other.prototxt").write_text(NET.replace("batch_size: 4", "batch_size: 6"))
    assert solver('lr_policy: "fixed"', network=tmp_path / "other.prototxt")["batchSize"] == 6


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ('type: "Rprop" lr_policy: "fixed"', "no type 'Rprop'. Expected one of SGD"),
        ('type: "AdaGrad" momentum: 0.9 lr_policy: "fixed"', "AdaGrad has no momentum"),
        ('solver_type: RMSPROP momentum: 0.9 lr_policy: "fixed"', "RMSProp has no momentum"),
        ("", "lr_policy is missing"),
        ('lr_policy: "cosine"', "no lr_policy 'cosine'"),
        ('lr_policy: "step" gamma: 0.1', "'step' needs stepsize"),
        ('lr_policy: "fixed" regularization_type: "L3"', "regularization_type"),
        ('lr_policy: "fixed" iter_size: 0', "iter_size"),
        ('lr_policy: "fixed" weight_decay: nan', "weight_decay: expected a number >= 0"),
        ('lr_policy: "fixed" type: "RMSProp" rms_decay: 1.5', "rms_decay: expected a number >= 0 and < 1"),
        ('lr_policy: "fixed" type: "Adam" momentum2: 1', "momentum2: expected a number >= 0 and < 1"),
        ('lr_policy: "fixed" train_net: "other.prototxt"', "received net, train_net"),
    ],
)
def test_what_a_solver_must_not_say(solver, lines, match):
    with pytest.raises(InvalidInputError, match=match):
        solver(lines)


def test_a_rate_is_needed(solver):
    with pytest.raises(InvalidInputError, match="base_lr is missing"):
        solver('lr_policy: "fixed"', HEAD.replace("base_lr: 0.1", ""))


def test_the_seed_is_that_of_new_weights_too(solver):
    first, again, other = (
        solver(f'lr_policy: "fixed" random_seed: {seed}')["model"].get_weights() for seed in (7, 7, 8)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
