"""Base classes that show editors and type checkers the getters and setters of Params (driver side).

``DeclaredParam`` makes the methods at run time. Their signatures are in ``accessors.pyi``, which ``make params``
generates from the declarations.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AttributionAccessors",
    "DecoderAccessors",
    "EstimatorAccessors",
    "ImageAccessors",
    "ModelAccessors",
    "TrainingAccessors",
    "VocabularyAccessors",
    "VocabularyModelAccessors",
]


class ModelAccessors:
    """Getters and setters of the Params that estimator and model share."""

    def setParams(self: Any, **kwargs: Any) -> Any:
        """Sets any of the Params by keyword, as the constructor does; None unsets one."""
        for name in kwargs:
            if not (self.hasParam(name) and hasattr(self, f"set{name[0].upper()}{name[1:]}")):
                raise TypeError(f"setParams() got an unexpected keyword argument {name!r}")
        return self._set(**kwargs)


class TrainingAccessors(ModelAccessors):
    """Getters of the Params of a training."""


class AttributionAccessors(TrainingAccessors):
    """Getters and setters of DeepNetModel's Params."""


class EstimatorAccessors(TrainingAccessors):
    """Getters and setters of DeepNetEstimator's Params."""


class ImageAccessors:
    """Getters and setters of ImageAssembler's Params."""

    setParams = ModelAccessors.setParams


class VocabularyAccessors:
    """Getters and setters of Vocabulary's Params."""

    setParams = ModelAccessors.setParams


class VocabularyModelAccessors:
    """Getters and setters of VocabularyModel's Params."""

    setParams = ModelAccessors.setParams


class DecoderAccessors:
    """Getters and setters of SequenceDecoder's Params."""

    setParams = ModelAccessors.setParams
