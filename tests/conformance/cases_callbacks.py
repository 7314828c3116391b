"""Cases: callbacks, which see the model and the logs of plain Keras, and may change the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import optimizers as O

from tests.conformance import userlib
from tests.conformance.case import Case, In, L, Seq, compiled, rows

Given = Callable[[str], list[tuple[Any, dict[str, Any]]]]
FIRST = {"ranks": "first"}


def net(optimizer: Any = None) -> Any:
    return compiled(Seq([In((4,)), L.Dense(8, "tanh"), L.Dense(1)]), "mse", optimizer, metrics=["mae"])


def called(name: str, given: Given, **options: Any) -> Case:
    """A case of callbacks, for a folder that they may write to."""
    return Case(name, options.pop("build", net), rows(4), callbacks=given, **options)


def watched(what: str, compare: Callable[[Any, Any], None]) -> Case:
    """A case of a callback on rank 0 alone that uses the network between epochs."""

    def check(plain: Path, product: Path) -> None:
        seen = [
            [eval(line) for line in Path(folder, "seen.txt").read_text().splitlines()] for folder in (plain, product)
        ]
        assert len(seen[0]) == len(seen[1]) == 2
        compare(*seen)

    return called(f"callback: {what}", lambda f: [(userlib.Watcher, {"what": what, "path": f, **FIRST})], check=check)


def close(plain: Any, product: Any) -> None:
    np.testing.assert_allclose(np.ravel(product), np.ravel(plain), rtol=1e-5, atol=1e-5)


def same(plain: Any, product: Any) -> None:
    assert plain == product


def cloned(plain: Any, product: Any) -> None:
    assert [one[:2] for one in plain] == [one[:2] for one in product]
    close([one[2] for one in plain], [one[2] for one in product])


def same_model(plain: Path, product: Path) -> None:
    """The file of ModelCheckpoint is a compiled model: the same one."""
    expected, got = (keras.saving.load_model(folder / "best.keras") for folder in (plain, product))
    assert type(got) is type(expected)
    assert type(got.optimizer) is type(expected.optimizer)
    for one, other in zip(got.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def same_weights(plain: Path, product: Path) -> None:
    expected, got = net(), net()
    expected.load_weights(plain / "2.weights.h5")
    got.load_weights(product / "2.weights.h5")
    for one, other in zip(got.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def same_table(plain: Path, product: Path) -> None:
    expected, got = ((folder / "log.csv").read_text().splitlines() for folder in (plain, product))
    assert expected[0] == got[0]
    for one, other in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose([float(x) for x in one.split(",")], [float(x) for x in other.split(",")], atol=1e-5)


def same_events(plain: Path, product: Path) -> None:
    for part in ("train", "validation"):
        assert len(list((plain / part).iterdir())) <= len(list((product / part).iterdir())) > 0


def averaged() -> Any:
    return net(O.SGD(0.1, use_ema=True, ema_momentum=0.5))


CASES = [
    called("EarlyStopping", lambda f: [("EarlyStopping", {"monitor": "val_loss", "min_delta": 10.0, "patience": 0})]),
    called("EarlyStopping, best weights", lambda f: [
           ("EarlyStopping", {"monitor": "val_mae", "mode": "max", "restore_best_weights": True})]),
    called("ReduceLROnPlateau", lambda f: [
           ("ReduceLROnPlateau", {"monitor": "loss", "min_delta": 10.0, "patience": 0, "factor": 0.1})]),
    called("LearningRateScheduler", lambda f: [("LearningRateScheduler", {"schedule": userlib.halved})]),
    called("ModelCheckpoint", lambda f: [("ModelCheckpoint", {"filepath": f"{f}/best.keras"})], check=same_model),
    called("ModelCheckpoint of weights", lambda f: [
           ("ModelCheckpoint", {"filepath": f + "/{epoch}.weights.h5", "save_weights_only": True})],
           check=same_weights),
    called("CSVLogger", lambda f: [("CSVLogger", {"filename": f"{f}/log.csv"})], check=same_table),
    called("TensorBoard", lambda f: [("TensorBoard", {"log_dir": f})], check=same_events),
    called("TerminateOnNaN", lambda f: [("TerminateOnNaN", {})]),
    called("SwapEMAWeights", lambda f: [("SwapEMAWeights", {"swap_on_epoch": True})], build=averaged),
    watched("predict", close),
    watched("evaluate", close),
    watched("save", close),
    watched("weights", same),
    watched("clone", cloned),
    called("own callback: learning rate", lambda f: [(userlib.Cooling, {"rate": 0.2})]),
    called("own callback: stops", lambda f: [(userlib.StopsAtOnce, {})]),
    called("own callback: stops, on one rank", lambda f: [(userlib.StopsAtOnce, FIRST)]),
    Case("patience, restoreBestWeights", net, rows(4), lambda: {"patience": 0, "restoreBestWeights": True}),
    called("LambdaCallback", lambda f: [("LambdaCallback", {"on_epoch_end": lambda epoch, logs: None})],
           refused="callback"),
]  # fmt: skip
