"""The settings of a command: its flags, flags that are Params, and a job file (driver side)."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cos_ml.errors import InvalidInputError, SetupError

__all__ = ["UsageError", "folded", "from_job_file", "names_of_params", "param_flags", "params_of", "split"]

NOT_FLAGS = ("model",)  # Params that a flag of another name sets


class UsageError(InvalidInputError):
    """The command line has an argument that the command does not know, for which the exit status is 2."""


def names_of_params(stage: type) -> list[str]:
    """The Params of a stage that flags set, in the order of its constructor."""
    return [name for name in inspect.unwrap(stage.__init__).__kwdefaults__ if name not in NOT_FLAGS]  # type: ignore[misc]


def param_flags(rest: Sequence[str]) -> dict[str, Any]:
    """The flags that argparse does not know, by name: ``--batch-size 64``, ``--batchSize=64``, ``--useGpu`` (True)."""
    found: dict[str, Any] = {}
    name = ""
    for word in rest:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word.partition("=")
            name = flag[2:]
            found[name] = value if equals else True
        elif name and found[name] is True:
            found[name] = word
        else:
            raise UsageError(f"Unexpected argument {word!r}: flags begin with '--' and take one value each.")
    return found


def from_job_file(path: str, known: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a YAML or JSON file: those that are flags of the command (``known``), and the others."""
    text = Path(path).read_text()
    try:
        content = json.loads(text) if path.endswith(".json") else _yaml(text, path)
    except ValueError as error:
        raise InvalidInputError(f"--job {path}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidInputError(f"--job {path}: expected a mapping of names to values.")
    flags = {folded(name): name for name in known}
    own = {flags[folded(key)]: value for key, value in content.items() if folded(key) in flags}
    return own, {key: value for key, value in content.items() if folded(key) not in flags}


def _yaml(text: str, path: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise SetupError(f'--job {path}: YAML needs a package: pip install "cos-ml[cli]". JSON needs none.') from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def params_of(stage: type, given: dict[str, Any], flags: Collection[str] = ()) -> dict[str, Any]:
    """The Params that were given by any spelling (``batchSize``, ``batch-size``), as keywords of the stage.

    Raises:
        InvalidInputError: a name is neither a Param nor a flag, is given twice, or a value can't be one of its Param.
    """
    names = {folded(name): name for name in names_of_params(stage)}
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = names.get(folded(key))
        if name is None:
            raise UsageError(_unknown(key, [*names.values(), *flags]))
        if name in found:
            raise InvalidInputError(f"Param {name} is given twice: as {key!r} and in another spelling.")
        found[name] = _value(name, getattr(stage, name).returns, value)
    return found


def _unknown(key: str, known: list[str]) -> str:
    spellings = {folded(name): name for name in known}
    near = [f"--{spellings[one]}" for one in difflib.get_close_matches(folded(key), list(spellings), 3, 0.7)]
    hint = f"Did you mean {' or '.join(near)}?" if near else "`cos-ml params` lists all Params."
    return f"--{key}: there is no such flag or Param. {hint}"


def folded(name: str) -> str:
    """A name without what distinguishes its spellings: hyphens, underscores, capitals."""
    return name.replace("-", "").replace("_", "").lower()


def _value(name: str, kind: str, value: Any) -> Any:
    """A Param's value, from the text of a flag; values of a job file that are not strings stay as they are."""
    if name == "callbacks":
        return _callbacks(value)
    if kind == "bool":
        return {"true": True, "false": False}.get(str(value).lower(), value)
    if value is True:
        raise InvalidInputError(f"--{name}: expected a value.")
    if not isinstance(value, str) or kind == "str":
        return value
    if kind in ("int", "float"):
        return _number(value)
    if value.lstrip()[:1] in ("[", "{"):
        return _json(name, value)
    if kind.startswith("dict") and "=" in value:
        return _pairs(value)
    if kind.startswith("list"):
        return [_number(item) if "float" in kind else item for item in split(value)]
    if name in ("metrics", "lossWeights"):
        return [_number(item) for item in split(value)]
    return value


def _callbacks(value: Any) -> Any:
    """Callbacks by name, ``EarlyStopping,my.module:Own``, or as mappings with the key "class" and the arguments."""
    from cos_ml.callbacks import callback

    if isinstance(value, str):
        value = _json("callbacks", value) if value.lstrip()[:1] in ("[", "{") else split(value)
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) or (isinstance(item, dict) and "class" in item) for item in items):
        raise InvalidInputError(
            f'--callbacks: expected names of classes, or mappings with the key "class", received {value!r}.'
        )
    given: list[dict[str, Any]] = [{"class": item} if isinstance(item, str) else dict(item) for item in items]
    return [callback(item.pop("class"), **item.pop("arguments", {}), **item) for item in given]


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"--{name} {text}: this is not JSON: {error}.") from error


def split(text: str) -> list[str]:
    """The items of a text, between its commas."""
    return [item.strip() for item in text.split(",") if item.strip()]


def _pairs(text: str) -> dict[str, Any]:
    pairs = (item.partition("=") for item in split(text))
    return {key: _number(value) for key, _, value in pairs}


def _number(text: str) -> Any:
    """A text as a number, or unchanged: the Param then says what it expected."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return text
