"""The parts of the benchmark: what each measures, and its lines of the table.

Each peer has a process of its own, as its users would run it. What is compared is measured in turns, while the
processes of the others are idle.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import data, peer_environment
from tests.benchmarks.process import Session, in_turns, run, sessions
from tests.benchmarks.table import Line

PARTS: dict[str, Callable[[Bench], list[Line | str]]] = {}
MORE = ("feeds",)  # parts that run only when they are named
PARTITIONS = (2, 4, 16)
SMALL_SESSIONS = 2  # of a small fit, for each number of ranks
STAND_INS = 64


@dataclass
class Bench:
    """What the parts share.

    Attributes:
        folder: for their files.
        peer: the python of the environment of KerasEstimator; None to make it.
    """

    folder: Path
    peer: str | None

    @cached_property
    def rows(self) -> str:
        """The folder of the rows."""
        data.write_rows(self.folder / "rows")
        return str(self.folder / "rows")

    def session(self, module: str, *arguments: str, **options: Any) -> Callable[[], Session]:
        """What starts a session."""
        return lambda: Session(self.folder, module, *arguments, **options)

    def result(self, module: str, *arguments: str, before: tuple[str, ...] = ()) -> Any:
        """What a module reports that runs to its end: it gets a file for it between the arguments."""
        file = self.folder / f"{module}.json"
        command = [sys.executable, "-m", f"{__package__}.{module}", *before, str(file), *arguments]
        run(command, self.folder / f"{module}.log")
        return json.loads(file.read_text())


def part(measure: Callable[[Bench], list[Line | str]]) -> Callable[[Bench], list[Line | str]]:
    """Let the part be found by the name of its function."""
    PARTS[measure.__name__] = measure
    return measure


@part
def transform(bench: Bench) -> list[Line | str]:
    """Scoring, beside UDFs that compute nothing and predict_batch_udf."""
    ways = ("product", "nothing", "same size", "predict_batch_udf")
    rates: dict[int, dict[str, list[float]]] = {}
    with sessions(**{way: bench.session("transform", way, bench.rows) for way in ways}) as found:
        one, other = (found[way].measure("probabilities") for way in ("product", "predict_batch_udf"))
        if not np.allclose(one, other, atol=1e-5):
            raise SystemExit("transform and predict_batch_udf give different probabilities.")
        for partitions in PARTITIONS:
            seconds = in_turns(found, str(partitions), rounds=5, warm=2)
            rates[partitions] = {way: [data.ROWS / one for one in each] for way, each in seconds.items()}
    lines: list[Line | str] = []
    for peer, bars in (
        ("nothing", {2: 0.9, 4: 0.9, 16: 0.9}), ("same size", {}), ("predict_batch_udf", {4: 2.0, 16: 4.0}),
    ):  # fmt: skip
        for partitions, rate in rates.items():
            what = f"transform, rows/s, {partitions} partitions"
            lines.append(Line(what, rate["product"], _UDFS.get(peer, peer), rate[peer], least=bars.get(partitions)))
    return lines


_UDFS = {"nothing": "a UDF: nothing", "same size": "a UDF: columns alike"}


@part
def small(bench: Bench) -> list[Line | str]:
    """The first and later fits of a session, on 1 and 2 ranks."""
    first: dict[str, list[float]] = {"1": [], "2": []}
    later: dict[str, list[float]] = {"1": [], "2": []}
    phases: dict[str, dict[str, float]] = {}
    for _ in range(SMALL_SESSIONS):
        with sessions(**{ranks: bench.session("small", ranks) for ranks in first}) as found:
            for into, rounds in ((first, 1), (later, 3)):
                for ranks, seconds in in_turns(found, "fit", rounds).items():
                    into[ranks] += seconds
            phases |= {ranks: found[ranks].measure("phases") for ranks in first}
    lines: list[Line | str] = []
    for ranks, most in (("1", 0.8), ("2", 1.5)):
        lines.append(Line(f"small fit, {ranks} rank(s), first of a session, s", first[ranks]))
        lines.append(Line(f"small fit, {ranks} rank(s), second and later, s", later[ranks], most=most))
        lines.append("    of the last: " + ", ".join(f"{name} {one:.2f}" for name, one in phases[ranks].items()))
    return lines


@part
def fit(bench: Bench) -> list[Line | str]:
    """Fits beside KerasEstimator's."""
    peer = bench.peer or peer_environment.python(bench.folder / "peer_environment.log")
    name = "KerasEstimator"
    made = {
        "product": bench.session("fit", bench.rows),
        name: bench.session("peer_keras_estimator", bench.rows, str(bench.folder / "store"), python=peer),
    }
    with sessions(**made) as found:
        first = in_turns(found, "fit", rounds=1)
        later = in_turns(found, "fit", rounds=3)
        loss = {which: session.measure("loss") for which, session in found.items()}
    return [
        Line("fit, first of a session, s", first["product"], name, first[name]),
        Line("fit, second and later, s", later["product"], name, later[name], most=0.25),
        # Not its accuracy: that metric stays at chance in KerasEstimator's history, while its network learns.
        f"    loss of the last epoch: product {loss['product']:.3f}, {name} {loss[name]:.3f} "
        "(it doubles the learning rate on two ranks)",
    ]


@part
def grid(bench: Bench) -> list[Line | str]:
    """A grid of 4 candidates on 3 folds, beside 12 fits of Keras alone."""
    with sessions(product=bench.session("tuning", "product"), keras=bench.session("tuning", "keras")) as found:
        one = in_turns(found, "1", rounds=3, warm=1)
        two = in_turns(found, "2", rounds=3, warm=1)
        whole = [found["product"].measure("validator") for _ in range(2)]
    name = "12 fits of bare Keras"
    return [
        Line("grid of 4, 3 folds of digits, 1 rank, s", one["product"], name, one["keras"], most=1.5),
        Line("  on 2 ranks, same global batch, s", two["product"], name, two["keras"]),
        Line("  CrossValidator: 13 fits, 12 evaluations, 1 rank, s", whole, name, one["keras"]),
    ]


@part
def ranks(bench: Bench) -> list[Line | str]:
    """Steps of a convolutional network on two ranks, beside one."""
    made = {"one": bench.session("scaling", "1", cores="0"), "two": bench.session("scaling", "2")}
    with sessions(**made) as found:
        rates = {n: [1 / one for one in each] for n, each in in_turns(found, "step", rounds=5).items()}
    return [
        Line("convolutions, steps/s, 2 ranks of 1 thread", rates["two"], "1 rank of 1 thread", rates["one"], least=1.7)
    ]


@part
def embeddings(bench: Bench) -> list[Line | str]:
    """Steps with a large embedding on two ranks, beside the same with dense gradients."""
    found = bench.result("embeddings", "SGD", "Adagrad", "Adam", before=("--result",))
    lines: list[Line | str] = []
    for name, each in found.items():
        what, ranks = f"embedding of 1,000,000 x 16, {name}, ms a step", each["2 ranks"]
        bar = 0.1 if name == "SGD" else None  # the others' arithmetic goes through their moments' whole tables
        lines.append(Line(what, ranks, "dense gradients", each["2 ranks, dense"], most=bar))
        lines.append(Line("", ranks, "bare Keras, 1 process", each["Keras"]))
    return lines


@part
def meeting(bench: Bench) -> list[Line | str]:
    """What task 0 is sent until stand-ins of ranks have met."""
    found = bench.result("scale", str(STAND_INS), before=("--result",))
    return [Line(f"messages of a rank to task 0, {STAND_INS} stand-ins, the most", [found["messages"]], most=20)]


@part
def lmdb(bench: Bench) -> list[Line | str]:
    """The format "lmdb" beside other readers."""
    (name, found), *_ = bench.result("lmdb_read", "CIFAR, 3x32x32").items()
    peers = {"Spark alone": "a source of nothing", "cursor": "a cursor loop", "cursor, protobuf": "a loop that parses"}
    return [Line(f"lmdb, {name}, rows/s", found["source"], peers[peer], found[peer]) for peer in peers]


@part
def checkpoints(bench: Bench) -> list[Line | str]:
    """Fits with a checkpoint after each epoch, beside fits without."""
    found = bench.result("checkpoints", before=(bench.rows,))
    return [Line("fit with a checkpoint each epoch, s", found["with"], "without", found["without"], most=1.05)]


@part
def memory(bench: Bench) -> list[Line | str]:
    """The peak of each process while more rows are trained on than it may hold."""
    peaks: dict[str, dict[str, list[float]]] = bench.result("memory", before=("1",))
    lines: list[Line | str] = []
    for kind in sorted({kind for each in peaks.values() for kind in each}):
        found = [peak for each in peaks.values() for peak in each.get(kind, ())]
        lines.append(Line(f"memory of 1 GB's fits: largest {kind}, GB", [max(found)], most=1.5))
    return lines


@part
def feeds(bench: Bench) -> list[Line | str]:
    """How fast rows reach ranks."""
    found = bench.result("feeds", before=(bench.rows,))
    return [Line(f"feed, rows/s: {name}", [rate]) for name, rate in found.items()]
