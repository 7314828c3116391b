"""Cases: whole networks, as they are published, made small."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras import optimizers as O

from tests.conformance import userlib
from tests.conformance.case import Case, Data, In, L, Seq, classes, compiled, floats, ids, one_hot
from tests.conformance.cases_masks import of_tags, tokens

CE = "sparse_categorical_crossentropy"


def normalized() -> Any:
    return L.BatchNormalization(synchronized=True, momentum=0.9)


def synchronized(layer: Any) -> Any:
    """A copy of a layer of keras.applications; where it normalizes over the batch, over that of all ranks."""
    config = layer.get_config()
    return type(layer).from_config(config | {"synchronized": True} if "moving_mean_initializer" in config else config)


def mobilenet() -> Any:
    """The first blocks of a network of keras.applications, with a head."""
    whole = keras.applications.MobileNet((32, 32, 3), 0.25, weights=None, include_top=False, dropout=0.0)
    first = keras.Model(whole.input, whole.get_layer("conv_pw_2_relu").output)
    body = keras.models.clone_model(first, clone_function=synchronized)
    head = L.Dense(3, "softmax")(L.GlobalAveragePooling2D()(body.outputs[0]))
    return compiled(keras.Model(body.inputs, head), CE, metrics=["accuracy"])


def block(x: Any, filters: int, stride: int = 1) -> Any:
    """A residual block."""
    again = L.ReLU()(normalized()(L.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)))
    again = normalized()(L.Conv2D(filters, 3, padding="same", use_bias=False)(again))
    if stride > 1:
        x = normalized()(L.Conv2D(filters, 1, stride, use_bias=False)(x))
    return L.ReLU()(L.Add()([x, again]))


def resnet() -> Any:
    x = In((8, 8, 3))
    hidden = L.ReLU()(normalized()(L.Conv2D(4, 3, padding="same", use_bias=False)(x)))
    hidden = block(block(hidden, 4), 8, 2)
    return compiled(keras.Model(x, L.Dense(3, "softmax")(L.GlobalAveragePooling2D()(hidden))), CE, metrics=["accuracy"])


def convnext() -> Any:
    """Patches, then blocks of a wide depthwise kernel and an inverted bottleneck."""
    x = In((8, 8, 3))
    hidden = L.LayerNormalization()(L.Conv2D(6, 2, 2)(x))
    for _ in range(2):
        again = L.LayerNormalization()(L.DepthwiseConv2D(3, padding="same")(hidden))
        again = userlib.Scale()(L.Dense(6)(L.Dense(12, "gelu")(again)))
        hidden = L.Add()([hidden, again])
    output = L.Dense(3, "softmax")(L.LayerNormalization()(L.GlobalAveragePooling2D()(hidden)))
    return compiled(keras.Model(x, output), CE, O.AdamW(0.01, epsilon=1e-3), metrics=["accuracy"])


def efficientnet() -> Any:
    """Inverted bottlenecks with squeeze and excitation."""
    x = In((8, 8, 3))
    hidden = normalized()(L.Conv2D(4, 3, 2, padding="same", use_bias=False)(x))
    for _ in range(2):
        again = L.Activation("swish")(normalized()(L.Conv2D(8, 1, use_bias=False)(hidden)))
        again = L.Activation("swish")(normalized()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(again)))
        squeezed = L.Reshape((1, 1, 8))(L.GlobalAveragePooling2D()(again))
        again = L.Multiply()(
            [again, L.Conv2D(8, 1, activation="sigmoid")(L.Conv2D(2, 1, activation="swish")(squeezed))]
        )
        hidden = L.Add()([hidden, normalized()(L.Conv2D(4, 1, use_bias=False)(again))])
    return compiled(keras.Model(x, L.Dense(3, "softmax")(L.GlobalAveragePooling2D()(hidden))), CE, metrics=["accuracy"])


def densenet() -> Any:
    x = In((8, 8, 3))
    hidden = L.Conv2D(4, 3, padding="same")(x)
    for _ in range(2):
        grown = L.Conv2D(3, 3, padding="same")(L.ReLU()(normalized()(hidden)))
        hidden = L.Concatenate()([hidden, grown])
    hidden = L.AveragePooling2D(2)(L.Conv2D(4, 1)(hidden))
    return compiled(keras.Model(x, L.Dense(3, "softmax")(L.Flatten()(hidden))), CE, metrics=["accuracy"])


def unet() -> Any:
    x = In((8, 8, 1))
    wide = L.Conv2D(4, 3, padding="same", activation="relu")(x)
    deep = L.Conv2D(6, 3, padding="same", activation="relu")(L.MaxPooling2D(2)(wide))
    again = L.Concatenate()([wide, L.Conv2DTranspose(4, 2, 2)(deep)])
    output = L.Conv2D(3, 1, activation="softmax")(L.Conv2D(4, 3, padding="same", activation="relu")(again))
    iou = keras.metrics.MeanIoU(3, sparse_y_pred=False, name="iou")
    return compiled(keras.Model(x, output), CE, metrics=["accuracy", iou])


def autoencoder() -> Any:
    layers = [In((8, 8, 1)), L.Conv2D(4, 3, 2, padding="same", activation="relu")]
    layers += [L.Conv2DTranspose(4, 3, 2, padding="same", activation="relu"), L.Conv2D(1, 3, padding="same")]
    return compiled(Seq(layers), "mae")


def lstm_tagger() -> Any:
    layers = [In((6,), dtype="int32"), L.Embedding(9, 4, mask_zero=True)]
    layers += [L.Bidirectional(L.LSTM(3, return_sequences=True)), L.TimeDistributed(L.Dense(3, "softmax"))]
    return compiled(Seq(layers), CE, O.Adam(0.02, epsilon=1e-3), metrics=["accuracy"])


def gru_tagger() -> Any:
    layers = [In((None,), dtype="int32"), L.Embedding(9, 4, mask_zero=True), L.GRU(4, return_sequences=True)]
    return compiled(Seq([*layers, L.Dense(3, "softmax")]), CE, metrics=["accuracy"])


def transformer() -> Any:
    """An encoder of two blocks whose attention leaves out the padding, and a class for each row."""
    x = In((6,), dtype="int32")
    hidden = userlib.Positions()(L.Embedding(9, 4, mask_zero=True)(x))
    for _ in range(2):
        seen = L.MultiHeadAttention(2, 2)(hidden, hidden)
        hidden = L.LayerNormalization()(L.Add()([hidden, seen]))
        wide = L.Dense(4)(L.Dense(8, "gelu")(hidden))
        hidden = L.LayerNormalization()(L.Add()([hidden, wide]))
    output = L.Dense(3, "softmax")(L.GlobalAveragePooling1D()(hidden))
    return compiled(keras.Model(x, output), CE, O.Adam(0.01, epsilon=1e-3), metrics=["accuracy"])


def decoder() -> Any:
    """A causal language model: the next word at each step, with the table of words at both ends."""
    x = In((6,), dtype="int32")
    words = L.ReversibleEmbedding(9, 4)
    hidden = userlib.Positions()(words(x))
    hidden = L.LayerNormalization()(L.Add()([hidden, L.MultiHeadAttention(2, 2)(hidden, hidden, use_causal_mask=True)]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    return compiled(keras.Model(x, words(hidden, reverse=True)), loss, metrics=["accuracy"])


def seq2seq() -> Any:
    """An encoder, and a decoder that starts from its state and attends to its steps."""
    source, target = In((6,), dtype="int32", name="source"), In((5,), dtype="int32", name="target")
    seen, state = L.GRU(4, return_sequences=True, return_state=True)(L.Embedding(9, 3, mask_zero=True)(source))
    spoken = L.GRU(4, return_sequences=True)(L.Embedding(9, 3, mask_zero=True)(target), initial_state=state)
    attended = L.Concatenate()([spoken, L.Attention()([spoken, seen])])
    return compiled(keras.Model([source, target], L.Dense(9, "softmax")(attended)), CE, metrics=["accuracy"])


def two_tower() -> Any:
    user, item = In((1,), dtype="int64"), In((1,), dtype="int64")
    towers = [L.Dense(4)(L.Flatten()(L.Embedding(12, 5)(side))) for side in (user, item)]
    return compiled(keras.Model([user, item], L.Dense(1, "sigmoid")(L.Dot(-1)(towers))), "bce",
                    O.Adagrad(0.1), metrics=[keras.metrics.AUC(name="auc")])  # fmt: skip


def wide_and_deep() -> Any:
    wide, fields, numbers = In((8,)), In((2,), dtype="int32"), In((3,))
    deep = L.Concatenate()([L.Flatten()(L.Embedding(12, 3)(fields)), numbers])
    deep = L.Dense(4, "relu")(L.Dense(6, "relu")(deep))
    output = L.Dense(1, "sigmoid")(L.Concatenate()([wide, deep]))
    return compiled(
        keras.Model([wide, fields, numbers], output), "binary_crossentropy", O.Ftrl(0.05), metrics=["accuracy"]
    )


def deep_fm() -> Any:
    fields = In((4,), dtype="int32")
    table = L.Embedding(20, 3)(fields)
    first = ops.sum(L.Embedding(20, 1)(fields), axis=1)
    deep = L.Dense(1)(L.Dense(6, "relu")(L.Flatten()(table)))
    output = L.Activation("sigmoid")(L.Add()([first, userlib.SecondOrder()(table), deep]))
    return compiled(keras.Model(fields, output), "binary_crossentropy", O.Adam(0.02, epsilon=1e-3))


def siamese() -> Any:
    left, right = In((6,)), In((6,))
    shared = Seq([In((6,)), L.Dense(5, "tanh"), L.Dense(3)])
    return compiled(
        keras.Model([left, right], userlib.Distance()([shared(left), shared(right)])), userlib.Contrastive()
    )


def tcn() -> Any:
    """Residual causal convolutions of growing dilation, and a forecast for each step."""
    x = In((8, 2))
    hidden = L.Conv1D(4, 1)(x)
    for dilation in (1, 2):
        again = L.LayerNormalization()(
            L.Conv1D(4, 2, padding="causal", dilation_rate=dilation, activation="relu")(hidden)
        )
        hidden = L.Add()([hidden, again])
    return compiled(keras.Model(x, L.Dense(1)(hidden)), metrics=["mae"])


def mixer() -> Any:
    x = In((5, 4))
    turned = L.Permute((2, 1))(L.LayerNormalization()(x))
    hidden = L.Add()([x, L.Permute((2, 1))(L.Dense(5)(L.Dense(8, "gelu")(turned)))])
    hidden = L.Add()([hidden, L.Dense(4)(L.Dense(8, "gelu")(L.LayerNormalization()(hidden)))])
    return compiled(keras.Model(x, L.Dense(3, "softmax")(L.GlobalAveragePooling1D()(hidden))), CE, metrics=["accuracy"])


def vit() -> Any:
    """Patches of pixels as words."""
    x = In((8, 8, 3))
    hidden = userlib.Positions()(L.Reshape((4, 4))(L.Conv2D(4, 4, 4)(x)))
    normal = L.LayerNormalization()(hidden)
    hidden = L.Add()([hidden, L.MultiHeadAttention(2, 2)(normal, normal)])
    hidden = L.Add()([hidden, L.Dense(4)(L.Dense(8, "gelu")(L.LayerNormalization()(hidden)))])
    return compiled(keras.Model(x, L.Dense(3, "softmax")(L.Flatten()(hidden))), CE, metrics=["accuracy"])


def pixels(random: Any, count: int) -> Data:
    return Data(floats(random, count, 8, 8, 1), ids(random, count, 3, 8, 8))


def again(random: Any, count: int) -> Data:
    x = floats(random, count, 8, 8, 1)
    return Data(x, x)


def sentences(random: Any, count: int) -> Data:
    return Data(tokens(random, count), ids(random, count, 3))


def tags(random: Any, count: int) -> Data:
    return Data(tokens(random, count), ids(random, count, 3, 6))


def pairs(random: Any, count: int) -> Data:
    return Data([tokens(random, count), tokens(random, count, 5)], ids(random, count, 9, 5))


def clicks(random: Any, count: int) -> Data:
    return Data([ids(random, count, 12, 1), ids(random, count, 12, 1)], ids(random, count, 2, 1).astype("float32"))


def mixed(random: Any, count: int) -> Data:
    return Data([one_hot(random, count, 8), ids(random, count, 12, 2), floats(random, count, 3)],
                ids(random, count, 2, 1).astype("float32"))  # fmt: skip


def chosen(random: Any, count: int) -> Data:
    return Data(ids(random, count, 20, 4), ids(random, count, 2, 1).astype("float32"))


def alike(random: Any, count: int) -> Data:
    return Data([floats(random, count, 6), floats(random, count, 6)], ids(random, count, 2, 1).astype("float32"))


IMAGES = classes(3, 8, 8, 3)
CASES = [
    Case("ResNet", resnet, IMAGES),
    Case("MobileNet, keras.applications", mobilenet, classes(3, 32, 32, 3), tolerance=1e-4),
    Case("ConvNeXt", convnext, IMAGES),
    Case("EfficientNet", efficientnet, IMAGES),
    Case("DenseNet", densenet, IMAGES),
    Case("vision transformer", vit, IMAGES),
    Case("U-Net", unet, pixels),
    Case("image autoencoder", autoencoder, again),
    Case("LSTM tagger", lstm_tagger, tags),
    Case("GRU tagger, any length", gru_tagger, of_tags),
    Case("transformer encoder", transformer, sentences),
    Case("transformer decoder", decoder, lambda r, n: Data(ids(r, n, 9, 6), ids(r, n, 9, 6))),
    Case("sequence to sequence", seq2seq, pairs),
    Case("two-tower", two_tower, clicks),
    Case("wide and deep", wide_and_deep, mixed),
    Case("DeepFM", deep_fm, chosen),
    Case("siamese, contrastive", siamese, alike),
    Case("TCN", tcn, lambda r, n: Data(floats(r, n, 8, 2), floats(r, n, 8, 1))),
    Case("MLP-Mixer", mixer, classes(3, 5, 4)),
]  # fmt: skip
