"""What a loss is, from its name or its serialized form: its family, its labels (driver and scoring side)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = [
    "compares_rows",
    "each_loss",
    "ignored_class",
    "is_builtin",
    "is_chosen_by_shape",
    "label_kind",
    "loss_family",
    "loss_name",
    "losses_by_output",
    "needs_sum",
    "takes_logits",
    "with_output_keys",
    "without_reduction",
]

# Keras's losses, and those of cos_ml.caffe -> their family, which says what an output means, and their labels: "same"
# is the output's own shape, "ids" a class id for each row of units, "words" a row of class ids of any length, and
# "row ids" an id for each row.
LOSSES: dict[str, tuple[str | None, str]] = {
    "sparsecategoricalcrossentropy": ("sparse", "ids"),
    "categoricalgeneralizedcrossentropy": ("sparse", "ids"),
    "categoricalcrossentropy": ("categorical", "same"),
    "categoricalfocalcrossentropy": ("categorical", "same"),
    "binarycrossentropy": ("binary", "same"),
    "binaryfocalcrossentropy": ("binary", "same"),
    "caffesoftmaxloss": ("sparse", "ids"),
    "caffehingeloss": ("sparse", "ids"),
    "caffesigmoidcrossentropy": ("binary", "same"),
    "caffeeuclideanloss": (None, "same"),
    "ctc": (None, "words"),
    "circle": (None, "row ids"),
} | dict.fromkeys(
    (
        "meansquarederror",
        "meanabsoluteerror",
        "meanabsolutepercentageerror",
        "meansquaredlogarithmicerror",
        "cosinesimilarity",
        "huber",
        "logcosh",
        "hinge",
        "squaredhinge",
        "categoricalhinge",
        "kldivergence",
        "poisson",
        "dice",
        "tversky",
    ),
    (None, "same"),
)
SHORT = {
    "bce": "binarycrossentropy",
    "kld": "kldivergence",
    "mae": "meanabsoluteerror",
    "mse": "meansquarederror",
    "mape": "meanabsolutepercentageerror",
    "msle": "meansquaredlogarithmicerror",
}
CHOSEN = ("ce", "crossentropy")
ACROSS_RANKS = ("sum", "mean_with_sample_weight")  # reductions that divide by what only all ranks know


def loss_name(loss: Any) -> str:
    """The name of a loss, given by name or as a serialized object or function."""
    if not isinstance(loss, dict):
        return str(loss or "")
    if loss.get("class_name") == "function":
        return str(loss.get("config"))
    return str(loss.get("class_name", ""))


def loss_family(loss: Any, units: int | None = None) -> str | None:
    """A classification loss's family: "sparse", "categorical" or "binary"; None for any other loss.

    Args:
        loss: the loss.
        units: the size of the output's last axis, which decides what Keras's "crossentropy" is.
    """
    if is_chosen_by_shape(loss):
        return "binary" if units == 1 else "categorical"
    return LOSSES.get(_plain_name(loss), (None, ""))[0]


def label_kind(loss: Any) -> str | None:
    """The labels that one of Keras's own losses takes: "same", "ids", "words" or "row ids"; None for any other loss."""
    return "same" if is_chosen_by_shape(loss) else LOSSES.get(_plain_name(loss), (None, None))[1]


def is_builtin(loss: Any) -> bool:
    """Whether a loss is one of Keras's own."""
    return label_kind(loss) is not None


def is_chosen_by_shape(loss: Any) -> bool:
    """Whether Keras chooses the cross-entropy by the shapes of output and labels."""
    return _plain_name(loss) in CHOSEN


def takes_logits(loss: Any) -> bool:
    """Whether a serialized loss takes logits."""
    return bool(_config(loss).get("from_logits"))


def ignored_class(loss: Any) -> float | None:
    """The class that a sparse loss leaves out; None if it counts all."""
    ignored = _config(loss).get("ignore_class")
    return None if ignored is None else float(ignored)


def needs_sum(loss: Any) -> bool:
    """Whether the value of a loss on one rank depends on a number that all ranks add up in the step."""
    config = _config(loss)
    return config.get("ignore_class") is not None or config.get("reduction") in ACROSS_RANKS


def compares_rows(loss: Any) -> bool:
    """Whether a loss, as far as its name tells, compares rows with each other: on a rank, its own rows alone."""
    return label_kind(loss) == "row ids" or "triplet" in loss_name(loss).lower()


def losses_by_output(loss: Any, outputs: Any) -> list[Any]:
    """The loss of each output: Keras takes one for all of them, a list in their order, or a dict by key or name."""
    if isinstance(loss, (list, tuple)):
        return [loss[index] if index < len(loss) else None for index in range(len(outputs))]
    if isinstance(loss, dict) and "class_name" not in loss:
        return [loss.get(output.key, loss.get(output.name)) for output in outputs]
    return [loss] * len(outputs)


def each_loss(loss: Any) -> Iterator[Any]:
    """Every single loss in the argument ``loss`` of ``keras.Model.compile``."""
    if isinstance(loss, (list, tuple)):
        for one in loss:
            yield from each_loss(one)
    elif isinstance(loss, dict) and "class_name" not in loss:
        for one in loss.values():
            yield from each_loss(one)
    elif loss is not None:
        yield loss


def without_reduction(loss: Any) -> str | None:
    """The name of the first loss whose reduction is None; None if every loss is reduced to a number."""
    for one in each_loss(loss):
        config = _config(one)
        if "reduction" in config and config["reduction"] in (None, "none"):
            return loss_name(one)
    return None


def with_output_keys(value: Any, outputs: Any) -> Any:
    """A dict of losses, metrics or weights by output as Keras takes it.

    Keras wants the keys of an output that is a dict, where people may give the names of the layers; and an entry for
    each output of a list, which is None where there is none.
    """
    if not isinstance(value, dict) or "class_name" in value:
        return value
    keys = {output.name: output.key for output in outputs if output.key is not None}
    taken = set(keys.values())
    renamed = {name if name in taken else keys.get(name, name): one for name, one in value.items()}
    if taken or len(outputs) == 1:
        return renamed
    return {output.name: renamed.get(output.name) for output in outputs} | renamed


def _plain_name(loss: Any) -> str:
    """A name of a loss without the ways to write it; empty for a loss that is registered by a user."""
    registered = str(loss.get("registered_name")) if isinstance(loss, dict) else ""
    if ">" in registered and not registered.startswith("cos_ml>Caffe"):
        return ""
    if isinstance(loss, dict) and loss.get("class_name") == "LossFunctionWrapper":
        return _plain_name(_config(loss).get("fn"))
    name = loss_name(loss).replace("_", "").lower()
    return SHORT.get(name, name)


def _config(loss: Any) -> dict[str, Any]:
    config = loss.get("config") if isinstance(loss, dict) else None
    return config if isinstance(config, dict) else {}
