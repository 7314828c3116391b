"""Caffe's layer types against NumPy, their weights, their losses and gradients, and what is refused."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from google.protobuf import text_format

from cos_ml.caffe import build_losses, read
from cos_ml.caffe.blob import Blob
from cos_ml.caffe.build import BUILDERS
from cos_ml.caffe.convert import blob_names, blob_shapes, set_blobs
from cos_ml.caffe.fillers import initializer
from cos_ml.caffe.schema import message
from cos_ml.errors import InvalidInputError
from cos_ml.network.losses import label_kind, loss_family, needs_sum, takes_logits
from tests.support import caffe_numpy as oracle

pytestmark = pytest.mark.once

IMAGES = (2, 6, 7, 5)
SEED = 11


def spec(kind: str, text: str = "", tops: int = 1):
    layer = message("LayerParameter")
    top = " ".join(f'top: "t{index}"' for index in range(tops))
    return text_format.Parse(f'name: "one" type: "{kind}" {top} {text}', layer)


def drawn(*shape: int, seed: int = SEED) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network(layer, *shapes, rows=None):
    """The layer alone, as a model over blobs of these shapes; and its tops."""
    places = rows or [0] * len(shapes)
    blobs = []
    for shape, place in zip(shapes, places, strict=True):
        axes = Blob.of(np.zeros([1] * len(shape)), place).axes
        blobs.append(Blob(keras.Input([shape[axis] for axis in axes[1:]]), axes))
    tops = BUILDERS[layer.type](layer, blobs, "one")
    return keras.Model([blob.tensor for blob in blobs], [top.tensor for top in tops]), blobs, tops


def tensors(values) -> list:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def caffe_order(value, blob: Blob) -> np.ndarray:
    return np.asarray(value).transpose([blob.axes.index(axis) for axis in range(blob.ndim)])


def run(layer, *arrays, blobs=(), rows=None, training=False):
    """The tops in Caffe's order, after a round trip through Keras's file; the layer has these blobs."""
    model, given, tops = network(layer, *[array.shape for array in arrays], rows=rows)
    if len(blobs):
        set_blobs(model.get_layer("one"), blobs)
    inputs = [array.transpose(blob.axes) for array, blob in zip(arrays, given, strict=True)]
    values = tensors(model(inputs, training=training))
    again = keras.Model.from_config(model.get_config())
    again.set_weights(model.get_weights())
    for one, other in zip(values, tensors(again(inputs, training=training)), strict=True):
        np.testing.assert_array_equal(one, other)
    return [caffe_order(value, top) for value, top in zip(values, tops, strict=True)]


def close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


WINDOWS = {
    "plain": ("kernel_size: 3", {}),
    "same": ("kernel_size: 3 pad: 1", {"pad": (1, 1)}),
    "strided": ("kernel_size: 3 stride: 2 pad: 2", {"stride": (2, 2), "pad": (2, 2)}),
    "dilated": ("kernel_size: 3 dilation: 2 pad: 2", {"pad": (2, 2), "dilation": (2, 2)}),
    "both": ("kernel_size: 2 dilation: 2 stride: 3 pad: 1", {"pad": (1, 1), "dilation": (2, 2), "stride": (3, 3)}),
    "twice": ("kernel_size: [3, 2] stride: [1, 2] dilation: [2, 1]", {"stride": (1, 2), "dilation": (2, 1)}),
    "h_w": ("kernel_h: 2 kernel_w: 3 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 1", {"stride": (2, 1), "pad": (0, 1)}),
    "point": ("kernel_size: 1 stride: 2", {"stride": (2, 2)}),
}
SIZES = {"twice": (3, 2), "h_w": (2, 3), "both": (2, 2), "point": (1, 1)}


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("case", WINDOWS)
def test_convolution(case, group):
    text, options = WINDOWS[case]
    kernel, x = SIZES.get(case, (3, 3)), drawn(*IMAGES)
    w, b = drawn(4, 6 // group, *kernel, seed=1), drawn(4, seed=2)
    found = run(spec("Convolution", f"convolution_param {{ num_output: 4 group: {group} {text} }}"), x, blobs=[w, b])
    close(found[0], oracle.convolution(x, w, b, group=group, **options))


@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("case", WINDOWS)
def test_deconvolution(case, group):
    text, options = WINDOWS[case]
    kernel, x = SIZES.get(case, (3, 3)), drawn(*IMAGES)
    w, b = drawn(6, 12 // group, *kernel, seed=1), drawn(12, seed=2)
    found = run(spec("Deconvolution", f"convolution_param {{ num_output: 12 group: {group} {text} }}"), x, blobs=[w, b])
    close(found[0], oracle.deconvolution(x, w, b, group=group, **options))


@pytest.mark.parametrize("kind", ["MAX", "AVE"])
@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"),
    [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 3), (2, 0)), ((2, 2), (3, 3), (1, 1)),
     ((5, 5), (3, 3), (2, 2)), ((3, 3), (3, 2), (0, 1))],
)  # fmt: skip
def test_pooling(kind, ceil, kernel, stride, pad):
    x = drawn(2, 3, 11, 9)
    text = f"pool: {kind} kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} "
    text += f"pad_h: {pad[0]} pad_w: {pad[1]} round_mode: {'CEIL' if ceil else 'FLOOR'}"
    found = run(spec("Pooling", f"pooling_param {{ {text} }}"), x)
    close(found[0], oracle.pooling(x, kind, kernel, stride, pad, ceil))


def test_pooling_is_keras_where_equal():
    for text, expected in [
        ("kernel_size: 3 stride: 2", keras.layers.MaxPooling2D),
        ("pool: AVE kernel_size: 3", keras.layers.AveragePooling2D),
        ("pool: AVE global_pooling: true", keras.layers.GlobalAveragePooling2D),
    ]:
        model, _, _ = network(spec("Pooling", f"pooling_param {{ {text} }}"), IMAGES)
        assert type(model.get_layer("one")) is expected


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
@pytest.mark.parametrize("transpose", [False, True])
def test_inner_product(axis, transpose):
    x, first = drawn(2, 3, 4, 5), axis % 4
    size = math.prod(x.shape[first:])
    w, b = drawn(4, size, seed=1), drawn(4, seed=2)
    text = f"inner_product_param {{ num_output: 4 axis: {axis} transpose: {str(transpose).lower()} }}"
    found = run(spec("InnerProduct", text), x, blobs=[w.T if transpose else w, b])
    close(found[0], x.reshape(*x.shape[:first], size) @ w.T + b)


def test_convolutions_of_blobs_in_another_layout():
    x, w, b = drawn(2, 3, 5, 6), drawn(4, 6), drawn(4, seed=1)
    kernel, bias = drawn(2, 3, 3, 3, seed=2), drawn(2, seed=3)
    text = """input: "x" input_shape { dim: [2, 3, 5, 6] } layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
      inner_product_param { num_output: 4 axis: 3 } }
    layer { name: "conv" type: "%s" bottom: "ip" top: "c" convolution_param { num_output: 2 kernel_size: 3 } }
    layer { name: "flat" type: "Flatten" bottom: "c" top: "f" }"""
    for kind, expected in [("Convolution", oracle.convolution), ("Deconvolution", oracle.deconvolution)]:
        model = read(text % kind)
        filters = kernel if kind == "Convolution" else kernel.transpose(1, 0, 2, 3)
        set_blobs(model.get_layer("ip"), [w, b])
        set_blobs(model.get_layer("conv"), [filters, bias])
        found = np.asarray(model(x.transpose(0, 2, 3, 1)))
        close(found, expected(x @ w.T + b, filters, bias).reshape(2, -1))


ELEMENTS = {
    "relu": ("ReLU", "", lambda x: np.maximum(x, 0)),
    "leaky": ("ReLU", "relu_param { negative_slope: 0.3 }", lambda x: np.where(x > 0, x, 0.3 * x)),
    "elu": ("ELU", "elu_param { alpha: 0.5 }", lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
    "sigmoid": ("Sigmoid", "", oracle.sigmoid),
    "tanh": ("TanH", "", np.tanh),
    "abs": ("AbsVal", "", np.abs),
    "bnll": ("BNLL", "", lambda x: np.log1p(np.exp(x))),
    "dropout": ("Dropout", "", lambda x: x),
    "power": ("Power", "power_param { power: 3 scale: 2 shift: 0.5 }", lambda x: (0.5 + 2 * x) ** 3),
    "square": ("Power", "power_param { power: 2 shift: -1 }", lambda x: (x - 1) ** 2),
    "power 0": ("Power", "power_param { power: 0 scale: 0 }", np.ones_like),
    "exp": ("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }", lambda x: 2 ** (1 + 0.5 * x)),
    "exp e": ("Exp", "exp_param { shift: -1 }", lambda x: np.exp(x - 1)),
    "log": ("Log", "log_param { base: 10 scale: 0.1 shift: 4 }", lambda x: np.log10(4 + 0.1 * x)),
    "log e": ("Log", "log_param { shift: 9 }", lambda x: np.log(9 + x)),
    "split": ("Split", "", lambda x: x),
}


@pytest.mark.parametrize("case", ELEMENTS)
def test_elementwise(case):
    kind, text, expected = ELEMENTS[case]
    x = drawn(*IMAGES)
    close(run(spec(kind, text), x)[0], expected(x.astype(np.float64)))


def test_prelu():
    x, slopes = drawn(*IMAGES), drawn(6, seed=1)
    close(run(spec("PReLU"), x, blobs=[slopes])[0], np.where(x > 0, x, slopes[:, None, None] * x))
    one = np.float32(0.4).reshape(())
    close(run(spec("PReLU", "prelu_param { channel_shared: true }"), x, blobs=[one])[0], np.where(x > 0, x, one * x))
    flat = drawn(3, 4)
    close(run(spec("PReLU"), flat, blobs=[slopes[:4]])[0], np.where(flat > 0, flat, slopes[:4] * flat))


def test_normalizations():
    x = drawn(*IMAGES)
    close(run(spec("LRN"), x)[0], oracle.lrn(x))
    text = "local_size: 3 alpha: 2 beta: 0.5 k: 2"
    close(run(spec("LRN", f"lrn_param {{ {text} }}"), x)[0], oracle.lrn(x, 3, 2, 0.5, 2))
    text = "local_size: 3 alpha: 2 norm_region: WITHIN_CHANNEL"
    close(run(spec("LRN", f"lrn_param {{ {text} }}"), x)[0], oracle.lrn_within(x, 3, 2))
    close(run(spec("MVN"), x)[0], oracle.mvn(x))
    text = "across_channels: true eps: 0.1"
    close(run(spec("MVN", f"mvn_param {{ {text} }}"), x)[0], oracle.mvn(x, True, eps=0.1))
    close(run(spec("MVN", "mvn_param { normalize_variance: false }"), x)[0], oracle.mvn(x, variance=False))


def test_batch_norm_stores_caffes_statistics():
    x, layer = drawn(*IMAGES), spec("BatchNorm")
    model, _, _ = network(layer, IMAGES)
    own = model.get_layer("one")
    mean, variance, factor = drawn(6, seed=1), np.abs(drawn(6, seed=2)), np.array([2.5], np.float32)
    set_blobs(own, [mean, variance, factor])
    images = x.transpose(0, 2, 3, 1)
    beside = (slice(None), None, None)
    stored = (x - (mean / 2.5)[beside]) / np.sqrt((variance / 2.5)[beside] + 1e-5)
    close(np.asarray(tensors(model([images]))[0]).transpose(0, 3, 1, 2), stored)
    axes, count = (0, 2, 3), x.size // 6
    batch = (x - x.mean(axes)[beside]) / np.sqrt(x.var(axes)[beside] + 1e-5)
    close(np.asarray(tensors(model([images], training=True))[0]).transpose(0, 3, 1, 2), batch)
    close(np.asarray(own.sum_of_means), 0.999 * mean + x.mean(axes))
    close(np.asarray(own.sum_of_variances), 0.999 * variance + x.var(axes) * count / (count - 1))
    close(np.asarray(own.factor), 0.999 * factor + 1)
    close(run(spec("BatchNorm", "batch_norm_param { use_global_stats: false }"), x)[0], batch)
    frozen = run(spec("BatchNorm", "batch_norm_param { use_global_stats: true }"), x, training=True)
    close(frozen[0], x / np.sqrt(1e-5))  # a factor of 0: both are 0


@pytest.mark.parametrize(("axis", "count"), [(1, 1), (1, 2), (2, 2), (1, -1), (3, 1), (1, 0), (-2, 1)])
def test_scale_and_bias(axis, count):
    x, first = drawn(*IMAGES), axis % 4
    shape = x.shape[first:] if count == -1 else x.shape[first : first + count]
    factors, bias = drawn(*shape, seed=1), drawn(*shape, seed=2)
    beside = (*shape, *[1] * (4 - first - len(shape)))
    text = f"axis: {axis} num_axes: {count}"
    found = run(spec("Scale", f"scale_param {{ {text} bias_term: true }}"), x, blobs=[factors, bias])
    close(found[0], x * factors.reshape(beside) + bias.reshape(beside))
    close(run(spec("Bias", f"bias_param {{ {text} }}"), x, blobs=[bias])[0], x + bias.reshape(beside))


@pytest.mark.parametrize("covered", [2, 3, 4])
def test_scale_by_a_second_bottom(covered):
    x, factors = drawn(*IMAGES), drawn(*IMAGES[:covered], seed=1)
    beside = factors.reshape(*factors.shape, *[1] * (4 - covered))
    close(run(spec("Scale", "scale_param { axis: 0 }"), x, factors)[0], x * beside)
    close(run(spec("Bias", "bias_param { axis: 0 }"), x, factors)[0], x + beside)


def test_eltwise():
    a, b, c = (drawn(*IMAGES, seed=seed) for seed in range(3))
    for text, expected in [
        ("", a + b + c), ("operation: PROD", a * b * c), ("operation: MAX", np.maximum(np.maximum(a, b), c)),
        ("coeff: 1 coeff: -1 coeff: 0.5", a - b + 0.5 * c),
    ]:  # fmt: skip
        close(run(spec("Eltwise", f"eltwise_param {{ {text} }}"), a, b, c)[0], expected)


@pytest.mark.parametrize(("text", "axis"), [("", 1), ("axis: -1", 3), ("axis: 2", 2), ("concat_dim: 1", 1)])
def test_concat_and_slice(text, axis):
    a, b = drawn(*IMAGES), drawn(*IMAGES, seed=1)
    close(run(spec("Concat", f"concat_param {{ {text} }}"), a, b)[0], np.concatenate([a, b], axis))
    points = f"slice_param {{ {text.replace('concat', 'slice')} slice_point: 1 slice_point: 3 }}"
    for found, part in zip(run(spec("Slice", points, tops=3), a), np.split(a, [1, 3], axis), strict=True):
        close(found, part)


def test_slice_in_equal_parts():
    x = drawn(*IMAGES)
    for found, part in zip(run(spec("Slice", tops=3), x), np.split(x, 3, 1), strict=True):
        close(found, part)


def test_crop():
    x, like = drawn(2, 6, 9, 8), drawn(2, 4, 5, 6)
    close(run(spec("Crop", "crop_param { offset: 1 }"), x, like)[0], x[:, :, 1:6, 1:7])
    close(run(spec("Crop", "crop_param { axis: 1 offset: [2, 3, 0] }"), x, like)[0], x[:, 2:6, 3:8, :6])
    close(run(spec("Crop", "crop_param { axis: -1 offset: 2 }"), x, like)[0], x[:, :, :, 2:8])


RESHAPES = {
    "flat": ("shape { dim: 0 dim: -1 }", (2, 210)),
    "batch of the file": ("shape { dim: 1 dim: 6 dim: 35 }", (2, 6, 35)),
    "rows inferred": ("shape { dim: -1 dim: 42 dim: 5 }", (2, 42, 5)),
    "image": ("shape { dim: 0 dim: 3 dim: -1 dim: 5 }", (2, 3, 14, 5)),
    "copies": ("shape { dim: 0 dim: 0 dim: -1 }", (2, 6, 35)),
    "one axis": ("shape { dim: 2 dim: 3 } axis: 1 num_axes: 1", (2, 2, 3, 7, 5)),
    "from the end": ("shape { dim: -1 } axis: -3", (2, 6, 35)),
    "one more": ("shape { dim: 1 } axis: 2 num_axes: 0", (2, 6, 1, 7, 5)),
}


@pytest.mark.parametrize("case", RESHAPES)
def test_reshape(case):
    text, shape = RESHAPES[case]
    x = drawn(*IMAGES)
    close(run(spec("Reshape", f"reshape_param {{ {text} }}"), x)[0], x.reshape(shape))


def test_flatten_and_permute():
    x = drawn(*IMAGES)
    close(run(spec("Flatten"), x)[0], x.reshape(2, -1))
    close(run(spec("Flatten", "flatten_param { axis: -2 }"), x)[0], x.reshape(2, 6, 35))
    close(run(spec("Flatten", "flatten_param { axis: 1 end_axis: 2 }"), x)[0], x.reshape(2, 42, 5))
    for order in [(0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2), (0, 1, 2, 3)]:
        text = f"permute_param {{ order: {list(order)} }}"
        close(run(spec("Permute", text), x)[0], x.transpose(order))
    sequence = drawn(5, 2, 3)
    close(
        run(spec("Permute", "permute_param { order: [1, 0, 2] }"), sequence, rows=[1])[0], sequence.transpose(1, 0, 2)
    )


def test_argmax_and_softmax():
    x = np.round(drawn(*IMAGES))  # with ties
    close(run(spec("ArgMax", "argmax_param { top_k: 3 out_max_val: true }"), x)[0], oracle.argmax(x, 3, values=True))
    close(run(spec("ArgMax"), x)[0], oracle.argmax(x))
    close(run(spec("ArgMax", "argmax_param { top_k: 2 axis: 1 }"), x)[0], oracle.argmax(x, 2, 1))
    text = "argmax_param { axis: -1 out_max_val: true }"
    close(run(spec("ArgMax", text), x)[0], oracle.argmax(x, 1, 3, True))
    exps = np.exp(x)
    close(run(spec("Softmax"), x)[0], exps / exps.sum(1, keepdims=True))
    close(run(spec("Softmax", "softmax_param { axis: 2 }"), x)[0], exps / exps.sum(2, keepdims=True))


@pytest.mark.parametrize("bias", [True, False])
def test_embed(bias):
    words, w = np.array([[1, 4, 0], [2, 2, 3]], np.float32), drawn(5, 3)
    text = f"embed_param {{ input_dim: 5 num_output: 3 bias_term: {str(bias).lower()} }}"
    blobs = [w, drawn(3, seed=1)][: 1 + bias]
    close(run(spec("Embed", text), words, blobs=blobs, rows=[1])[0], w[words.astype(int)] + sum(blobs[1:]))


def test_words_of_minus_1_after_a_sentence_change_nothing():
    """Padding of CaffeOnSpark's captions, where ``cont`` is 0 and the target is ignored: Caffe reads past its array."""
    text = """input: "words" input: "cont" input: "target" input_shape { dim: [4, 1] } input_shape { dim: [4, 1] }
    input_shape { dim: [4, 1] } layer { name: "e" type: "Embed" bottom: "words" top: "e" embed_param { num_output: 3
      input_dim: 5 bias_term: false weight_filler { type: "xavier" } } }
    layer { name: "lstm" type: "LSTM" bottom: "e" bottom: "cont" top: "h" recurrent_param { num_output: 2
      weight_filler { type: "xavier" } } }
    layer { name: "ip" type: "InnerProduct" bottom: "h" top: "ip" inner_product_param { num_output: 5 axis: 2
      weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "target" top: "loss" softmax_param { axis: 2 }
      loss_param { ignore_label: -1 } }"""
    start, ends = read(text, phase="TRAIN"), []
    cont, target = np.float32([[0, 1, 0, 0]]), np.float32([[2, 0, -1, -1]])
    for padding in (-1, 4, 1):
        model = keras.models.clone_model(start)
        model.set_weights(start.get_weights())
        model.compile("sgd", start.loss)
        assert np.isfinite(model.train_on_batch([np.float32([[0, 1, padding, padding]]), cont], target))
        ends.append(model.get_weights())
    for end in ends[1:]:
        for one, other in zip(ends[0], end, strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(ends[0][0], start.get_weights()[0])


def test_lstm_and_rnn():
    steps, rows, size, units = 5, 3, 4, 2
    x, cont = drawn(steps, rows, size), (drawn(steps, rows, seed=3) > -0.5).astype(np.float32)
    w_x, b, w_h = drawn(4 * units, size, seed=4), drawn(4 * units, seed=5), drawn(4 * units, units, seed=6)
    layer = spec("LSTM", f"recurrent_param {{ num_output: {units} }}")
    close(run(layer, x, cont, blobs=[w_x, b, w_h], rows=[1, 1])[0], oracle.lstm(x, cont, w_x, b, w_h))
    static, w_s = drawn(rows, 3, seed=7), drawn(4 * units, 3, seed=8)
    found = run(layer, x, cont, static, blobs=[w_x, b, w_s, w_h], rows=[1, 1, 0])
    close(found[0], oracle.lstm(x, cont, w_x, b, w_h, static, w_s))
    blobs = [w_x[:units], b[:units], w_h[:units], drawn(units, units, seed=9), drawn(units, seed=10)]
    layer = spec("RNN", f"recurrent_param {{ num_output: {units} }}")
    close(run(layer, x, cont, blobs=blobs, rows=[1, 1])[0], oracle.rnn(x, cont, *blobs))


def test_blobs_have_names_and_shapes():
    model, _, _ = network(spec("Convolution", "convolution_param { num_output: 4 kernel_size: [3, 2] }"), IMAGES)
    layer = model.get_layer("one")
    assert blob_names(layer) == ["kernel", "bias"]
    assert blob_shapes(layer) == [(4, 6, 3, 2), (4,)]
    set_blobs(layer, [drawn(4, 6, 3, 2), drawn(1, 1, 1, 4)])  # as old files have a bias
    with pytest.raises(InvalidInputError, match=r"'one', blob 0 \(kernel\): expected the shape \(4, 6, 3, 2\)"):
        set_blobs(layer, [drawn(4, 6, 2, 3), drawn(4)])
    with pytest.raises(InvalidInputError, match="'one': expected 2 blobs"):
        set_blobs(layer, [drawn(4, 6, 3, 2)])


def test_fillers():
    def filled(text, shape, **options):
        return np.asarray(initializer(spec("Convolution"), text_format.Parse(text, message("FillerParameter")),
                                      **options)(shape))  # fmt: skip

    shape = (3, 3, 20, 40)
    assert np.all(filled("value: 0.5", shape) == 0.5)
    assert np.abs(filled("type: 'xavier'", shape)).max() == pytest.approx(math.sqrt(3 / 180), rel=1e-2)
    assert np.abs(filled("type: 'xavier' variance_norm: FAN_OUT", shape)).max() == pytest.approx(
        math.sqrt(3 / 360), rel=1e-2)  # fmt: skip
    assert filled("type: 'msra' variance_norm: AVERAGE", shape).std() == pytest.approx(math.sqrt(2 / 270), rel=5e-2)
    assert np.abs(filled("type: 'xavier'", (20, 40), swapped=True)).max() == pytest.approx(math.sqrt(3 / 40), rel=2e-2)
    normal = filled("type: 'gaussian' mean: 1 std: 0.1", shape)
    assert normal.mean() == pytest.approx(1, abs=0.01)
    assert normal.max() > 1.25  # not truncated
    sparse = filled("type: 'gaussian' sparse: 4", shape)
    assert (sparse != 0).mean() == pytest.approx(0.1, abs=0.02)
    assert sparse[sparse != 0].std() == pytest.approx(1, abs=0.1)
    assert sparse[sparse != 0].mean() == pytest.approx(0, abs=0.15)
    uniform = filled("type: 'uniform' min: -0.1 max: 0.3", shape)
    assert uniform.min() >= -0.1
    assert uniform.max() > 0.28
    np.testing.assert_allclose(filled("type: 'positive_unitball'", shape).sum((0, 1, 2)), 1, rtol=1e-5)
    line = np.array([0.25, 0.75, 0.75, 0.25])
    np.testing.assert_allclose(filled("type: 'bilinear'", (4, 4, 2, 3))[:, :, 1, 2], np.outer(line, line))


REFUSED = {
    "convolution of a row": ("Convolution", "convolution_param { num_output: 2 kernel_size: 1 }", (2, 5)),
    "no kernel": ("Convolution", "convolution_param { num_output: 2 }", IMAGES),
    "large kernel": ("Convolution", "convolution_param { num_output: 2 kernel_size: 9 }", IMAGES),
    "groups": ("Convolution", "convolution_param { num_output: 2 kernel_size: 1 group: 4 }", IMAGES),
    "no groups": ("Convolution", "convolution_param { num_output: 2 kernel_size: 1 group: 0 }", IMAGES),
    "no stride": ("Convolution", "convolution_param { num_output: 2 kernel_size: 1 stride: 0 }", IMAGES),
    "half a stride": ("Pooling", "pooling_param { kernel_size: 2 stride_h: 2 }", IMAGES),
    "half a kernel": ("Pooling", "pooling_param { kernel_h: 2 }", IMAGES),
    "no outputs": ("InnerProduct", "", IMAGES),
    "no words": ("Embed", "embed_param { num_output: 2 }", (2, 5)),
    "axis": ("Convolution", "convolution_param { num_output: 2 kernel_size: 1 axis: 2 }", IMAGES),
    "filler": ("Convolution", 'convolution_param { num_output: 2 kernel_size: 1 weight_filler { type: "x" } }', IMAGES),
    "stochastic": ("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }", IMAGES),
    "even size": ("LRN", "lrn_param { local_size: 4 }", IMAGES),
    "rows merged": ("Flatten", "flatten_param { axis: 0 }", IMAGES),
    "rows reshaped": ("Reshape", "reshape_param { shape { dim: -1 dim: 5 } }", IMAGES),
    "rows cut": ("Slice", "slice_param { axis: 0 }", IMAGES),
    "no such axis": ("Softmax", "softmax_param { axis: 4 }", IMAGES),
    "hidden": ("LSTM", "recurrent_param { num_output: 2 expose_hidden: true }", IMAGES),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    kind, text, shape = REFUSED[case]
    with pytest.raises(InvalidInputError, match=rf"{'axis' if case == 'no such axis' else f'{kind}'}"):
        network(spec(kind, text, tops=2 if kind == "Slice" else 1), shape)


def losses_of(layer, *arrays, rows=0, computed=False):
    """The loss of a layer over scores and labels in Caffe's order, and its gradient by the scores."""
    import tensorflow as tf

    count = 2 if layer.type == "ContrastiveLoss" or computed else 1
    blobs = []
    for array in arrays[:count]:
        axes = Blob.of(array, rows).axes
        blobs.append(Blob(keras.Input([array.shape[axis] for axis in axes[1:]]), axes))
    output, loss = build_losses.training_output(layer, [*blobs, *[None] * (len(arrays) - count)], "one")
    model = keras.Model([blob.tensor for blob in blobs], output)
    inputs = [tf.constant(array.transpose(blob.axes)) for array, blob in zip(arrays, blobs, strict=False)]
    labels = None if computed else np.moveaxis(arrays[-1], rows, 0)
    if loss is not None:
        loss = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        scores = model(inputs, training=True)
        value = sum(model.losses) if loss is None else loss(labels, scores)
    gradient = np.asarray(tf.convert_to_tensor(tape.gradient(value, inputs[0])))
    return float(value), caffe_order(gradient, blobs[0]), loss


def check_loss(layer, expected, scores, *labels, **options):
    value, gradient, loss = losses_of(layer, scores, *labels, **options)
    assert value == pytest.approx(expected(scores.astype(np.float64)), rel=1e-5)
    for place in list(np.ndindex(*scores.shape))[:: max(1, scores.size // 20)]:
        step = np.zeros(scores.shape)
        step[place] = 1e-4
        slope = (expected(scores + step) - expected(scores - step)) / 2e-4
        assert gradient[place] == pytest.approx(slope, abs=1e-4 * max(1, abs(slope)))
    return loss


SCORES = [((6, 4), 0, 1), ((2, 4, 3, 2), 0, 1), ((5, 3, 4), 1, 2), ((2, 3, 4), 0, 2)]


@pytest.mark.parametrize("ignore", [None, 255, 0])
@pytest.mark.parametrize("normalization", ["VALID", "FULL", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize(
    ("shape", "rows", "axis"), [((6, 4), 0, 1), ((2, 4, 3, 2), 0, 1), ((5, 3, 4), 1, 2), ((2, 3, 4), 0, 2)]
)
def test_softmax_loss(shape, rows, axis, normalization, ignore):
    labels = np.random.default_rng(1).integers(0, 4, np.delete(shape, axis)).astype(np.float32)
    labels[0] = 0 if ignore is None else ignore
    text = f"softmax_param {{ axis: {axis} }} loss_param {{ normalization: {normalization} "
    text += "}" if ignore is None else f"ignore_label: {ignore} }}"
    loss = check_loss(
        spec("SoftmaxWithLoss", text),
        lambda scores: oracle.softmax_loss(scores, labels, normalization, ignore, axis),
        drawn(*shape), labels, rows=rows,
    )  # fmt: skip
    told = keras.saving.serialize_keras_object(loss)
    assert (loss_family(told), label_kind(told), takes_logits(told)) == ("sparse", "ids", True)
    assert needs_sum(told) == (ignore is not None or normalization == "NONE")


def test_softmax_loss_of_ignored_labels_is_0():
    labels = np.full(3, 7, np.float32)
    value, gradient, _ = losses_of(spec("SoftmaxWithLoss", "loss_param { ignore_label: 7 }"), drawn(3, 4), labels)
    assert value == 0
    assert not gradient.any()
    old = spec("SoftmaxWithLoss", "loss_param { normalize: false }")
    assert losses_of(old, drawn(2, 4, 3, 3), np.ones((2, 1, 3, 3), np.float32))[0] == pytest.approx(
        oracle.softmax_loss(drawn(2, 4, 3, 3), np.ones((2, 3, 3)), "BATCH_SIZE"))  # fmt: skip


@pytest.mark.parametrize("ignore", [None, -1])
@pytest.mark.parametrize("normalization", ["", "VALID", "FULL", "BATCH_SIZE", "NONE"])
def test_sigmoid_loss(normalization, ignore):
    scores, labels = drawn(3, 4), np.random.default_rng(1).uniform(size=(3, 4)).astype(np.float32)
    labels[0, :2] = 0.5 if ignore is None else ignore
    text = (f"normalization: {normalization} " if normalization else "") + (f"ignore_label: {ignore}" if ignore else "")
    loss = check_loss(
        spec("SigmoidCrossEntropyLoss", f"loss_param {{ {text} }}"),
        lambda scores: oracle.sigmoid_loss(scores, labels, normalization or "BATCH_SIZE", ignore), scores, labels,
    )  # fmt: skip
    assert loss_family(keras.saving.serialize_keras_object(loss)) == "binary"


def test_other_losses():
    scores, ids = drawn(5, 3), np.array([0, 2, 1, 1, 0], np.float32)
    targets, alike = drawn(5, 3, seed=1), np.array([1, 0, 0, 1, 0], np.float32)
    check_loss(spec("EuclideanLoss"), lambda s: oracle.euclidean_loss(s, targets), scores, targets)
    sequence, wanted = drawn(4, 2, 3), drawn(4, 2, 3, seed=1)
    check_loss(spec("EuclideanLoss"), lambda s: oracle.euclidean_loss(s, wanted), sequence, wanted, rows=1)
    check_loss(spec("HingeLoss"), lambda s: oracle.hinge_loss(s, ids), scores, ids)
    squared = spec("HingeLoss", "hinge_loss_param { norm: L2 }")
    check_loss(squared, lambda s: oracle.hinge_loss(s, ids, True), scores, ids)
    for text, options in [("", {}), ("margin: 2.5", {"margin": 2.5}), ("margin: 2.5 legacy_version: true",
                                                                    {"margin": 2.5, "legacy": True})]:  # fmt: skip
        layer = spec("ContrastiveLoss", f"contrastive_loss_param {{ {text} }}")
        check_loss(layer, lambda s, o=options: oracle.contrastive_loss(s, targets, alike, **o), scores, targets, alike)


def test_losses_of_two_computed_blobs():
    scores, images = drawn(*IMAGES), drawn(*IMAGES, seed=1)
    check_loss(spec("EuclideanLoss"), lambda s: oracle.euclidean_loss(s, images), scores, images, computed=True)
    labels = (images > 0).astype(np.float32)
    check_loss(spec("SigmoidCrossEntropyLoss"), lambda s: oracle.sigmoid_loss(s, labels), scores, labels, computed=True)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("ignore", [None, 2])
def test_accuracy(top_k, ignore):
    scores = np.round(drawn(40, 4))  # with ties
    labels = np.random.default_rng(1).integers(0, 4, 40)
    text = f"top_k: {top_k} " + ("" if ignore is None else f"ignore_label: {ignore}")
    layer = spec("Accuracy", f'accuracy_param {{ {text} }} bottom: "a" bottom: "b"')
    metric = build_losses.accuracy(layer, [Blob.of(keras.Input([4])), None])
    metric = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    metric.update_state(labels[:25], scores[:25])
    metric.update_state(labels[25:, None], scores[25:])
    assert float(metric.result()) == pytest.approx(oracle.accuracy(scores, labels, top_k, ignore))
    metric.reset_state()
    assert float(metric.result()) == 0
