"""Candidates of one shape share a trainer: what they compute alone, and how often a step is traced."""

import contextlib
import functools
import io
import json
import sys
import zipfile

import keras
import numpy as np
import pytest

from cos_ml import callback
from cos_ml.data.columns import Column
from cos_ml.data.spool import PARTS
from cos_ml.job.fit import _archives
from cos_ml.network.archive import Network
from cos_ml.rank import train
from cos_ml.rank.candidate import Candidate
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import PhaseTimer, RankContext
from cos_ml.rank.feed import spooled_rows
from cos_ml.rank.grid import KeptTrainers
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.rank.trainer import DistributedTrainer
from tests.support.layers import Noise, Sampling
from tests.support.spools import inherited
from tests.support.training import LOSS, data_of, spec_of

pytestmark = pytest.mark.once


def network(dropout=0.3, layer=None):
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(6, activation="relu", name="hidden"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(dropout),
    ]
    return keras.Sequential(
        [keras.Input((4,)), *layers, *([layer] if layer else []), keras.layers.Dense(3, "softmax", name="out")]
    )


def optimizer(kind, **options):
    plain = keras.saving.serialize_keras_object(kind(**options))
    return {"optimizer": plain, "loss": LOSS, "metrics": ["accuracy"]}


def marked(count=40):
    return data_of(count) | {"v": np.arange(count) % 4 == 0}


HELD = {"validation": Column("held", "v", dtype="bool"), "shuffle": True, "learning_rate": None}
MOMENTUM = [optimizer(keras.optimizers.SGD, learning_rate=rate, momentum=0.9, clipnorm=1.0) for rate in (0.5, 0.1)]
DECAY = keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)
PLATEAU = callback("ReduceLROnPlateau", patience=0, monitor="loss", min_delta=9.0)
SHARED = {
    "rates, seeds, epochs, batches": [
        spec_of(learning_rate=0.5, shuffle=True),
        spec_of(learning_rate=0.01, shuffle=True, seed=7, epochs=3),
        spec_of(learning_rate=0.1, batch_size=4, max_steps=5),
    ],
    "optimizers that differ in their rates": [spec_of(compile=one, **HELD) for one in MOMENTUM],
    "moving averages, accumulation": [
        spec_of(compile=optimizer(keras.optimizers.AdamW, use_ema=True), accumulation=2, learning_rate=rate)
        for rate in (0.1, 0.01)
    ],
    "schedules": [
        spec_of(compile=optimizer(keras.optimizers.Adam, learning_rate=DECAY), seed=seed, **HELD) for seed in (0, 1)
    ],
    "callbacks": [
        spec_of(epochs=6, patience=0, restore_best=True, **HELD),
        spec_of(epochs=4, callbacks=(PLATEAU,), **HELD),
        spec_of(epochs=4, validation_steps=2, **HELD),
    ],
    "frozen layers and rates": [
        spec_of(frozen=("hidden",), layer_rates={"out": 0.1}, learning_rate=rate) for rate in (0.5, 0.1)
    ],
}  # fmt: skip

MORE = (
    "optimizers that differ in their rates", "frozen layers and rates", "schedules", "moving averages, accumulation",
)  # fmt: skip


@pytest.fixture
def grid(spool, monkeypatch):
    """A function that trains candidates; returns (weights, history) of each, and how often a training was traced."""
    traced, compute = [], DistributedTrainer._compute

    def counted(self, part, *arguments):
        traced.append(part)
        return compute(self, part, *arguments)

    monkeypatch.setattr(DistributedTrainer, "_compute", counted)

    def run(specs, models):
        archives = {str(index): Network.of(model).archive for index, model in enumerate(models)}
        traced.clear()
        filled = spool(specs[0], marked() if specs[0].validation else data_of(40), size=9)
        task = {"rows": filled.rows, "shapes": filled.shapes, "dtypes": filled.dtypes, "digest": filled.digest,
                "partition": 0}  # fmt: skip
        rows = {part: spooled_rows(part, [task], 0, inherited(filled, part)) for part in PARTS}
        results, kept = {}, KeptTrainers(specs)
        with contextlib.closing(Heartbeat(io.StringIO())) as heartbeat:
            context = RankContext(Communicator(1), 0, [task], PhaseTimer(), heartbeat, {"candidate": 1})
            for index in kept.order:
                load = functools.partial(train._load, specs[index], archives)
                with contextlib.closing(Candidate(load, specs[index], context, rows, kept)) as candidate:
                    candidate.advance(sys.maxsize)
                    model, summary = candidate.end()
                assert len(kept._kept) <= 1  # a large network's trainer takes several times its weights
                results[index] = model.get_weights(), json.dumps(summary["history"])
        assert not kept._kept
        return [results[index] for index in range(len(specs))], traced.count("train")

    return run


def same(one, other):
    return one[1] == other[1] and all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.more] * (name in MORE)) for name in SHARED])
def test_candidates_of_one_shape_share_a_trace_and_compute_the_same(grid, name):
    model = network()
    together, traced = grid(SHARED[name], [model])
    assert traced == 1
    alone = [grid([spec], [model])[0][0] for spec in SHARED[name]]
    assert all(map(same, together, alone))
    assert not same(together[0], together[1])


@pytest.mark.parametrize(
    "layer", [pytest.param(Sampling, marks=pytest.mark.more), Noise]
)  # TensorFlow's own generator, and Keras's of the whole process
def test_a_step_with_state_that_is_unknown_is_traced_anew(grid, layer):
    modules = ("tests.support.layers",)
    specs = [spec_of(seed=seed, modules=modules, learning_rate=rate) for seed, rate in ((0, 0.5), (3, 0.1))]
    model = network(layer=layer())
    (first,), alone_traced = grid(specs[:1], [model])
    together, traced = grid(specs, [model])
    assert traced == 2 * alone_traced
    assert all(map(same, together, [first, *grid(specs[1:], [model])[0]]))


@pytest.mark.more
def test_shapes_take_turns(grid):
    """Other networks, constants of a step, and callbacks of the user's have trainers of their own."""
    models = [network(), network(dropout=0.5)]
    stop = (callback("tests.support.layers:StopAfter", epochs=1),)
    changes = [{}, {"network": 1}, {"seed": 4}, {"network": 1, "seed": 4}, {"compression": "fp16"}, {"callbacks": stop}]
    specs = [spec_of(shuffle=True, **one) for one in changes]
    together, traced = grid(specs, models)
    assert traced == 3
    assert all(same(one, grid([spec], models)[0][0]) for one, spec in zip(together, specs, strict=True))


def saved_at(network, time):
    """The same network, as if Keras had saved it at another time."""
    with zipfile.ZipFile(io.BytesIO(network.archive)) as saved, zipfile.ZipFile(io.BytesIO(), "w") as again:
        members = {name: saved.read(name) for name in saved.namelist()}
        members["metadata.json"] = json.dumps(json.loads(members["metadata.json"]) | {"date_saved": time}).encode()
        for name, content in members.items():
            again.writestr(name, content)
        file = again.fp
        again.close()
        return network.with_archive(file.getvalue())


def test_a_model_that_was_converted_for_each_candidate_is_one_network():
    """As ParamGridBuilder converts it: each archive has the time of its conversion."""
    first, other = Network.of(network()), Network.of(network(dropout=0.5))
    again = saved_at(first, "2020-01-02@03:04:05")
    assert first.archive != again.archive
    indices, archives = _archives([first, other, again, other])
    assert indices == [0, 1, 0, 1]
    assert archives in ((first.archive, other.archive), (again.archive, other.archive))
    weights = network()
    weights.layers[0].kernel.assign(weights.layers[0].kernel + 1)
    assert Network.of(weights).contents != first.contents


@pytest.mark.more
def test_ranks_share_alike(ranks):
    """On two ranks, of which one has no rows in the last step; the candidate in the middle is trained last."""
    changes = [(0, 0.5, 0), (0, 0.5, 1), (5, 0.05, 0)]
    specs = [spec_of(seed=seed, learning_rate=rate, network=at, shuffle=True) for seed, rate, at in changes]
    assert KeptTrainers(specs).order == [0, 2, 1]
    data, models = data_of(29), [network(), network(dropout=0.5)]
    parts = [{field: rows[a:b] for field, rows in data.items()} for a, b in ((0, 20), (20, 29))]
    together = ranks.fit(specs, models, parts)
    for spec, one in zip(specs, together, strict=True):
        (alone,) = ranks.fit([spec], models, parts)
        assert same((one.network.get_weights(), one.history), (alone.network.get_weights(), alone.history))
