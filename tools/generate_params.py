"""Write what follows from the declarations of Params: ``cos_ml/accessors.pyi`` and ``docs/params.md``."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

from cos_ml import accessors
from cos_ml.estimator import DeepNetEstimator
from cos_ml.images import ImageAssembler
from cos_ml.model import DeepNetModel
from cos_ml.params import DeclaredParam, ModelParams
from cos_ml.text import SequenceDecoder, Vocabulary, VocabularyModel
from cos_ml.training_params import TrainingParams

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "cos_ml/accessors.pyi"
REFERENCE = ROOT / "docs/params.md"
HEAD = """\
<!-- Generated from the declarations of Params by `make params`: do not edit. -->

# Params

Every Param is a keyword of the constructor and has a getter and a setter: `batchSize`, `getBatchSize()`,
`setBatchSize(64)`. In Python, None unsets one. `print(estimator.explainParams())` shows them with their values, and
`cos-ml params` on the command line.
"""
# The first Param of each part of DeepNetEstimator's.
PARTS = {
    "model": "The network, and the columns that it reads",
    "validationIndicatorCol": "Validation",
    "loss": "Loss and optimizer",
    "batchSize": "How long, and in which order",
    "callbacks": "Callbacks and frozen layers",
    "feed": "How rows reach the ranks",
    "checkpointDir": "Checkpoints and failures",
    "numTrainWorkers": "Ranks",
    "gradientCompression": "Speed",
    "featureLayers": "Output columns and scoring",
}
OTHERS = (ImageAssembler, Vocabulary, SequenceDecoder)
CLASSES = {
    accessors.ModelAccessors: ModelParams,
    accessors.TrainingAccessors: TrainingParams,
    accessors.AttributionAccessors: DeepNetModel,
    accessors.EstimatorAccessors: DeepNetEstimator,
    accessors.ImageAccessors: ImageAssembler,
    accessors.VocabularyAccessors: Vocabulary,
    accessors.VocabularyModelAccessors: VocabularyModel,
    accessors.DecoderAccessors: SequenceDecoder,
}


def declarations(stage: type) -> list[DeclaredParam[Any]]:
    """The Params of a class of stages, in the order of its constructor, or of its declarations if it has none."""
    names = getattr(inspect.unwrap(stage.__init__), "__kwdefaults__", None) or vars(stage)
    found = (getattr(stage, name, None) for name in names)
    return [param for param in found if isinstance(param, DeclaredParam)]


def stub() -> str:
    """The text of ``accessors.pyi``."""
    head = '"""Generated from the declarations of Params by ``make params``: do not edit."""\n\n'
    head += "from os import PathLike\nfrom typing import Any, Self\n"
    return head + "".join(_stub_of(base, stage) for base, stage in CLASSES.items())


def _stub_of(base: type, stage: type) -> str:
    parents = ", ".join(parent.__name__ for parent in base.__bases__ if parent is not object)
    lines = [f"\nclass {base.__name__}{f'({parents})' if parents else ''}:", *_docstring(base.__doc__ or "", 4)]
    params = declarations(stage)
    if not hasattr(stage, f"set{params[-1].name[0].upper()}{params[-1].name[1:]}"):
        return "\n".join(lines + [line for param in params for line in _getter(stage, param)]) + "\n"
    lines += ["    def setParams(", "        self,", "        *,"]
    lines += [f"        {param.name}: {_nullable(param.accepts)} = ...," for param in params]
    lines += ["    ) -> Self:", *_docstring(accessors.ModelAccessors.setParams.__doc__ or "", 8)]
    for param in params:
        upper = param.name[0].upper() + param.name[1:]
        lines += _getter(stage, param)
        doc = getattr(stage, f"set{upper}").__doc__
        lines += [f"    def set{upper}(self, value: {param.accepts}) -> Self:", *_docstring(doc, 8)]
    return "\n".join(lines) + "\n"


def _getter(stage: type, param: DeclaredParam[Any]) -> list[str]:
    name = f"get{param.name[0].upper()}{param.name[1:]}"
    if name not in param.generated:
        return []
    return [f"    def {name}(self) -> {param.returns}:", *_docstring(getattr(stage, name).__doc__, 8)]


def _docstring(text: str, indent: int) -> list[str]:
    lines = textwrap.wrap(f'"""{text}"""', 120 - indent, break_on_hyphens=False)
    return [" " * indent + line for line in lines]


def _nullable(annotation: str) -> str:
    return annotation if annotation == "Any" else f"{annotation} | None"


def reference() -> str:
    """The text of ``docs/params.md``: a heading for each Param, which links and searches lead to."""
    lines = [HEAD, "## DeepNetEstimator", "", "DeepNetModel has those marked *also of DeepNetModel*, too."]
    for param in declarations(DeepNetEstimator):
        if param.name in PARTS:
            lines += ["", f"### {PARTS[param.name]}"]
        lines += _entry(param, ", also of DeepNetModel" if hasattr(ModelParams, param.name) else "")
    own = [param for param in declarations(DeepNetModel) if not hasattr(DeepNetEstimator, param.name)]
    for stage, params in {DeepNetModel: own, **{stage: declarations(stage) for stage in OTHERS}}.items():
        lines += ["", f"## {stage.__name__}"] if params else []
        for param in params:
            lines += _entry(param, "", f"{stage.__name__}.")
    return "\n".join(lines) + "\n"


def _entry(param: DeclaredParam[Any], also: str, prefix: str = "") -> list[str]:
    default = "unset by default" if param.default is None else f"default `{_literal(param.default)}`"
    facts = f"`{param.accepts}`, {default}{also}"
    return [
        "",
        f"#### {prefix}{param.name}",
        "",
        f"*{facts}*  ".rstrip(),
        "",
        f"{param.doc[0].upper()}{param.doc[1:]}.",
    ]


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def main() -> None:
    """Write both files."""
    STUB.write_text(stub())
    REFERENCE.write_text(reference())


if __name__ == "__main__":
    main()
