"""Successive halving: who is dropped, and that every candidate is what it would be if it trained alone."""

import contextlib
import functools
import io
from dataclasses import dataclass, replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from cos_ml import callback
from cos_ml.data.columns import Column
from cos_ml.data.spool import PARTS
from cos_ml.errors import InvalidInputError
from cos_ml.job.halving import check_candidates, with_own_checkpoints
from cos_ml.network.archive import Network
from cos_ml.rank import train
from cos_ml.rank.candidate import Candidate
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import PhaseTimer, RankContext
from cos_ml.rank.feed import spooled_rows
from cos_ml.rank.grid import KeptTrainers
from cos_ml.rank.halving import best, train_in_turns
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.rank.training import Training
from cos_ml.spec import CheckpointConfig, ClassWeights
from tests.support.layers import Noise
from tests.support.spools import inherited
from tests.support.training import data_of, spec_of
from tests.unit.test_grid import network, optimizer

pytestmark = pytest.mark.once

HELD = {"validation": Column("held", "v", dtype="bool"), "shuffle": True}


@dataclass
class Ended:
    """What is left of a candidate."""

    weights: list[np.ndarray]
    history: dict[str, list[float]]
    epochs: int
    dropped: int | None
    resumed: int


def data(count=40):
    return data_of(count) | {"v": np.arange(count) % 4 == 0}


@pytest.fixture
def trained(spool):
    """A function that trains candidates in this process, as a single rank does."""

    def run(specs, models):
        filled = spool(specs[0], data())
        task = {"rows": filled.rows, "shapes": filled.shapes, "dtypes": filled.dtypes, "digest": filled.digest,
                "partition": 0}  # fmt: skip
        rows = {part: spooled_rows(part, [task], 0, inherited(filled, part)) for part in PARTS}
        archives, kept = {str(at): Network.of(model).archive for at, model in enumerate(models)}, KeptTrainers(specs)
        found = {}
        with contextlib.ExitStack() as stack:
            heartbeat = stack.enter_context(contextlib.closing(Heartbeat(io.StringIO())))
            context = RankContext(Communicator(1), 0, [task], PhaseTimer(), heartbeat, {"candidate": 1})
            candidates = []
            for at in kept.order:
                load = functools.partial(train._load, specs[at], archives)
                one = contextlib.closing(Candidate(load, specs[at], context, rows, kept))
                candidates.append(stack.enter_context(one))
            for one, rung in train._trained(candidates, specs[0], context.communicator):
                model, summary = one.end()
                epochs, resumed = len(summary["epoch_seconds"]), summary["resumed"][0]
                ended = Ended(model.get_weights(), summary["history"], epochs, rung, resumed)
                found[kept.order[candidates.index(one)]] = ended
        return [found[at] for at in range(len(specs))]

    return run


def same(one, other):
    weights = zip(one.weights, other.weights, strict=True)
    return one.history == other.history and all(np.array_equal(a, b) for a, b in weights)


def dropped(candidates):
    return [one.dropped for one in candidates]


def halved(specs, factor=2):
    return [replace(spec, halving_factor=factor) for spec in specs]


@pytest.mark.parametrize(
    ("losses", "factor", "expected"),
    [
        ([0.5, 0.2, 0.9, 0.1], 2, [1, 3]),
        ([0.5, 0.2, 0.9], 2, [0, 1]),
        ([0.5, 0.5, 0.5, 0.5], 3, [0, 1]),
        ([float("inf"), 0.5, float("inf")], 3, [1]),
        ([1.0], 4, [0]),
    ],
)
def test_the_best_part_stays(losses, factor, expected):
    assert best(losses, factor) == expected


@dataclass(eq=False)
class Scripted:
    """A candidate with these losses after its epochs, which notes its turns."""

    name: str
    losses: list[float]
    turns: list[str]
    epochs = 0

    @property
    def finished(self):
        return self.epochs == len(self.losses)

    def advance(self, epochs):
        before, self.epochs = self.epochs, min(epochs, len(self.losses))
        if self.epochs > before:
            self.turns.append(f"{self.name}{self.epochs}")

    def pause(self):
        pass

    def loss_after(self, epochs):
        return self.losses[:epochs][-1]


def script(losses, factor, min_epochs):
    """The turns, and each candidate with its rung in the order in which they end."""
    turns = []
    candidates = [Scripted(name, values, turns) for name, values in losses.items()]
    ends = [(one.name, rung) for one, rung in train_in_turns(candidates, factor, min_epochs, Communicator(1))]
    return " ".join(turns), ends


def test_rungs():
    """Of nine candidates three train on after two epochs, and one after six; of equal ones the first."""
    losses = {name: [loss] * 8 for name, loss in zip("abcdefghi", [7, 1, 2, 3, 4, 5, 6, 7, 1], strict=True)}
    turns, ends = script(losses, factor=3, min_epochs=2)
    assert turns == "a2 b2 c2 d2 e2 f2 g2 h2 i2 b6 c6 i6 b8"
    assert ends == [*((name, 1) for name in "adefgh"), ("c", 2), ("i", 2), ("b", None)]


def test_one_that_has_finished_is_compared_but_not_dropped():
    losses = {"a": [1, 0.5], "b": [2] * 9, "c": [0.9] * 4 + [0.1] * 5, "d": [0.8] * 4 + [0.6] * 5, "e": [3]}
    turns, ends = script(losses, factor=2, min_epochs=4)
    assert turns == "a2 b4 c4 d4 e1 c8 d8 c9"
    assert ends == [("b", 1), ("e", None), ("d", 2), ("a", None), ("c", None)]


HISTORY = {"step": [5, 10, 15, 20], "loss": [9, 8, 7, 6], "val_loss": [2, 3, 1, float("nan")]}


@pytest.mark.parametrize(
    ("restore_best", "epochs", "expected"),
    [(False, 1, 3), (True, 1, 2), (True, 2, 1), (False, 2, float("inf")), (False, 9, float("inf"))],
)
def test_the_loss_that_decides_is_that_of_the_network_which_would_be_returned(restore_best, epochs, expected):
    """Also where a resumed training is already beyond that epoch, or ended before it."""
    training = SimpleNamespace(
        feeds={"validation": SimpleNamespace(steps=1)}, log=SimpleNamespace(history=HISTORY),
        schedule=SimpleNamespace(whole=10), spec=SimpleNamespace(restore_best=restore_best),
    )  # fmt: skip
    assert Training.loss_after(training, epochs) == expected
    training.log.history = {"mine": [1.0]}
    with pytest.raises(
        InvalidInputError, match=r"compared by 'val_loss', but the network's own steps report \['mine'\]"
    ):
        Training.loss_after(training, epochs)


AVERAGED = optimizer(keras.optimizers.AdamW, use_ema=True)
PLATEAU = callback("ReduceLROnPlateau", patience=0, factor=0.5, min_delta=9.0)
CANDIDATES = [  # those that set learning_rate alone share a trace
    {"learning_rate": 1e-6},
    {"learning_rate": 0.3},
    {"learning_rate": 0.5, "seed": 3, "batch_size": 6},
    {"learning_rate": 0.4, "callbacks": (PLATEAU,)},
    {"learning_rate": 0.4, "patience": 0, "restore_best": True},
    {"learning_rate": 0.4, "max_steps": 5},
    {"learning_rate": 0.03, "compile": AVERAGED},
    {"learning_rate": 0.4, "network": 1, "modules": ("tests.support.layers",)},  # random numbers of the process
]


def test_candidates_are_what_they_are_alone_at_their_last_epoch(trained):
    """Those that are dropped as trainings of fewer epochs, the others as whole ones; a plain grid trains those."""
    models = [network(), network(layer=Noise())]
    plain = [spec_of(**{"epochs": 5} | HELD | one) for one in CANDIDATES]
    together = trained(halved(plain), models)
    assert {1, 2, None} <= {*dropped(together)}
    pairs = zip(plain, together, strict=True)
    ends = [replace(spec, epochs=one.epochs) if one.dropped else spec for spec, one in pairs]
    for one, alone, changes in zip(together, trained(ends, models), CANDIDATES, strict=True):
        assert same(one, alone), changes


@pytest.mark.more
def test_ranks_drop_alike(ranks):
    """On two ranks, of which one has no rows in some steps; by the losses that candidates have alone."""
    rows = data(53)
    parts = [{field: values[a:b] for field, values in rows.items()} for a, b in ((0, 36), (36, 53))]
    plain = [spec_of(epochs=3, learning_rate=rate, **HELD) for rate in (1e-6, 0.3, 1e-3)]
    alone, together = (ranks.fit(specs, [network()], parts) for specs in (plain, halved(plain)))
    losses = np.array([one.history["val_loss"] for one in alone])
    *stay, worst = losses[:, 0].argsort().tolist()
    winner, second = sorted(stay, key=lambda at: losses[at, 1])
    for rank in (0, 1):
        found = {at: one.summaries[rank]["dropped"] for at, one in enumerate(together)}
        assert found == {worst: 1, second: 2, winner: None}
    assert together[winner].history == alone[winner].history
    weights = (one[winner].network.get_weights() for one in (together, alone))
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_loss_that_is_not_finite_is_the_worst(trained):
    specs = [spec_of(epochs=4, learning_rate=rate, stop_at_non_finite=False) for rate in (1e30, 0.1)]
    assert [(one.epochs, one.dropped) for one in trained(halved(specs), [network()])] == [(1, 1), (4, None)]


@pytest.mark.more
def test_a_grid_resumes_where_it_was(trained, tmp_path):
    """A rank fails in the third epoch of the second candidate: the first has trained three, and the last none."""

    def specs(broken):
        found = []
        for at, rate in enumerate((0.3, 0.2, 1e-6)):
            fails = (callback("tests.support.layers:FailOnce", epoch=2, marker=str(tmp_path / "failed")),)
            config = CheckpointConfig(str(tmp_path / f"{broken}-{at}"), epochs=2)
            found.append(spec_of(
                epochs=8, learning_rate=rate, halving_factor=2, halving_min_epochs=3, checkpoint=config,
                callbacks=fails if broken and at == 1 else (), **HELD,
            ))  # fmt: skip
        return found

    whole = trained(specs(broken=False), [network()])
    assert sorted(one.epochs for one in whole) == [3, 6, 8]
    with pytest.raises(RuntimeError, match="failed on purpose"):
        trained(specs(broken=True), [network()])
    resumed = []
    for _ in range(2):
        again = trained(specs(broken=True), [network()])
        assert dropped(again) == dropped(whole)
        assert all(map(same, again, whole))
        resumed.append([one.resumed for one in again])
    assert resumed == [[3, 2, 0], [one.epochs for one in whole]]


# ── what the driver refuses ───────────────────────────────────────────────────────────────────────────────────────────


def specs(*changes):
    return [
        spec_of(**{"name": f"candidate {at}", "epochs": 2, "halving_factor": 2} | one) for at, one in enumerate(changes)
    ]


MSE = {"compile": {"optimizer": "sgd", "loss": "mse"}}
LOGS = {"callbacks": (callback("CSVLogger", filename="/logs/a.csv"),)}
WEIGHED = {"class_weights": ClassWeights("y0", 3)}
REFUSED = {
    "losses": ([{}, MSE], [1, 1], "have different losses"),
    "classes": ([{}, WEIGHED], [1, 1], "have different classWeights and no validation rows"),
    "jobs": ([{}, {}], [1, 2], "candidate 0 and candidate 1 train in jobs of their own"),
    "files": ([LOGS, LOGS], [1, 1], "candidate 0 and candidate 1 both write to '/logs/a.csv'"),
    "epochs": (
        [{"epochs": 1}, {"epochs": 1}],
        [1, 1],
        "halvingMinEpochs: expected fewer than epochs, received 1 and 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_compared_or_dropped_is_refused_by_name(name):
    changes, jobs, message = REFUSED[name]
    with pytest.raises(InvalidInputError, match=message):
        check_candidates(specs(*changes), jobs)
    check_candidates(specs(*({"halving_factor": None} | one for one in changes)), jobs)


def test_what_can_be_compared():
    check_candidates(specs(HELD, HELD | WEIGHED, HELD | {"learning_rate": 0.3, "epochs": 1}), [1, 1, 1])
    check_candidates(specs(LOGS | {"epochs": 1}), [1])


def test_checkpoints_belong_to_exactly_these_candidates():
    configs = [CheckpointConfig(f"/states/candidate-{at}") for at in range(3)]
    halving = specs(*({"checkpoint": config} for config in configs))
    urls = [
        [spec.checkpoint.url for spec in with_own_checkpoints(some)] for some in (halving, halving[:2], halving[::-1])
    ]
    assert len({*urls[0], *urls[1]}) == 5
    assert urls[2] == urls[0][::-1]
    other = [replace(spec, halving_min_epochs=2) for spec in halving]
    assert not {spec.checkpoint.url for spec in with_own_checkpoints(other)} & {*urls[0]}
    plain = [replace(spec, halving_factor=None) for spec in halving]
    assert [spec.checkpoint for spec in with_own_checkpoints(plain)] == configs
