"""Caffe networks compared with OpenCV, which reads and computes them by itself."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from cos_ml.caffe import read
from cos_ml.caffe.prototxt import network, spelled
from tests.support.caffe_nets import NETS, random_blobs, write_caffemodel

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless comes with the default stack")

pytestmark = pytest.mark.once
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", NETS)
def test_outputs_and_inner_blobs_are_opencvs(name, tmp_path):
    net = NETS[name]()
    prototxt = tmp_path / "net.prototxt"
    prototxt.write_text(net.text)
    weights = write_caffemodel(tmp_path / "net.caffemodel", random_blobs(net.text))
    image = np.random.default_rng(1).normal(0, 1, (1, *net.sides)).astype(np.float32)
    other = cv2.dnn.readNetFromCaffe(str(prototxt), str(weights))
    other.enableFusion(False)  # a fused layer gives its chain's end
    other.setInput(image)
    layers = [layer.name for layer in network(prototxt).layer if layer.type not in ("Input", "Dropout")]
    expected = dict(zip(layers, other.forward(layers), strict=True))

    model = read(prototxt, weights)
    probe = keras.Model(model.input, {layer: model.get_layer(spelled(layer)).output for layer in layers})
    found = probe(image.transpose(0, 2, 3, 1))

    for layer in layers:
        value = np.asarray(found[layer])
        value = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        error = np.abs(value - expected[layer]).max() / np.abs(expected[layer]).max()
        assert error < TOLERANCE, (layer, error)
    assert np.asarray(model(image.transpose(0, 2, 3, 1))).shape == expected["prob"].shape
