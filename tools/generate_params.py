"""Write what follows from the declarations of Params: ``cos_ml/accessors.pyi`` and the table in README.md."""

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
README = ROOT / "README.md"
BEGIN, END = "<!-- begin Params: make params -->", "<!-- end Params -->"
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


def table() -> str:
    """README's table of the Params of DeepNetEstimator; M marks those of DeepNetModel."""
    lines = ["| Param | default | meaning |", "|---|---|---|"]
    for param in declarations(DeepNetEstimator):
        default = "unset" if param.default is None else f"`{_literal(param.default)}`"
        model = " M" if hasattr(ModelParams, param.name) else ""
        lines.append(f"| `{param.name}`{model} | {default} | {param.doc.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def with_table(readme: str) -> str:
    """README's text with the table as it should be, between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    """Write both files."""
    STUB.write_text(stub())
    README.write_text(with_table(README.read_text()))


if __name__ == "__main__":
    main()
