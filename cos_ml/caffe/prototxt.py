"""Caffe's text files: networks and solvers as messages, in the format of today (driver side)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import text_format

from cos_ml.caffe.schema import V1_TYPES, message
from cos_ml.errors import InvalidInputError
from cos_ml.paths import as_string, local_path
from cos_ml.stores import open_filesystem, retried

__all__ = ["network", "read_bytes", "resolve", "selected", "solver", "spelled"]

logger = logging.getLogger(__name__)
# Fields that say nothing about what is computed, or belong to layers that are refused by name.
QUIET = {
    "engine",
    "share_in_parallel",
    "debug_info",
    "prefetch",
    "cudnn_convolution_algo_seeker",
    "force_encoded_color",
}
OLD_TRANSFORM = ("scale", "mean_file", "crop_size", "mirror")
LIMIT = 64 << 20  # a network in text is kilobytes


def network(prototxt: Any) -> Any:
    """The network in a file, in a text or in a NetParameter, as a NetParameter in the format of today."""
    net = message("NetParameter")
    if isinstance(prototxt, type(net)):
        net.CopyFrom(prototxt)
        where = net.name or "the network"
    else:
        net, where = _parsed(prototxt, net)
    if net.layer and net.layers:
        raise InvalidInputError(f"{where}: has both `layer` and the older `layers`: write all of them as `layer`.")
    old = [_upgraded(layer, where) for layer in net.layers]
    inputs = _input_layer(net, where)
    layers = [*([inputs] if inputs else []), *old, *net.layer]
    for field in ("layers", "layer", "input", "input_dim", "input_shape"):
        net.ClearField(field)
    net.layer.extend(layers)
    if not net.layer:
        raise InvalidInputError(f"{where}: has no layers: expected a Caffe network.")
    return net


def solver(prototxt: Any) -> Any:
    """The solver in a file or a text, as a SolverParameter."""
    found = message("SolverParameter")
    return prototxt if isinstance(prototxt, type(found)) else _parsed(prototxt, found)[0]


def selected(net: Any, phase: str = "TEST", stages: Sequence[str] = (), level: int = 0) -> list[Any]:
    """The layers that are in the network in this phase, at this level and with these stages and the network's own."""
    if phase not in ("TRAIN", "TEST"):
        raise InvalidInputError(f'phase: expected "TRAIN" or "TEST", received {phase!r}.')
    if isinstance(stages, str):
        raise InvalidInputError(f"stages: expected a list of names, received {stages!r}.")
    held = {*stages, *net.state.stage}
    found = []
    for layer in net.layer:
        if layer.include and layer.exclude:
            raise InvalidInputError(f"Caffe layer {layer.name!r}: expected include or exclude rules, received both.")
        met = any(_meets(rule, phase, held, level or net.state.level) for rule in (*layer.include, *layer.exclude))
        if met if layer.include else not met:
            found.append(layer)
    return found


def spelled(name: str) -> str:
    """A layer's or blob's name as Keras has it: ``/``, which Keras refuses, is ``_``."""
    return name.replace("/", "_")


def resolve(path: str, beside: Any) -> str:
    """A path that a Caffe file names: as it is if it exists, else beside that file."""
    found = local_path(path)
    if found is None or os.path.exists(found) or not isinstance(beside, (str, os.PathLike)):
        return path
    folder = os.path.dirname(local_path(beside) or "")
    return next((p for p in (os.path.join(folder, found),) if os.path.exists(p)), path)


def read_bytes(path: Any, what: str) -> bytes:
    """What a file holds; ``what`` names its kind in errors."""
    name = as_string(path)
    local = local_path(path)
    try:
        if local is None:
            filesystem, place = open_filesystem(name)
            return bytes(retried(lambda: filesystem.cat_file(place)))
        with open(local, "rb") as file:
            return file.read()
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInputError(f"{name}: expected {what}, but it can't be read: {error}") from error


def _parsed(prototxt: Any, into: Any) -> tuple[Any, str]:
    """A file or a text as a message, and the name for it in errors."""
    kind = "a Caffe solver" if into.DESCRIPTOR.name == "SolverParameter" else "a Caffe network"
    text = as_string(prototxt)
    where = "The text"
    if ("{" not in text and "\n" not in text) or os.path.exists(text):
        where = text
        data = read_bytes(prototxt, f"{kind} (prototxt)")
        if b"\0" in data or len(data) > LIMIT:
            raise InvalidInputError(f"{where}: expected {kind} as text (prototxt), received a binary file.")
        text = data.decode("utf-8-sig", "replace")
    try:
        text_format.Parse(text, into, allow_unknown_field=True)
        unknown = sorted(set(_unknown(text_format.Tokenizer(text.splitlines()), into.DESCRIPTOR)))
    except text_format.ParseError as error:
        raise InvalidInputError(f"{where}: can't be read as {kind} (line:column : problem): {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}: can't be read as {kind}: {error}") from error
    if unknown:
        level = logging.INFO if QUIET.issuperset(unknown) else logging.WARNING
        logger.log(level, "%s: passed over fields that Caffe doesn't have or that change nothing here: %s", where,
                   ", ".join(unknown))  # fmt: skip
    return into, where


def _unknown(tokens: Any, descriptor: Any, end: str | None = None) -> Iterator[str]:
    """The fields of a well-formed text that a message does not have."""
    while not (tokens.AtEnd() if end is None else tokens.TryConsume(end)):
        name = tokens.token
        field = descriptor.fields_by_name.get(name) if descriptor else None
        if descriptor and field is None:
            yield name
        tokens.NextToken()
        tokens.TryConsume(":")
        many = tokens.TryConsume("[")
        while not (many and tokens.TryConsume("]")):
            if tokens.token in ("{", "<"):
                close = ">" if tokens.token == "<" else "}"
                tokens.NextToken()
                yield from _unknown(tokens, field.message_type if field else None, close)
            else:
                _skip_value(tokens)
            if not many:
                break
            tokens.TryConsume(",")
        if not tokens.TryConsume(","):
            tokens.TryConsume(";")


def _skip_value(tokens: Any) -> None:
    """Pass a number, a name, or strings, which may follow one another."""
    tokens.TryConsume("-")
    text = tokens.token[:1] in ("'", '"')
    tokens.NextToken()
    while text and tokens.token[:1] in ("'", '"'):
        tokens.NextToken()


def _meets(rule: Any, phase: str, stages: set[str], level: int) -> bool:
    """Whether a state meets a rule of include or exclude."""
    phases = rule.DESCRIPTOR.fields_by_name["phase"].enum_type.values_by_name
    if rule.HasField("phase") and rule.phase != phases[phase].number:
        return False
    if (rule.HasField("min_level") and level < rule.min_level) or (
        rule.HasField("max_level") and level > rule.max_level
    ):
        return False
    return stages.issuperset(rule.stage) and stages.isdisjoint(rule.not_stage)


def _upgraded(old: Any, where: str) -> Any:
    """A layer of the format of 2013 in the format of today."""
    if old.HasField("layer"):
        raise InvalidInputError(
            f"{where}: layer {old.layer.name!r} is in Caffe's first format (layers {{ layer {{ ... }} }}): "
            "upgrade the file with Caffe's upgrade_net_proto_text or upgrade_net_proto_binary."
        )
    new = message("LayerParameter")
    for field, value in old.ListFields():
        if field.name in ("type", "param", "blobs_lr", "weight_decay", "blob_share_mode"):
            continue
        if hasattr(value, "extend"):
            getattr(new, field.name).extend(value)
        elif field.message_type:
            getattr(new, field.name).CopyFrom(value)
        else:
            setattr(new, field.name, value)
    new.type = V1_TYPES.get(old.type, "")
    specs = max(len(old.param), len(old.blobs_lr), len(old.weight_decay), len(old.blob_share_mode))
    new.param.extend(message("ParamSpec") for _ in range(specs))
    for target, values in {
        "name": old.param, "lr_mult": old.blobs_lr, "decay_mult": old.weight_decay, "share_mode": old.blob_share_mode,
    }.items():  # fmt: skip
        for spec, value in zip(new.param, values, strict=False):
            setattr(spec, target, value)
    for data in (new.data_param, new.image_data_param):
        for field in OLD_TRANSFORM:
            if data.HasField(field):
                setattr(new.transform_param, field, getattr(data, field))
    return new


def _input_layer(net: Any, where: str) -> Any:
    """The Input layer that ``input`` and ``input_dim`` or ``input_shape`` stand for; None without them."""
    if not net.input:
        return None
    shapes = [list(shape.dim) for shape in net.input_shape]
    if net.input_dim:
        shapes = [list(net.input_dim[i : i + 4]) for i in range(0, len(net.input_dim), 4)]
    if shapes and (len(shapes) != len(net.input) or (net.input_dim and len(net.input_dim) % 4)):
        raise InvalidInputError(
            f"{where}: expected a shape for each of the inputs {', '.join(net.input)} (input_shape, or 4 input_dim), "
            f"received {shapes}."
        )
    layer = message("LayerParameter")
    layer.name, layer.type = "input", "Input"
    layer.top.extend(net.input)
    for shape in shapes:
        layer.input_param.shape.add().dim.extend(shape)
    return layer
