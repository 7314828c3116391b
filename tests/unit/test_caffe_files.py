"""Caffe's files: text and binary forms, and the network that they are together."""

from __future__ import annotations

import logging
import re
import struct

import keras
import numpy as np
import pytest

from cos_ml.caffe import assign, layer_of_blob, read
from cos_ml.caffe.prototxt import network, selected, solver
from cos_ml.caffe.schema import message
from cos_ml.caffe.weights import read_caffemodel
from cos_ml.errors import InvalidInputError
from tests.support.caffe_nets import blob, write_caffemodel

pytestmark = pytest.mark.once

INPUT = 'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 4 dim: 2 dim: 5 dim: 6 } } }\n'
CONV = (
    INPUT
    + """layer { name: "a/conv" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 3 kernel_size: 3 } }
layer { name: "a/relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "ip" type: "InnerProduct" bottom: "c" top: "ip" inner_product_param { num_output: 4 } }
"""
)
RNG = np.random.default_rng(0)
BLOBS = {
    "a/conv": [RNG.normal(size=(3, 2, 3, 3)).astype(np.float32), RNG.normal(size=3).astype(np.float32)],
    "ip": [RNG.normal(size=(4, 36)).astype(np.float32), RNG.normal(size=4).astype(np.float32)],
}
MEMORY = """layer { name: "data" type: "MemoryData" top: "data" top: "label"
  memory_data_param { batch_size: 8 channels: 2 height: 5 width: 6 } %s }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "aux" type: "InnerProduct" bottom: "data" top: "aux"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "aux/loss" type: "SoftmaxWithLoss" bottom: "aux" bottom: "label" top: "l1" loss_weight: 0.3 }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "l2" }
layer { name: "top1" type: "Accuracy" bottom: "ip" bottom: "label" top: "top1" }
"""


def names(text, *arguments):
    return [layer.name for layer in selected(network(text), *arguments)]


# Text


def test_text_in_all_its_spellings():
    net = network("""# a comment
    layer < name: 'a\\x31' "b" type : "Convolution", bottom: "\\144ata" top: "x";
      convolution_param: { num_output: 0x10 kernel_size: [3, 02] weight_filler { std: 1e-2f } bias_term: f } >
    layer{name:"p"type:"Pooling"bottom:"x"top:"p"pooling_param{pool:1 kernel_size:2}}""")
    conv, pool = net.layer
    assert (conv.name, list(conv.bottom)) == ("a1b", ["data"])
    given = conv.convolution_param
    assert (given.num_output, list(given.kernel_size), given.bias_term) == (16, [3, 2], False)
    assert given.weight_filler.std == pytest.approx(0.01)
    assert pool.pooling_param.pool == pool.pooling_param.AVE


def test_the_format_of_2013_becomes_todays():
    net = network("""input: "data" input_dim: 2 input_dim: 1 input_dim: 6 input_dim: 6
    layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2 weight_decay: 1
      weight_decay: 0 param: "w" param: "b" convolution_param { num_output: 2 kernel_size: 3 } }
    layers { name: "d" type: DATA top: "x" data_param { source: "lmdb" scale: 0.5 crop_size: 5 mirror: true } }
    layers { name: "loss" type: SOFTMAX_LOSS bottom: "conv" bottom: "x" loss_weight: 0.1 }""")
    inputs, conv, data, loss = net.layer
    assert (inputs.type, list(inputs.top), list(inputs.input_param.shape[0].dim)) == ("Input", ["data"], [2, 1, 6, 6])
    assert conv.type == "Convolution"
    assert [(one.name, one.lr_mult, one.decay_mult) for one in conv.param] == [("w", 1, 1), ("b", 2, 0)]
    transform = data.transform_param
    assert (transform.scale, transform.crop_size, transform.mirror) == (0.5, 5, True)
    assert (loss.type, list(loss.loss_weight)) == ("SoftmaxWithLoss", pytest.approx([0.1]))


@pytest.mark.parametrize(
    ("rule", "arguments", "there"),
    [
        ("include { phase: TRAIN }", ("TRAIN",), True),
        ("include { phase: TRAIN }", ("TEST",), False),
        ("exclude { phase: 0 }", ("TEST",), True),
        ("include { stage: 'a' stage: 'b' }", ("TEST", ["a"]), False),
        ("include { stage: 'a' stage: 'b' }", ("TEST", ["b", "a", "c"]), True),
        ("include { not_stage: 'a' }", ("TEST", ["a"]), False),
        ("include { stage: 'a' } include { phase: TEST }", ("TEST",), True),
        ("exclude { stage: 'a' phase: TRAIN }", ("TEST", ["a"]), True),
        ("include { min_level: 2 }", ("TEST", (), 1), False),
        ("include { min_level: 2 max_level: 3 }", ("TEST", (), 3), True),
        ("include { max_level: 1 }", ("TEST", (), 2), False),
    ],
)
def test_rules_of_phase_stage_and_level(rule, arguments, there):
    assert names(f'layer {{ name: "x" {rule} }}', *arguments) == (["x"] if there else [])


def test_a_networks_own_state_counts():
    assert names('state { stage: "a" level: 2 } layer { name: "x" include { stage: "a" min_level: 2 } }') == ["x"]


def test_fields_of_forks_are_noted(caplog):
    with caplog.at_level(logging.INFO):
        net = network("""layer { name: "d" type: "CoSData" top: "x" source_class: "com.x.Source" odd_param { a: [1, -2]
          b < c: "x" "y"; > } cos_data_param { batch_size: 4 top { name: "x" type: INT_ARRAY channels: 3
          sample_num_axes: 1 transpose: true } } include { phase: TEST } }""")
    assert "odd_param" in caplog.text
    assert "source_class" not in caplog.text
    top = net.layer[0].cos_data_param.top[0]
    assert (top.type, top.transpose) == (3, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layer {\n  name: 3 }", "2:"),
        ('layer { name: "x"', "1:"),
        ('layer { name: "a" name: "b" }', "name"),
        ('layers { type: SOMETHING name: "x" }', "SOMETHING"),
        ('layers { layer { name: "old" type: "conv" } }', "old"),
        ('input: "a" input_dim: 3 layer { name: "{" }', "input_dim"),
        ('layer { name: "a" }\nlayers { name: "b" }', "older"),
        ("name: 'x' state { }", "no layers"),
        ("layer {" * 3000, "network"),
    ],
)
def test_malformed_text(text, said):
    with pytest.raises(InvalidInputError, match=said):
        network(text)


def test_files_that_are_none(tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for path in (tmp_path / "missing", tmp_path / "binary", tmp_path):
        with pytest.raises(InvalidInputError, match=str(path)):
            network(path)
        with pytest.raises(InvalidInputError, match=str(path)):
            solver(path)
        with pytest.raises(InvalidInputError, match=str(path)):
            read_caffemodel(path)


# Weights


@pytest.mark.parametrize("form", ["packed", "double", "legacy", "v1"])
def test_forms_of_a_caffemodel(form, tmp_path):
    found = dict(read_caffemodel(write_caffemodel(tmp_path / "x.caffemodel", BLOBS, form)))
    for name, arrays in BLOBS.items():
        for array, expected in zip(found[name], arrays, strict=True):
            np.testing.assert_array_equal(array.reshape(expected.shape), expected)
    model = read(CONV, tmp_path / "x.caffemodel")
    np.testing.assert_array_equal(model.get_layer("ip").kernel, BLOBS["ip"][0].T)


def test_unpacked_data(tmp_path):
    runs = b"".join(b"\x2d" + struct.pack("<f", value) for value in (1, 2)) + b"\x2a\x04" + struct.pack("<f", 3)
    body = b"\x3a\x03\x0a\x01\x03" + runs
    layer = b"\x0a\x01x" + b"\x3a" + bytes([len(body)]) + body
    (tmp_path / "x").write_bytes(b"\xa2\x06" + bytes([len(layer)]) + layer)
    ((name, (array,)),) = read_caffemodel(tmp_path / "x")
    assert (name, array.tolist()) == ("x", [1, 2, 3])


def test_another_shape_is_refused_by_name_and_the_rest_is_passed_over(tmp_path):
    path = write_caffemodel(tmp_path / "x.caffemodel", {**BLOBS, "gone": BLOBS["ip"], "ip": [BLOBS["ip"][0].T]})
    with pytest.raises(InvalidInputError, match=r"'ip'.*expected 2 blobs"):
        read(CONV, path)
    wrong = {"ip": [BLOBS["ip"][0].T.copy(), BLOBS["ip"][1]]}
    with pytest.raises(InvalidInputError, match=r"'ip'.*\(4, 36\).*\(36, 4\)"):
        read(CONV, write_caffemodel(tmp_path / "y.caffemodel", wrong))
    model = keras.Sequential([keras.Input((36,)), keras.layers.Dense(4, name="ip"), keras.layers.Dense(2, name="new")])
    report = assign(model, write_caffemodel(tmp_path / "z.caffemodel", BLOBS))
    assert report.taken == {"ip": "ip"}
    assert report.not_taken.keys() == {"a/conv", "new"}
    np.testing.assert_array_equal(model.get_layer("ip").bias, BLOBS["ip"][1])


def test_layers_without_weights_in_the_file_are_logged(tmp_path, caplog):
    read(CONV, write_caffemodel(tmp_path / "whole.caffemodel", BLOBS))
    assert not caplog.records
    read(CONV, write_caffemodel(tmp_path / "part.caffemodel", {"ip": BLOBS["ip"]}))
    assert "no weights for the layers a/conv, which keep their new ones" in caplog.text


def test_a_damaged_caffemodel(tmp_path):
    data = write_caffemodel(tmp_path / "x.caffemodel", BLOBS).read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    net = message("NetParameter")
    bad = blob(np.ones(3, np.float32))
    bad.shape.dim[0] = 5
    net.layer.add(name="odd").blobs.append(bad)
    (tmp_path / "odd").write_bytes(net.SerializeToString())
    with pytest.raises(InvalidInputError, match="cut"):
        read(CONV, tmp_path / "cut")
    with pytest.raises(InvalidInputError, match="'odd'"):
        read(CONV, tmp_path / "odd")


# Networks


def test_names_and_the_layer_that_gives_a_blob_at_the_end():
    model = read(CONV)
    assert [layer.name for layer in model.layers if layer.weights] == ["a_conv", "ip"]
    assert [one.name for one in model.inputs] == ["data"]
    assert layer_of_blob(CONV, "c") == "a_relu"
    assert layer_of_blob(CONV, "data") == "data"
    with pytest.raises(InvalidInputError, match=r"'nothing'.*data, c, ip"):
        layer_of_blob(CONV, "nothing")
    both = CONV + 'layer { name: "a_conv" type: "TanH" bottom: "ip" top: "t" }'
    assert read(both).get_layer("a_conv_").output.shape == (None, 4)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_helpers_have_names_that_no_other_layer_has(data_format):
    text = """input: "data" input_shape { dim: [1, 2, 9, 9] }
    layer { name: "data_permute" type: "AbsVal" bottom: "data" top: "a" }
    layer { name: "conv_pad" type: "TanH" bottom: "a" top: "t" }
    layer { name: "conv" type: "Convolution" bottom: "t" top: "c" convolution_param {
      num_output: 2 kernel_size: 3 stride: 2 pad: 1 weight_filler { type: "xavier" } } }
    layer { name: "ip_permute" type: "Sigmoid" bottom: "c" top: "s" }
    layer { name: "ip" type: "InnerProduct" bottom: "s" top: "ip" inner_product_param { num_output: 3
      weight_filler { type: "xavier" } } }
    layer { name: "ip_flatten" type: "TanH" bottom: "ip" top: "end" }"""
    model, plain = read(text, data_format=data_format), read(re.sub('name: "(data|conv|ip)_', r'name: "own_\1_', text))
    assert isinstance(model.get_layer("conv_pad"), keras.layers.Activation)
    assert isinstance(model.get_layer("conv_pad_"), keras.layers.ZeroPadding2D)
    assert isinstance(model.get_layer("ip_flatten_"), keras.layers.Reshape)
    plain.set_weights(model.get_weights())
    again = keras.Model.from_config(model.get_config())
    again.set_weights(model.get_weights())
    x = RNG.normal(size=(3, 9, 9, 2)).astype(np.float32)
    given = x if data_format == "channels_last" else x.transpose(0, 3, 1, 2)
    for one in (model, again):
        np.testing.assert_allclose(one(given), plain(x), atol=1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('layer { name: "odd" type: "Fancy" bottom: "ip" top: "x" }', "'odd'.*Fancy"),
        ('layer { name: "odd" type: "TanH" bottom: "no" top: "x" }', "'odd'.*'no'"),
        ('layer { name: "odd" type: "TanH" bottom: "ip" top: "c" }', "'odd'.*'c'"),
        ('layer { name: "odd" type: "TanH" bottom: "ip" top: "x" top: "y" }', "'odd'.*expected 1 top, received 2"),
        ('layer { name: "odd" type: "Convolution" bottom: "ip" top: "x" }', "'odd'"),
        ('layer { name: "odd" type: "TanH" bottom: "ip" bottom: "c" top: "x" }', "'odd'.*1 bottom, received 2"),
        ('layer { name: "odd" type: "Crop" bottom: "c" top: "x" }', "'odd'.*2 bottoms, received 1"),
        ('layer { name: "odd" type: "Eltwise" bottom: "c" top: "x" }', "'odd'.*2 or more bottoms, received 1"),
        ('layer { name: "odd" type: "LSTM" bottom: "c" top: "x" }', "'odd'.*2 or 3 bottoms, received 1"),
        ('layer { name: "odd" type: "TanH" bottom: "ip" top: "x" loss_weight: 2 }', "'odd'.*loss_weight"),
        ('layer { name: "odd" include { phase: TEST } exclude { phase: TRAIN } }', "'odd'"),
    ],
)
def test_networks_that_are_none(more, said):
    with pytest.raises(InvalidInputError, match=said):
        read(CONV + more)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_gradients_stop_where_propagate_down_is_false():
    dense = 'type: "InnerProduct" inner_product_param { num_output: 3 weight_filler { type: "xavier" } }'
    text = f"""input: "x" input_shape {{ dim: [1, 4] }} layer {{ name: "a" bottom: "x" top: "a" {dense} }}
    layer {{ name: "b" bottom: "a" top: "b" propagate_down: false {dense} }}
    layer {{ name: "c" bottom: "x" top: "c" {dense} }}
    layer {{ name: "loss" type: "EuclideanLoss" bottom: "c" bottom: "b" top: "l" propagate_down: true
      propagate_down: %s }}"""
    for passes, trained in (("true", ["b", "c"]), ("false", ["c"])):
        model = read(text % passes, phase="TRAIN")
        model.compile("sgd")
        before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
        model.train_on_batch(RNG.normal(size=(5, 4)).astype(np.float32))
        changed = [name for name, weights in before.items() if (weights[0] != model.get_layer(name).kernel).any()]
        assert sorted(changed) == trained


def test_losses_outputs_and_labels():
    model = read(MEMORY % "", phase="TRAIN")
    assert [one.name for one in model.inputs] == ["data"]
    assert model.compiled
    x, y = RNG.normal(size=(8, 5, 6, 2)).astype(np.float32), np.arange(8) % 3
    aux, main = (keras.ops.convert_to_numpy(one) for one in model(x))
    cross = [keras.losses.SparseCategoricalCrossentropy(True)(y, one).numpy() for one in (aux, main)]
    found = model.evaluate(x, [y, y], verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(0.3 * cross[0] + cross[1], rel=1e-5)
    accuracy = next(value for name, value in found.items() if name.endswith("top1"))
    assert accuracy == pytest.approx((main.argmax(1) == y).mean())


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_shapes_that_the_file_does_not_declare(data_format):
    text = CONV.replace("input_param { shape { dim: 4 dim: 2 dim: 5 dim: 6 } }", "")
    with pytest.raises(InvalidInputError, match=r"'in'.*inputs="):
        read(text)
    with pytest.raises(InvalidInputError, match="other"):
        read(text, inputs={"other": (1,)})
    model = read(text, inputs={"data": (2, 5, 6)}, data_format=data_format)
    x = RNG.normal(size=(3, 2, 5, 6)).astype(np.float32)
    reference = read(CONV)
    reference.set_weights(model.get_weights())
    given = x if data_format == "channels_first" else x.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(model(given), reference(x.transpose(0, 2, 3, 1)), atol=1e-6)


def test_transform_param(tmp_path, caplog):
    mean = RNG.normal(size=(2, 5, 6)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(blob(mean, "legacy").SerializeToString())
    path = tmp_path / "net.prototxt"
    path.write_text(MEMORY % 'transform_param { scale: 0.5 crop_size: 3 mean_file: "mean.binaryproto" mirror: true }')
    x = RNG.normal(size=(64, 2, 5, 6)).astype(np.float32)
    whole = (x - mean) * 0.5
    flips = []
    for phase, training in (("TEST", False), ("TRAIN", True)):
        model = read(path, phase=phase, transform=True)
        layer = model.get_layer(layer_of_blob(path, "data", phase, transform=True))
        found = np.asarray(layer(x.transpose(0, 2, 3, 1), training=training)).transpose(0, 3, 1, 2)
        places = [(1, 1)] if phase == "TEST" else [(top, left) for top in range(3) for left in range(4)]
        seen = set()
        for row, value in zip(whole, found, strict=True):
            parts = {(place, step): row[:, place[0] : place[0] + 3, place[1] : place[1] + 3][..., ::step]
                     for place in places for step in (1, -1)}  # fmt: skip
            (match,) = [key for key, part in parts.items() if np.allclose(part, value, atol=1e-6)]
            seen.add(match)
        flips.append({step for _, step in seen})
        assert len(seen) > (1 if phase == "TEST" else 8)
    assert flips == [{1, -1}, {1, -1}]
    loaded = tmp_path / "m.keras"
    model.save(loaded)
    again = keras.models.load_model(loaded)
    images = x.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(again(images)[0], model(images)[0], atol=1e-6)
    caplog.clear()
    assert read(path).input_shape == (None, 3, 3, 2)
    assert "pass transform=True" in caplog.text


def test_means_that_do_not_fit(tmp_path):
    for given, said in (("mean_value: [1, 2, 3]", "mean of 2 channels"), ('mean_file: "no/where"', "no/where"),
                        ("crop_size: 9", "crop_size 9")):  # fmt: skip
        with pytest.raises(InvalidInputError, match=said):
            read(MEMORY % f"transform_param {{ {given} }}", transform=True)


def test_weights_shared_by_name(tmp_path):
    branch = """layer { name: "ip%s" type: "InnerProduct" bottom: "data%s" top: "ip%s"
      param { name: "w" lr_mult: 1 } param { name: "%s" } inner_product_param { num_output: 4 } }\n"""
    inputs = 'input: "data1" input: "data2" input_shape { dim: [1, 3] } input_shape { dim: [1, 3] }\n'
    weights = [[RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=4).astype(np.float32)] for _ in range(2)]
    path = write_caffemodel(tmp_path / "x.caffemodel", {"ip1": weights[0], "ip2": weights[1]})
    model = read(inputs + branch % (1, 1, 1, "b") + branch % (2, 2, 2, "b"), path)
    assert len(model.weights) == 2
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    for found in model([x, x]):
        np.testing.assert_allclose(found, x @ weights[1][0].T + weights[1][1], rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidInputError, match=r"'ip2'.*'ip1'"):
        read(inputs + branch % (1, 1, 1, "b") + branch % (2, 2, 2, "c"))


def test_sequences_have_time_first():
    text = """layer { name: "d" type: "CoSData" top: "words" top: "cont" top: "target" cos_data_param { batch_size: 3
      top { name: "words" type: INT_ARRAY channels: 6 sample_num_axes: 1 transpose: true }
      top { name: "cont" type: INT_ARRAY channels: 6 sample_num_axes: 1 transpose: true }
      top { name: "target" type: INT_ARRAY channels: 6 sample_num_axes: 1 transpose: true } } }
    layer { name: "embed" type: "Embed" bottom: "words" top: "e" embed_param { num_output: 4 input_dim: 9 } }
    layer { name: "lstm" type: "LSTM" bottom: "e" bottom: "cont" top: "h" recurrent_param { num_output: 5 } }
    layer { name: "ip" type: "InnerProduct" bottom: "h" top: "ip" inner_product_param { num_output: 9 axis: 2 } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "target" top: "loss"
      softmax_param { axis: 2 } }"""
    model = read(text, phase="TRAIN")
    assert {one.name: one.shape for one in model.inputs} == {"words": (None, 6), "cont": (None, 6)}
    assert model.output_shape == (None, 6, 9)
