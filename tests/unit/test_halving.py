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
from cos_ml.job.halving import check_comparable, with_rivals
from cos_ml.network.archive import Network
from cos_ml.rank import train
from cos_ml.rank.candidate import Candidate
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import PhaseTimer, RankContext
from cos_ml.rank.feed import spooled_rows
from cos_ml.rank.grid import KeptTrainers
from cos_ml.rank.halving import best
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.spec import CheckpointConfig
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
            made = {}
            for at in kept.order:
                load = functools.partial(train._load, specs[at], archives)
                made[Candidate(load, specs[at], context, rows, kept)] = at
                stack.enter_context(contextlib.closing([*made][-1]))
            for one, rung in train._trained([*made], specs[0], context.communicator):
                model, summary = one.end()
                epochs, resumed = len(summary["epoch_seconds"]), summary["resumed"][0]
                found[made[one]] = Ended(model.get_weights(), summary["history"], epochs, rung, resumed)
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
    ("scores", "factor", "expected"),
    [
        ([0.5, 0.2, 0.9, 0.1], 2, [1, 3]),
        ([0.5, 0.2, 0.9], 2, [0, 1]),
        ([0.5, 0.5, 0.5, 0.5], 3, [0, 1]),
        ([float("inf"), 0.5, float("inf")], 3, [1]),
        ([1.0], 4, [0]),
    ],
)
def test_the_best_part_stays(scores, factor, expected):
    assert best(scores, factor) == expected


def expected_drops(alone, factor=2, min_epochs=1):
    """By candidate the rung after which it is dropped, or None, from the losses of whole trainings."""
    losses = [one.history["val_loss"] for one in alone]
    left, found, rung, epochs = list(range(len(alone))), [None] * len(alone), 1, min_epochs
    while len(left) > 1 and any(len(losses[one]) > epochs for one in left):
        ranked = sorted(left, key=lambda one: (losses[one][:epochs][-1], one))
        stay = ranked[: -(-len(left) // factor)]
        for one in left:
            if one not in stay and len(losses[one]) > epochs:  # others are over
                found[one] = rung
        left, rung, epochs = sorted(stay), rung + 1, epochs * factor
    return found


AVERAGED = optimizer(keras.optimizers.AdamW, use_ema=True)
PLATEAU = callback("ReduceLROnPlateau", patience=0, factor=0.5, min_delta=9.0)
NOISY = {"network": 1, "modules": ("tests.support.layers",), "learning_rate": 0.4}  # random numbers of the process
CANDIDATES = [  # those that set learning_rate alone share a trace
    {"learning_rate": 1e-6},
    {"learning_rate": 0.3},
    {"learning_rate": 0.5, "seed": 3, "batch_size": 6},
    {"learning_rate": 0.4, "callbacks": (PLATEAU,)},
    {"learning_rate": 0.4, "patience": 0, "restore_best": True},
    {"learning_rate": 0.4, "max_steps": 5},
    {"learning_rate": 0.03, "compile": AVERAGED},
    {"learning_rate": 0.2, "dtype_policy": "mixed_bfloat16"},
    NOISY,
]


def test_candidates_are_what_they_are_alone_at_their_last_epoch(trained):
    """Those that are dropped as trainings of fewer epochs, the others as whole ones; a plain grid trains those."""
    models = [network(), network(layer=Noise())]
    plain = [spec_of(**{"epochs": 5} | HELD | one) for one in CANDIDATES]
    alone, together = trained(plain, models), trained(halved(plain), models)
    assert dropped(together) == expected_drops(alone)
    assert {1, 2, None} <= {*dropped(together)}
    ends = [at for at, one in enumerate(together) if one.dropped]
    short = trained([replace(plain[at], epochs=together[at].epochs) for at in ends], models)
    for at, one in enumerate(together):
        assert same(one, short[ends.index(at)] if one.dropped else alone[at]), CANDIDATES[at]


def test_ranks_decide_alike(ranks):
    """On two ranks, of which one has no rows in some steps."""
    rows = data(53)
    parts = [{field: values[a:b] for field, values in rows.items()} for a, b in ((0, 36), (36, 53))]
    plain = [spec_of(epochs=3, learning_rate=rate, **HELD) for rate in (1e-6, 0.3, 1e-3)]
    alone, together = (ranks.fit(specs, [network()], parts) for specs in (plain, halved(plain)))
    assert [one.summaries[0]["dropped"] for one in together] == expected_drops(alone)
    assert [one.summaries[1]["dropped"] for one in together] == expected_drops(alone)
    winner = [one.summaries[0]["dropped"] for one in together].index(None)
    assert together[winner].history == alone[winner].history
    weights = (one[winner].network.get_weights() for one in (together, alone))
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_best_validation_so_far_decides_with_restore_best(trained):
    changes = [{"learning_rate": rate, "restore_best": True, "validation_steps": 2} for rate in (2.0, 0.1, 0.5)]
    plain = [spec_of(**{"epochs": 3} | HELD | one) for one in changes]
    alone, together = trained(plain, [network()]), trained(halved(plain, 3), [network()])
    first = []
    for one in alone:
        steps = one.history["step"]
        first.append(
            [loss for loss, step in zip(one.history["val_loss"], steps, strict=True) if step <= steps[-1] // 3]
        )
    assert {len(losses) for losses in first} == {2}
    winner = int(np.argmin([min(losses) for losses in first]))
    assert [rung is None for rung in dropped(together)] == [at == winner for at in range(3)]
    assert same(together[winner], alone[winner])


def test_rungs(trained):
    """Nine candidates, of which three train on after two epochs, and one after six."""
    race = {"epochs": 8, "halving_factor": 3, "halving_min_epochs": 2}
    found = trained([spec_of(learning_rate=0.1 + 0.05 * at, **race) for at in range(9)], [network()])
    rungs = [(one.epochs, one.dropped) for one in found]
    assert sorted(rung for rung in rungs if rung[1]) == [(2, 1)] * 6 + [(6, 2)] * 2
    assert [rung for rung in rungs if not rung[1]] == [(8, None)]


def test_a_loss_that_is_not_finite_is_the_worst(trained):
    specs = [spec_of(epochs=4, learning_rate=rate, stop_at_non_finite=False) for rate in (1e30, 0.1)]
    assert [(one.epochs, one.dropped) for one in trained(halved(specs), [network()])] == [(1, 1), (4, None)]


def test_a_race_resumes_where_it_was(trained, tmp_path):
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


def candidates(*changes):
    specs = [spec_of(**{"name": f"candidate {at}", "halving_factor": 2} | one) for at, one in enumerate(changes)]
    return [SimpleNamespace(spec=spec) for spec in specs]


LOGS = {"callbacks": (callback("CSVLogger", filename="/logs/a.csv"),)}
REFUSED = {
    "losses": ([{}, {"compile": {"optimizer": "sgd", "loss": "mse"}}], [1, 1], "have different losses"),
    "jobs": ([{}, {}], [1, 2], "candidate 0 and candidate 1 train in jobs of their own"),
    "files": ([LOGS, LOGS], [1, 1], "candidate 0 and candidate 1 both write to '/logs/a.csv'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_compared_is_refused_by_name(name):
    changes, jobs, message = REFUSED[name]
    with pytest.raises(InvalidInputError, match=message):
        check_comparable(candidates(*changes), jobs)
    check_comparable(candidates(*({"halving_factor": None} | one for one in changes)), jobs)


def test_checkpoints_belong_to_the_candidates_together():
    configs = [CheckpointConfig(f"/states/candidate-{at}") for at in range(3)]
    specs = [spec_of(checkpoint=config, halving_factor=2) for config in configs]
    urls = [[spec.checkpoint.url for spec in with_rivals(some)] for some in (specs, specs[:2], specs[::-1])]
    assert len({*urls[0], *urls[1]}) == 5
    assert urls[2] == urls[0][::-1]
    other = [replace(spec, halving_min_epochs=2) for spec in specs]
    assert not {spec.checkpoint.url for spec in with_rivals(other)} & {*urls[0]}
    plain = [replace(spec, halving_factor=None) for spec in specs]
    assert [spec.checkpoint for spec in with_rivals(plain)] == configs
