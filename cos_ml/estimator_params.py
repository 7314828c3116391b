"""The Params of DeepNetEstimator (driver side)."""

from __future__ import annotations

from typing import Any

from cos_ml.accessors import EstimatorAccessors
from cos_ml.initial_weights import initial_weights
from cos_ml.model import DeepNetModel
from cos_ml.params import DeclaredParam
from cos_ml.training_params import TrainingParams

__all__ = ["EstimatorParams"]


def _pretrained(value: Any) -> DeepNetModel:
    """A DeepNetModel of the estimator's own: a Transformer is what Spark can save in a grid of Params."""
    return value.copy() if isinstance(value, DeepNetModel) else DeepNetModel(model=value)


class EstimatorParams(EstimatorAccessors, TrainingParams, setters=True):
    """The Params of DeepNetEstimator: those of a training, and the network that it starts from."""

    model = DeclaredParam(
        _pretrained,
        "the network to train, starting from its weights: a built keras.Model, compiled or not, the path of a .keras "
        "file, or a DeepNetModel",
        accepts="Any",
    )

    initialWeights = DeclaredParam(
        initial_weights,
        "weights to start from: a keras.Model, a DeepNetModel, or the path of a .keras, .h5, .weights.h5 or "
        ".caffemodel file. Each layer takes those of the layer there that has its name and shapes; others keep model's",
        accepts="Any",
    )

    def getModel(self) -> Any:
        """The network that training starts from, as a ``keras.Model`` of the caller's own."""
        return self.getOrDefault(self.model).getModel()

    def spec_fields(self, unset: dict[str, Any] | None = None) -> dict[str, Any]:
        """The fields of a TrainSpec that are Params, where those have a value; else ``unset`` has one."""
        declared = [param for param in self.declarations() if param.spec and self.isDefined(param)]
        fields = {str(param.spec): self.getOrDefault(param) for param in declared}
        if "max_steps" in fields and not self.isSet(self.epochs):
            fields["epochs"] = fields["max_steps"]  # an epoch has a step at least, so steps alone count
        chosen = {str(param.spec) for param in declared if self.isSet(param)}
        return fields | {name: value for name, value in (unset or {}).items() if name not in chosen}

    def identity(self) -> dict[str, Any]:
        """The Params that decide what a fit computes, by name, where they have a value."""
        declared = [param for param in self.declarations() if param.identifies and self.isDefined(param)]
        return {param.name: self.getOrDefault(param) for param in declared}
