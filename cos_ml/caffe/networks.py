"""Caffe's networks as Keras models (driver side)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from cos_ml.caffe.assemble import Read, assembled
from cos_ml.caffe.blob import Blob
from cos_ml.caffe.build import BOTTOMS, BUILDERS
from cos_ml.caffe.convert import takes_blobs
from cos_ml.caffe.inputs import DATA, build_input, drop_transform, time_first, transform_of
from cos_ml.caffe.layers import StopGradient
from cos_ml.caffe.problems import problem
from cos_ml.caffe.prototxt import network, selected, spelled
from cos_ml.caffe.sharing import Sharing
from cos_ml.caffe.weights import set_weights
from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_internals import producer

__all__ = ["layer_names", "layer_of_blob", "read", "read_layers"]

METRICS = {"Accuracy"}

logger = logging.getLogger(__name__)


def read(
    prototxt: Any, caffemodel: Any = None, phase: str = "TEST", inputs: Mapping[str, Any] | None = None,
    stages: Sequence[str] = (), level: int = 0, data_format: str = "channels_last", transform: bool = False,
) -> keras.Model:  # fmt: skip
    """Read a Caffe network as a Keras model.

    Layers have Caffe's names, with ``_`` for ``/``. Where the network has losses, the model's outputs are what they
    read, in order, then the tops that nobody reads, and the model is compiled with the losses and Caffe's Accuracy.

    Args:
        prototxt: the network's file, or its text.
        caffemodel: the weights' file; None for new weights, by the fillers.
        phase: "TRAIN" or "TEST": which layers are in the network.
        inputs: the shapes of input blobs that the file doesn't declare, without the rows, in Caffe's order:
            ``{"data": (3, 227, 227)}``.
        stages: the stages that rules of ``include`` and ``exclude`` are tested against.
        level: the level that they are tested against.
        data_format: "channels_last" where the model takes images as (height, width, channels), "channels_first" for
            Caffe's order.
        transform: whether the model does what ``transform_param`` says, for images as they are stored. Without it, its
            input is what Caffe has in the blob; a line in the log names the layers whose transformations are left out.

    Raises:
        InvalidInputError: a file is malformed, or a layer's type or one of its fields is not supported.
    """
    return read_layers(prototxt, caffemodel, phase, inputs, stages, level, data_format, transform)[0]


def read_layers(
    prototxt: Any, caffemodel: Any, phase: str, inputs: Mapping[str, Any] | None, stages: Sequence[str], level: int,
    data_format: str, transform: bool,
) -> tuple[keras.Model, list[Any]]:  # fmt: skip
    """A network as a Keras model, and the messages of its layers. Arguments are those of ``read``."""
    if data_format not in ("channels_last", "channels_first"):
        raise InvalidInputError(f'data_format: expected "channels_last" or "channels_first", received {data_format!r}.')
    if inputs is not None and not isinstance(inputs, Mapping):
        raise InvalidInputError(f'inputs: expected a mapping such as {{"data": (3, 227, 227)}}, received {inputs!r}.')
    net = network(prototxt)
    layers = selected(net, phase, stages, level)
    if not transform:
        _drop_transforms(layers)
    walk = _Walk(layers, phase, dict(inputs or {}), data_format, prototxt)
    for index, layer in enumerate(walk.layers):
        walk.add(index, layer)
    name = spelled(net.name) or "caffe"
    model = assembled(name, walk.inputs, walk.losses, walk.metrics, walk.loose, walk.softmaxes, walk.own)
    if caffemodel is not None:
        set_weights(walk.weighted(model), caffemodel)
    return model, layers


def _drop_transforms(layers: Sequence[Any]) -> None:
    """Remove the transformations of the data layers, and log which."""
    dropped = [
        layer.name for layer in layers if any(transform_of(layer, at) is not None for at in range(len(layer.top)))
    ]
    for layer in layers:
        drop_transform(layer)
    if dropped:
        logger.warning(
            "Caffe layer %s: its transform_param is not part of the model, which expects what Caffe has in the blob. "
            "For images as they are stored, pass transform=True.",
            ", ".join(dropped),
        )


def layer_of_blob(
    prototxt: Any, blob: str, phase: str = "TEST", stages: Sequence[str] = (), level: int = 0, transform: bool = False
) -> str:
    """The name of the Keras layer that gives a blob as it is at the end: of the last layer that writes it.

    Arguments are those of ``read``.

    Raises:
        InvalidInputError: no layer writes the blob.
    """
    layers = selected(network(prototxt), phase, stages, level)
    for layer in layers if not transform else ():
        drop_transform(layer)
    names = _Names(layers)
    found = None
    for index, layer in enumerate(layers):
        for at, top in enumerate(layer.top):
            if top == blob and not _is_loss(layer) and layer.type not in METRICS:
                found = names.tops.get((index, at), names.layers[index])
    if found is None:
        known = dict.fromkeys(top for layer in layers for top in layer.top)
        raise InvalidInputError(
            f"No layer writes the blob {blob!r} in the phase {phase}: the network has {', '.join(known)}."
        )
    return found


def layer_names(layers: Sequence[Any]) -> list[str]:
    """The names in Keras of a network's layers, in order; "" for data layers."""
    return _Names(layers).layers


def _is_loss(layer: Any) -> bool:
    return bool(layer.type.endswith("Loss"))


def _network_bottoms(layer: Any) -> Sequence[str]:
    """The bottoms that can't be labels."""
    if layer.type == "Silence":
        return ()
    if layer.type in METRICS or _is_loss(layer):
        return layer.bottom[: max(1, len(layer.bottom) - 1)]
    return layer.bottom


def _check_bottoms(layer: Any) -> None:
    """Raises InvalidInputError for a layer other than a loss with a wrong number of bottoms or a loss_weight."""
    least, most = BOTTOMS.get(layer.type, (1, 1))
    if not least <= len(layer.bottom) <= most:
        wanted = f"{least}" if least == most else f"{least} or more" if most == math.inf else f"{least} or {most}"
        raise problem(layer, f"expected {wanted} bottom{'s' if most > 1 else ''}, received {len(layer.bottom)}")
    if any(layer.loss_weight):
        raise problem(layer, "its loss_weight is not supported: only layers of losses may have one")


class _Names:
    """The names in Keras of a network's layers and inputs.

    Attributes:
        layers: by index; "" for data layers.
        inputs: by the indices of a data layer and of one of its tops.
        tops: what gives a top that no layer of the first kind gives: an input or its transformation, or the copy of
            one of several tops of a layer.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._used: set[str] = set()
        self.layers = ["" if one.type in DATA else self._unique(one.name or one.type) for one in layers]
        self.inputs: dict[tuple[int, int], str] = {}
        self.tops: dict[tuple[int, int], str] = {}
        for index, layer in enumerate(layers):
            for at, top in enumerate(layer.top):
                if layer.type in DATA:
                    self.inputs[index, at] = self.tops[index, at] = self._unique(top)
                    if transform_of(layer, at) is not None:
                        self.tops[index, at] = self._unique(f"{top}_transform")
                elif len(layer.top) > 1 and not _is_loss(layer) and layer.type not in METRICS:
                    self.tops[index, at] = self._unique(top)

    def _unique(self, name: str) -> str:
        name = spelled(name)
        while name in self._used:
            name += "_"
        self._used.add(name)
        return name


class _Walk:
    """A network's layers, one after the other, as a graph of Keras layers.

    Attributes:
        inputs: the Keras inputs.
        losses: the layers that are losses.
        metrics: the Accuracy layers.
        softmaxes: by the id of the tensor of a Softmax layer: the tensor of its scores.
        loose: the tops that nobody reads, by name.
        own: the Keras layers that have names of the file, not those of helpers.
    """

    def __init__(self, layers: list[Any], phase: str, shapes: dict[str, Any], data_format: str, file: Any) -> None:
        self.layers, self.phase, self.shapes, self.file = layers, phase, shapes, file
        self.channels_first = data_format == "channels_first"
        self.names = _Names(layers)
        self.sequences = time_first(layers)
        self.needed = {blob for layer in layers for blob in _network_bottoms(layer)}
        self.blobs: dict[str, Blob | None] = {}  # None for labels
        self.inputs: list[Any] = []
        self.losses: list[Read] = []
        self.metrics: list[Read] = []
        self.softmaxes: dict[int, Any] = {}
        self.loose: dict[str, Blob] = {}
        self.own: list[Any] = []
        self.sharing = Sharing()
        unknown = shapes.keys() - {top for layer in layers if layer.type in DATA for top in layer.top}
        if unknown:
            raise InvalidInputError(f"inputs: the network has no input {', '.join(sorted(unknown))}.")

    def add(self, index: int, layer: Any) -> None:
        """Add the next layer."""
        bottoms = self._bottoms(layer)
        for at, top in enumerate(layer.top):
            if top in self.blobs and (at >= len(layer.bottom) or layer.bottom[at] != top):
                raise problem(layer, f"its top {top!r} is also written by an earlier layer, and is not its bottom")
        if layer.type in DATA:
            for at, top in enumerate(layer.top):
                self.blobs[top] = self._input(index, layer, at) if top in self.needed else None
        elif layer.type in METRICS:
            self.metrics.append((layer, bottoms, self.names.layers[index]))
        elif _is_loss(layer):
            self.losses.append((layer, bottoms, self.names.layers[index]))
            self._read(layer)
        else:
            self._read(layer)
            for top, blob in zip(layer.top, self._built(index, layer, bottoms), strict=True):
                self.blobs[top] = self.loose[top] = blob

    def weighted(self, model: keras.Model) -> dict[str, Any]:
        """The layers of the model that take weights, by their names in Caffe; of two of one name, the first."""
        built = {layer.name: layer for layer in model.layers if takes_blobs(layer)}
        found: dict[str, Any] = {}
        for layer, name in zip(self.layers, self.names.layers, strict=True):
            keras_layer = built.get(self.sharing.owners.get(name, name))
            if keras_layer is not None:
                found.setdefault(layer.name, keras_layer)
        return found

    def _read(self, layer: Any) -> None:
        for bottom in layer.bottom:
            self.loose.pop(bottom, None)

    def _bottoms(self, layer: Any) -> list[Blob | None]:
        for bottom in layer.bottom:
            if bottom not in self.blobs:
                raise problem(layer, f"no earlier layer in the phase {self.phase} writes its bottom {bottom!r}; "
                              f"the blobs so far: {', '.join(self.blobs) or 'none'}")  # fmt: skip
        found = [self.blobs[bottom] for bottom in layer.bottom]
        for at, (blob, passes) in enumerate(zip(found, layer.propagate_down, strict=False)):
            if blob is not None and not passes:
                stop = StopGradient(name=f"{spelled(layer.name)}_stop{at}")
                found[at] = blob.like(stop(blob.tensor))
        return found

    def _input(self, index: int, layer: Any, at: int) -> Blob:
        names = self.names.inputs[index, at], self.names.tops[index, at]
        sequence = layer.top[at] in self.sequences
        tensor, blob = build_input(
            layer, at, names, sequence, self.shapes, self.phase, self.channels_first, self.file
        )  # fmt: skip
        self.inputs.append(tensor)
        self.own += [one for one in (producer(tensor), producer(blob.tensor)) if getattr(one, "name", None) in names]
        return blob

    def _built(self, index: int, layer: Any, bottoms: list[Any]) -> list[Blob]:
        """The tops of a layer of the network."""
        builder = BUILDERS.get(layer.type)
        if builder is None:
            raise problem(
                layer, "cos_ml does not read layers of this type; it reads " + ", ".join(sorted({*BUILDERS, *DATA}))
            )
        _check_bottoms(layer)
        name = self.names.layers[index]
        try:
            tops = self.sharing.again(layer, bottoms, name) or builder(layer, bottoms, name)
        except InvalidInputError as error:
            raise (error if repr(layer.name) in str(error) else problem(layer, str(error).rstrip("."))) from error
        except (ValueError, TypeError) as error:
            raise problem(layer, f"Keras refuses it: {error}".rstrip(".")) from error
        if len(tops) != len(layer.top):
            raise problem(layer, f"expected {len(tops)} top{'s' * (len(tops) != 1)}, received {len(layer.top)}")
        self.sharing.remember(layer, bottoms, tops)
        if layer.type == "Softmax":
            self.softmaxes[id(tops[0].tensor)] = bottoms[0].tensor
        self.own += [producer(top.tensor) for top in tops]
        if len(tops) == 1:
            return tops
        copies = [keras.layers.Identity(name=self.names.tops[index, at]) for at in range(len(tops))]
        self.own += copies
        return [top.like(copy(top.tensor)) for top, copy in zip(tops, copies, strict=True)]
