"""A training or validation step that all ranks share, as it is traced (rank side).

Keras's ``train_step``, or the user's, runs as it is. Whatever it computes of this rank's rows weighs p = rows here /
rows on all ranks (see ``cos_ml/network/step.py``); what is needed of the other ranks is summed here:

- gradients, in the ``apply`` of each optimizer;
- counts of valid elements, for losses with masks;
- moments of ``BatchNormalization(synchronized=True)``, which asks TensorFlow's replica context for them.

A rank without rows gives zeros to the same sums in the same order, and applies the same optimizers. The zeros come
from the data: Horovod's operations are not stateful, so TensorFlow would compute a sum of constants once, when it
optimizes the graph, and would drop a sum that nobody uses, on this rank alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import keras
import tensorflow as tf

from cos_ml import optimizers
from cos_ml.errors import InvalidInputError
from cos_ml.network.step import Step
from cos_ml.rank.collectives import Communicator

__all__ = [
    "Need",
    "SharedStep",
    "adds_up",
    "optimizers_of",
    "refuse_hidden_optimizers",
    "share_gradients",
    "share_result",
]

Tensors = Sequence[Any]

# Optimizers in whose rules gradients are nothing but a term of a sum, or are made dense first.
ADDING = (
    keras.optimizers.SGD, keras.optimizers.Lion,
    optimizers.CoupledSGD, optimizers.CoupledAdagrad, optimizers.CoupledRMSprop,
)  # fmt: skip


@dataclass(frozen=True)
class Need:
    """One sum over the ranks that a step needs, as a rank without rows takes part in it.

    Attributes:
        give: what the rank gives to the sum, as a function of its rows, the tensor 0.
        act: what follows the sum on every rank, as a function of the step and the sums; None for nothing.
        gradients: whether the sum is one of gradients.
        owners: the variables of gradients, because a sparse gradient may not tell its shape; None for unknown ones.
        additive: whether slices of the same row may be added up before they are applied.
    """

    give: Callable[[Any], list[Any]]
    act: Callable[[SharedStep, list[Any]], None] | None
    gradients: bool = False
    owners: Sequence[Any] = ()
    additive: bool = False


class SharedStep(Step, tf.distribute.ReplicaContext):
    """One step as it is traced.

    Args:
        communicator: connects this rank to the others.
        name: the same on all ranks, and another one for each of the functions that are traced.
        rows: int32 scalar, this rank's rows.
        total: int32 scalar, the rows on all ranks.
        equal: whether all ranks have the same number of rows in every step, so that a mean replaces the weights p.
        compression: "fp16" halves the bytes of gradients between ranks; or "none".
        kept: whether ``apply`` only keeps the gradients, because XLA compiles the step and can't sum.
        own_logs: whether the logs of the step are the user's own: results of metrics in it are then those of all ranks.

    Attributes:
        needs: the sums over the ranks so far, in order.
        failures: float32 [1], how many ranks have had a loss that is not finite; None before gradients are summed.
        gradients: what ``apply`` was given, and the sum over the ranks that it needs; None before it is called.
    """

    def __init__(
        self, communicator: Communicator, name: str, rows: Any, total: Any,
        equal: bool = False, compression: str = "none", kept: bool = False, own_logs: bool = False,
    ) -> None:  # fmt: skip
        several = communicator.size > 1
        Step.__init__(self, tf.cast(rows, tf.float64) / tf.cast(total, tf.float64) if several else None)
        tf.distribute.ReplicaContext.__init__(self, tf.distribute.get_strategy(), 0)
        self.communicator, self.name, self.rows = communicator, name, rows
        self.equal, self.compression, self.kept, self.own_logs = equal, compression, kept, own_logs
        self.needs: list[Need] = []
        self.previous: list[Any] = []
        self.applying = False
        self.failures: Any = None
        self.gradients: tuple[list[Any], Need] | None = None

    @contextmanager
    def active(self) -> Iterator[Self]:
        """Within the block the hooks act for this step, and Keras asks it for sums."""
        with self, super().active():
            yield self

    def sum(self, tensors: Tensors, need: Need, anchored: bool = True) -> list[Any]:
        """The sums over the ranks of these tensors; ``need`` says how a rank without rows takes part.

        An anchored sum is computed even if nobody uses it.
        """
        if self.kept and self.communicator.size > 1:
            raise InvalidInputError(
                "Param jitCompile: this step needs sums over the ranks before its gradients (masks, synchronized "
                "BatchNormalization), which XLA can't compile. Set jitCompile=False."
            )
        self.needs.append(need)
        name = f"{self.name}.{len(self.needs)}"
        mean = self.equal and need.gradients
        compression = self.compression if need.gradients else "none"
        graph = tf.compat.v1.get_default_graph()  # a step that runs eagerly is in order anyway
        here = [one for one in self.previous if not tf.executing_eagerly() and one.graph is graph]
        with tf.control_dependencies(here):  # in order, so that none is merged with another that sends the same
            sums = self.communicator.sum_tensors(
                [_shaped(one, owner) for one, owner in itertools.zip_longest(tensors, need.owners)], name, mean,
                compression, anchored and need.act is None, need.additive,
            )  # fmt: skip
        self.previous = [one.values if isinstance(one, tf.IndexedSlices) else one for one in sums]
        return sums

    def whole_count(self, count: Any) -> Any:
        """The sum of a scalar over the ranks."""
        return self.sum([count], Need(zeros_like([count]), None))[0]

    def weighed(self, gradient: Any, variable: Any) -> Any:
        """A gradient of this rank's rows, weighed for the sum over the ranks."""
        if isinstance(gradient, tf.IndexedSlices):
            values = gradient.values if self.equal else gradient.values * self.p(gradient.values)
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        dense = gradient if self.equal else gradient * self.p(gradient)
        return dense if variable is None else tf.ensure_shape(dense, variable.shape)  # its own can be partly unknown

    def apply(self, gradients: list[Any], need: Need) -> None:
        """Sum gradients over the ranks, and apply them."""
        if need.act is not None:
            need.act(self, self.sum(gradients, need))

    def keep(self, gradients: list[Any], need: Need) -> None:
        """Keep the gradients, which are summed and applied after the part of the step that XLA compiles."""
        if self.gradients is not None:
            raise InvalidInputError(
                "Param jitCompile: a step with several optimizers, or several updates, can't be compiled by XLA on "
                "several ranks. Set jitCompile=False."
            )
        self.gradients = gradients, need

    def lost(self) -> Any:
        """float32 [1]: how many of the losses since gradients were last summed are not finite."""
        losses = [tf.convert_to_tensor(loss) for loss in self.losses]
        finite = [tf.math.is_finite(loss) for loss in losses if loss.dtype.is_floating]
        self.losses.clear()
        return tf.reshape(tf.add_n([tf.cast(~one, tf.float32) for one in finite]) if finite else tf.zeros([]), [1])

    def take_part(self, needs: Sequence[Need]) -> list[Any]:
        """Take part in a step without having rows; returns the last sums."""
        done: list[Any] = []
        for need in needs:
            done = self.sum(need.give(self.rows), need)
            if need.act is not None:
                need.act(self, done)
        return done

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        """The sum over the ranks that Keras asks of "replicas", with the gradient of n ranks that are one."""
        if self.applying or self.communicator.size == 1:  # an optimizer asks, whose gradients are summed already
            return value

        @tf.custom_gradient  # which allows no variables in here; the sums are used, so they need no anchor
        def summed(*parts: Any) -> Any:
            def gradient(
                *upstream: Any,
            ) -> list[Any]:  # will weigh p on each rank: so weigh here, and divide by the own p
                weighed = [one * self.p(one) for one in upstream]
                sums = self.sum(weighed, Need(zeros_like(weighed), None))
                return [one / self.p(one) for one in sums]

            return self.sum(list(parts), Need(zeros_like(parts), None), anchored=False), gradient

        return keras.tree.pack_sequence_as(value, list(summed(*keras.tree.flatten(value))))


def zeros_like(tensors: Tensors, variables: Tensors = ()) -> Callable[[Any], list[Any]]:
    """A function of the tensor 0 that gives zeros like ``tensors``, but no rows of a sparse one; keeps no tensor."""
    makers = []
    for tensor, variable in zip(tensors, variables or [None] * len(tensors), strict=True):
        if isinstance(tensor, tf.IndexedSlices):
            makers.append(_no_slices(tensor, variable))
        else:
            makers.append(_zeros(tensor.shape, tensor.dtype))
    return lambda rows: [make(rows) for make in makers]


def _zeros(shape: Any, dtype: Any) -> Callable[[Any], Any]:
    return lambda rows: tf.fill(shape, tf.cast(rows, dtype))


def _no_slices(slices: Any, variable: Any) -> Callable[[Any], Any]:
    shape, dtype, kind = _shaped(slices, variable).shape, slices.values.dtype, slices.indices.dtype

    def make(rows: Any) -> Any:
        if not shape.is_fully_defined():
            raise InvalidInputError(
                "Param model: its train_step applies the gradients of an Embedding without their variables, and a rank "
                "has no rows in some step. Call apply with the variables, too."
            )
        values = tf.zeros([rows, *shape[1:]], dtype)
        return tf.IndexedSlices(values, tf.zeros([rows], kind), tf.constant(shape.as_list(), kind))

    return make


def _shaped(gradient: Any, variable: Any) -> Any:
    """A gradient; a sparse one with the shape of its variable, so that all ranks know it while they trace."""
    if variable is None or not isinstance(gradient, tf.IndexedSlices):
        return gradient
    shape = tf.constant(tuple(variable.shape), gradient.indices.dtype)
    return tf.IndexedSlices(gradient.values, gradient.indices, shape)


def share_gradients(optimizer: Any) -> None:
    """Let this optimizer apply, within a shared step, the gradients of all ranks.

    On the instance, which is the outermost ``apply``: clipping, accumulation and the finiteness check of a
    ``LossScaleOptimizer`` then see what one process sees.
    """
    apply = optimizer.apply

    def apply_shared(grads: Tensors, trainable_variables: Any = None) -> None:
        step = Step.current
        if not isinstance(step, SharedStep) or step.applying:  # applying: a LossScaleOptimizer calls its inner one
            return apply(grads, trainable_variables)
        grads = list(grads)
        variables = None if trainable_variables is None else list(trainable_variables)
        used = [index for index, gradient in enumerate(grads) if gradient is not None]

        def act(step: SharedStep, sums: list[Any]) -> None:
            step.failures = sums[-1] if step.failures is None else step.failures + sums[-1]
            averaged = dict(zip(used, sums, strict=False))
            step.applying = True
            apply([averaged.get(index) for index in range(len(grads))], variables)
            step.applying = False

        owners = [variables[index] if variables else None for index in used]
        weighed = [step.weighed(grads[index], owner) for index, owner in zip(used, owners, strict=True)]
        weighed.append(step.lost())
        need = Need(zeros_like(weighed, [*owners, None]), act, True, [*owners, None], adds_up(optimizer))
        if step.kept:
            step.keep(weighed, need)
        else:
            step.apply(weighed, need)

    optimizer.apply = apply_shared


def adds_up(optimizer: Any) -> bool:
    """Whether an optimizer does the same with the slices of a row and with their sum.

    Most of Keras's do not: Adam's second moment, say, is the sum of the slices' squares. Accumulation adds them up.
    """
    if type(optimizer) is keras.optimizers.LossScaleOptimizer:
        return adds_up(optimizer.inner_optimizer)
    kind = type(optimizer)
    if (
        kind.__module__.partition(".")[0] not in ("keras", "cos_ml")
        or kind.apply is not keras.optimizers.Optimizer.apply
    ):
        return False  # its rule can be any
    if optimizer.gradient_accumulation_steps:
        return True
    clips = optimizer.clipnorm or optimizer.global_clipnorm or optimizer.clipvalue
    return kind in ADDING and not clips


def refuse_hidden_optimizers() -> None:
    """Let an optimizer whose gradients nobody shares raise InvalidInputError within a step of several ranks."""
    kind = keras.optimizers.Optimizer
    apply = kind.apply
    if hasattr(apply, "__wrapped__"):
        return

    @functools.wraps(apply)
    def apply_shared_only(self: Any, *arguments: Any, **options: Any) -> Any:
        step = Step.current
        if isinstance(step, SharedStep) and step.communicator.size > 1 and not step.applying:
            raise InvalidInputError(
                f"Param model: its train_step applies an optimizer ({type(self).__name__}) that is no attribute of the "
                "model, so the ranks can't share its gradients. Make it an attribute, also in a list or a dict."
            )
        return apply(self, *arguments, **options)

    kind.apply = apply_shared_only


def share_result(metric: Any) -> None:
    """Let this metric's result, within a shared step whose logs are the user's own, be that over all ranks."""
    result = metric.result

    def give(rows: Any = None) -> list[Any]:
        return [tf.convert_to_tensor(variable.value) for variable in metric.variables]

    def result_over_ranks() -> Any:
        step = Step.current
        if not isinstance(step, SharedStep) or not step.own_logs:
            return result()
        sums = step.sum(give(), Need(give, None))
        with keras.StatelessScope(state_mapping=list(zip(metric.variables, sums, strict=True))):
            return result()

    metric.result = result_over_ranks


def optimizers_of(model: Any) -> list[Any]:
    """All optimizers that a step can reach: attributes of the model and of models in it, also in lists and dicts."""
    found: dict[int, Any] = {}
    models = [model, *(layer for layer in getattr(model, "layers", ()) if isinstance(layer, keras.Model))]
    for value in (value for owner in models for value in vars(owner).values()):
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        found |= {id(one): one for one in inside if isinstance(one, keras.optimizers.Optimizer)}
    return list(found.values())
