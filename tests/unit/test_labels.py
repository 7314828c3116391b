"""Labels, losses and refusals on the driver: what needs a network and the types of columns, but no Spark."""

import inspect
from typing import Any

import pytest
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import types as T

from cos_ml.converters import keras_objects
from cos_ml.errors import InvalidInputError
from cos_ml.network import checks
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras
from cos_ml.network.losses import label_kind, loss_family, losses_by_output, needs_sum, with_output_keys
from cos_ml.network.signature import label_columns

pytestmark = pytest.mark.once

keras = import_keras()
L, losses = keras.layers, keras.losses

INT, DOUBLE, LONG = T.IntegerType(), T.DoubleType(), T.LongType()
INTS, DOUBLES = T.ArrayType(INT), T.ArrayType(DOUBLE)


def net(*shape: int | None, units: int = 3, **options: Any) -> Network:
    """A network whose output has the shape (*shape, units)."""
    inputs = keras.Input((*shape, 4))
    return Network.of(keras.Model(inputs, L.Dense(units, name="out", **options)(inputs)))


def label(network: Network, loss: Any, given: Any) -> Any:
    return label_columns(network, ["y"], keras_objects(loss), {"y": given})[0]


@keras.saving.register_keras_serializable("tests")
class OwnLoss(losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(y_true - y_pred, axis=-1)


# ── the shape of a label ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("network", "loss", "given", "shape"),
    [
        (net(units=1), "mse", DOUBLE, (1,)),  # [B, 1], as Keras's users pass it
        (net(units=1), OwnLoss(), DOUBLE, (1,)),
        (net(units=1), OwnLoss(), DOUBLES, (1,)),
        (net(units=1), "bce", INT, (1,)),
        (net(units=3), OwnLoss(), DOUBLE, ()),  # one number for three quantiles
        (net(units=3), "sparse_categorical_crossentropy", INT, ()),
        (net(units=3), "sparse_categorical_crossentropy", INTS, (1,)),
        (net(units=3), losses.CategoricalGeneralizedCrossEntropy(), INT, ()),
        (net(units=3), losses.Circle(), INT, ()),
        (net(units=3), "categorical_crossentropy", DOUBLES, (3,)),
        (net(units=3), "categorical_crossentropy", VectorUDT(), (3,)),
        (net(units=3), "crossentropy", INT, ()),
        (net(units=3), "crossentropy", DOUBLES, (3,)),
        (net(8, units=3), "sparse_categorical_crossentropy", INTS, (8,)),
        (net(8, units=3), "mse", DOUBLES, (8, 3)),
        (net(8, units=1), "mse", DOUBLES, (8, 1)),
        (net(8, units=3), losses.CTC(), INTS, (None,)),
        (net(8, 8, units=3), "sparse_categorical_crossentropy", T.BinaryType(), (8, 8)),
        (net(None, units=3), "sparse_categorical_crossentropy", INTS, (None,)),
        (net(None, units=3), OwnLoss(), INTS, (None,)),
        (net(None, units=3), OwnLoss(), T.ArrayType(DOUBLES), (None, 3)),
        (net(None, units=3), "categorical_crossentropy", DOUBLES, (None, 3)),
    ],
)
def test_a_label_has_the_shape_that_its_loss_accepts(network, loss, given, shape):
    assert label(network, loss, given).shape == shape


def test_an_unknown_loss_takes_what_there_is():
    column = label(net(8, units=3), OwnLoss(), INTS)
    assert column.shape == (8, 3)
    assert column.alternatives == ((8,), (None,))
    assert label(net(units=3), OwnLoss(), INTS).alternatives == ((None,),)
    assert label(net(units=3), "mse", DOUBLES).alternatives == ((1,),)
    assert label(net(units=3), "categorical_crossentropy", DOUBLES).alternatives == ()


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (T.ByteType(), "int8"),
        (T.ShortType(), "int16"),
        (INT, "int32"),
        (LONG, "int64"),
        (T.FloatType(), "float32"),
        (DOUBLE, "float32"),  # what keras.Model.fit makes of an array of doubles
        (T.BooleanType(), "bool"),
        (T.DecimalType(18, 0), "int64"),
        (T.DecimalType(18, 2), "float32"),
        (DOUBLES, "float32"),
        (T.ArrayType(INTS), "int32"),
        (VectorUDT(), "float32"),
        (T.BinaryType(), "uint8"),
    ],
)
def test_a_label_has_the_number_type_of_its_column(given, dtype):
    assert label(net(8, units=3), OwnLoss(), given).dtype == dtype


def test_labels_of_an_output_in_float64_keep_every_digit():
    network = net(8, units=3, dtype="float64")
    assert [label(network, "mse", given).dtype for given in (DOUBLES, VectorUDT(), INTS)] == ["float64"] * 2 + ["int32"]


def test_classes_and_the_one_that_is_ignored():
    column = label(net(None, units=3), losses.SparseCategoricalCrossentropy(ignore_class=-1), INTS)
    assert (column.classes, column.ignored, column.padding) == (3, -1.0, -1.0)
    column = label(net(None, units=3), "sparse_categorical_crossentropy", INTS)
    assert (column.classes, column.ignored, column.padding) == (3, None, 0.0)
    column = label(net(units=1, activation="sigmoid"), "binary_crossentropy", DOUBLE)
    assert (column.classes, column.low, column.high) == (None, 0.0, 1.0)  # soft labels are labels


@pytest.mark.parametrize("name", [name for name, one in vars(losses).items() if inspect.isclass(one)])
def test_every_loss_of_keras_is_known_by_each_of_its_names(name):
    cls = vars(losses)[name]
    if cls is losses.Loss:
        return
    assert label_kind(name) is not None
    assert label_kind(keras_objects(cls())) == label_kind(name)
    assert loss_family(keras_objects(cls())) == loss_family(name)


@pytest.mark.parametrize(
    ("name", "function"), [(name, one) for name, one in vars(losses).items() if inspect.isfunction(one)]
)
def test_a_function_or_a_short_name_is_treated_as_its_class(name, function):
    if name in ("get", "serialize", "deserialize"):
        return
    serialized = keras.saving.serialize_keras_object(function)
    assert label_kind(serialized) == label_kind(name) is not None
    assert loss_family(serialized) == loss_family(name)


def test_a_users_loss_is_none_of_keras_whatever_its_name():
    config = {"class_name": "CategoricalCrossentropy", "config": {}, "module": "mine", "registered_name": "m>C"}
    assert label_kind(config) is None
    assert loss_family(config) is None


def test_short_names():
    assert loss_family("bce") == loss_family("BCE") == "binary"
    assert label_kind("mse") == label_kind("MSE") == "same"
    assert loss_family("crossentropy", 1) == "binary"
    assert loss_family("ce", 3) == "categorical"


# ── several outputs ───────────────────────────────────────────────────────────────────────────────────────────────────


def two(as_dict: bool) -> Network:
    inputs = keras.Input((4,))
    price, kind = L.Dense(1, name="p")(inputs), L.Dense(3, activation="softmax", name="k")(inputs)
    return Network.of(keras.Model(inputs, {"price": price, "kind": kind} if as_dict else [price, kind]))


TYPES = {"a": DOUBLE, "b": INT, "price": DOUBLE, "kind": INT, "p": DOUBLE, "k": INT}


def found(network: Network, names: list[str], loss: Any) -> list[tuple[str, str, Any]]:
    return [(one.name, one.field, one.shape) for one in label_columns(network, names, loss, TYPES)]


def test_outputs_in_a_dict_have_labels_by_key_or_name_or_order():
    loss = {"price": "mse", "kind": "sparse_categorical_crossentropy"}
    network = two(True)
    assert [output.key for output in network.outputs] == ["kind", "price"]  # as Keras sorts them
    for names, columns in [
        (["price", "kind"], ["kind", "price"]),
        (["p", "k"], ["k", "p"]),
        (["b", "a"], ["b", "a"]),
    ]:
        assert found(network, names, loss) == [(columns[0], "y0", ()), (columns[1], "y1", (1,))]


@pytest.mark.parametrize("loss", [["mse", None], {"p": "mse"}, {"p": "mse", "k": None}])
def test_an_output_without_a_loss_needs_no_label(loss):
    network = two(False)
    assert found(network, ["a"], loss) == [("a", "y0", (1,))]
    assert found(network, ["a", "b"], loss) == [("a", "y0", (1,)), ("b", "y1", ())]
    assert found(network, ["b"], [None, "sparse_categorical_crossentropy"]) == [("b", "y1", ())]
    with pytest.raises(InvalidInputError, match=r"outputs \['p'\], received \['a', 'b', 'c'\]"):
        label_columns(network, ["a", "b", "c"], loss, TYPES)


def test_names_of_layers_become_the_keys_that_keras_wants():
    outputs = two(True).outputs
    assert with_output_keys({"p": "mse", "kind": "ce"}, outputs) == {"price": "mse", "kind": "ce"}
    assert with_output_keys({"k": ["acc"]}, outputs) == {"kind": ["acc"]}
    assert with_output_keys("mse", outputs) == "mse"
    assert with_output_keys(["mse"], outputs) == ["mse"]
    assert with_output_keys({"p": "mse"}, two(False).outputs) == {"p": "mse", "k": None}
    assert losses_by_output({"p": "mse", "k": "ce"}, outputs) == ["ce", "mse"]


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(words: str) -> Any:
    return pytest.raises(InvalidInputError, match=words)


def test_class_ids_with_a_loss_for_one_hot_labels_and_the_reverse():
    network = net(units=3, activation="softmax")
    for loss in ("categorical_crossentropy", losses.CategoricalFocalCrossentropy()):
        with refused(r"expects 3 numbers per row.*'out', received one number. .*sparse_categorical_crossentropy"):
            label(network, loss, INT)
    with refused(r"SparseCategoricalCrossentropy\(from_logits=True\)"):
        label(network, losses.CategoricalCrossentropy(from_logits=True), DOUBLE)
    with refused("a class id for each row, received a Vector. For one-hot labels use categorical_crossentropy"):
        label(network, "sparse_categorical_crossentropy", VectorUDT())
    assert "categorical_crossentropy" in label(network, "sparse_categorical_crossentropy", INTS).hint
    with refused(r"mse expects 3 numbers per row.*Pass an array of 3"):
        label(network, "mse", DOUBLE)


@pytest.mark.parametrize("reduction", [None, "none"])
def test_the_reduction_none(reduction):
    for loss in (losses.MeanSquaredError(reduction=reduction), [None, losses.Huber(reduction=reduction)]):
        with refused("has the reduction None"):
            checks.check_losses(keras_objects(loss))
    checks.check_losses(keras_objects(["mse", losses.MeanSquaredError(reduction="sum")]))


def test_two_who_set_the_learning_rate():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    optimizer = keras_objects(keras.optimizers.SGD(schedule))
    with refused("learningRate: the optimizer has the schedule ExponentialDecay"):
        checks.check_learning_rate(optimizer, 0.1, [])
    for name in ("ReduceLROnPlateau", "LearningRateScheduler"):
        with refused(f"{name} sets the learning rate, but"):
            checks.check_learning_rate(optimizer, None, [{"class": f"keras.callbacks:{name}"}])
    checks.check_learning_rate(optimizer, None, [{"class": "keras.callbacks:CSVLogger"}])
    checks.check_learning_rate(keras_objects(keras.optimizers.SGD(0.1)), 0.1, [])
    wrapped = keras_objects(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule)))
    with refused("ExponentialDecay"):
        checks.check_learning_rate(wrapped, 0.1, [])


def test_nothing_to_train():
    inner = keras.Sequential([keras.Input((4,)), L.Dense(3, name="a"), L.Dense(3, name="b")], name="inner")
    network = Network.of(keras.Sequential([keras.Input((4,)), inner, L.ReLU(), L.Dense(1, name="c")]))
    assert checks.traits_of(network).trainable == ("inner/a", "inner/b", "c")
    checks.check_trainable(network, ["inner"])
    with refused(r"frozenLayers: \['inner', 'c'\] are all layers with trainable weights"):
        checks.check_trainable(network, ["inner", "c"])
    with refused("no trainable weights"):
        checks.check_trainable(net(trainable=False), [])


def test_xla():
    strings = keras.Input((1,), dtype="string")
    words = Network.of(
        keras.Model(strings, L.Dense(1)(L.StringLookup(vocabulary=["a"], output_mode="one_hot")(strings)))
    )
    with refused("XLA has no strings"):
        checks.check_xla(words, "mse", 1)
    ignoring = keras_objects(losses.SparseCategoricalCrossentropy(ignore_class=0))
    assert needs_sum(ignoring)
    checks.check_xla(net(), ignoring, 1)
    checks.check_xla(net(), "mse", 2)
    ids = keras.Input((5,))
    masked = Network.of(keras.Model(ids, L.Dense(2)(L.Embedding(9, 3, mask_zero=True)(ids))))
    synchronized = Network.of(keras.Sequential([keras.Input((4,)), L.BatchNormalization(synchronized=True)]))
    for network, loss in [(net(), ignoring), (masked, "mse"), (synchronized, "mse")]:
        with refused("jitCompile: .*needs a sum over all ranks"):
            checks.check_xla(network, loss, 2)


def test_layers_that_could_not_do_what_they_promise():
    inputs = keras.Input(batch_shape=(8, 5, 2))
    stateful = Network.of(keras.Model(inputs, L.LSTM(3, stateful=True, name="memory")(inputs)))
    checks.check_network(stateful, 8, 1)
    with refused("batchSize: the network takes batches of 8 rows, and its layer 'memory' is stateful, received 32"):
        checks.check_network(stateful, 32, 1)
    ids = keras.Input((5,))
    rows = L.BatchNormalization(synchronized=True, name="norm")(L.Embedding(9, 3, mask_zero=True)(ids))
    masked = Network.of(keras.Model(ids, L.Dense(2)(rows)))
    checks.check_network(masked, 32, 1)
    with refused("'norm' is a BatchNormalization with synchronized=True that receives a mask"):
        checks.check_network(masked, 32, 2)


def test_facts_are_stored_and_looked_up_where_an_older_version_did_not_store_them():
    network = net(units=1)
    again = Network.from_facts(network.facts(), network.archive)
    assert again.traits == network.traits
    assert again.outputs == network.outputs
    older = Network(network.archive, network.inputs, network.outputs, network.layers)
    assert checks.traits_of(older) == network.traits


def test_how_a_compiled_model_runs_its_steps():
    model = keras.Sequential([keras.Input((4,)), L.Dense(1)])
    assert checks.compiled_settings(Network.of(model)) == {}
    model.compile("sgd", "mse", run_eagerly=True, steps_per_execution=4)
    assert checks.compiled_settings(Network.of(model)) == {"run_eagerly": True, "steps_per_execution": 4}
    model.compile("sgd", "mse", jit_compile=True)
    assert checks.compiled_settings(Network.of(model)) == {"jit_compile": True}


# ── classes with methods of their own ─────────────────────────────────────────────────────────────────────────────────

register = keras.saving.register_keras_serializable("tests")


@register
class OwnStep(keras.Model):
    def train_step(self, data: Any) -> Any:
        return {}


@register
class OwnCompile(keras.Model):
    def compile(self, *args: Any, extra: float = 1.0, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        self.extra = extra


@register
class SavedCompile(OwnCompile):
    def get_compile_config(self) -> Any:
        return super().get_compile_config() | {"extra": self.extra}

    def compile_from_config(self, config: Any) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))


@register
class NarrowCompile(keras.Model):
    def compile(self, optimizer: Any, loss: Any) -> None:
        super().compile(optimizer, loss)


@register
class CompilesItself(keras.Model):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compile("sgd", "mse")


@register
class AddsLoss(keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        self.add_loss(keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def of_class(cls: Any) -> Any:
    inputs = keras.Input((4,))
    return cls(inputs, L.Dense(1, name="out", kernel_regularizer="l2")(inputs))


def test_what_a_class_says_itself():
    traits = checks.traits_of(Network.of(of_class(OwnStep)))
    assert traits.overrides == ("train_step",)
    assert traits.own_step
    assert checks.traits_of(Network.of(of_class(keras.Model))).overrides == ()


def test_networks_that_need_no_loss():
    assert checks.needs_no_loss(Network.of(of_class(OwnStep)))
    assert not checks.needs_no_loss(Network.of(of_class(keras.Model)))  # a penalty on weights is no loss
    inputs = keras.Input((4,))
    adding = Network.of(keras.Model(inputs, AddsLoss()(L.Dense(1, kernel_regularizer="l2")(inputs))))
    assert checks.needs_no_loss(adding)
    assert not checks.takes_labels(adding)


def test_a_compile_with_arguments_that_keras_does_not_save():
    model = of_class(OwnCompile)
    checks.check_compile_arguments(Network.of(model), {"optimizer": "sgd", "loss": "mse"}, given=True)
    model.compile("sgd", "mse", extra=3.0)
    with refused(r"arguments of its own \(extra\), which Keras does not save: override get_compile_config"):
        checks.check_compile_arguments(Network.of(model), {"optimizer": "sgd", "loss": "mse"}, given=True)


def test_a_compile_that_takes_less():
    network = Network.of(of_class(NarrowCompile))
    checks.check_compile_arguments(network, {"optimizer": "sgd", "loss": "mse"}, given=False)
    with refused("Param metrics: compile of the network's class takes no metrics"):
        checks.check_compile_arguments(network, {"optimizer": "sgd", "loss": "mse", "metrics": ["mae"]}, given=False)


def test_a_class_that_compiles_from_a_configuration_of_its_own():
    model = of_class(SavedCompile)
    assert checks.compiled_by_class(Network.of(model), []) is None
    model.compile("sgd", "mse", extra=3.0)
    network = Network.of(model)
    arguments = checks.compiled_by_class(network, [])
    assert arguments is not None
    assert arguments["compile_config"]["extra"] == 3.0
    assert checks.loss_of(network, arguments) == "mse"
    with refused("Param optimizer: the network's class compiles it by its own compile_from_config"):
        checks.compiled_by_class(network, ["optimizer"])


def test_a_class_that_compiles_itself():
    model = of_class(CompilesItself)
    network = Network.of(model)
    arguments = checks.compiled_by_class(network, [])
    assert arguments == {"self_compiled": True}
    assert checks.loss_of(network, arguments) == "mse"
    assert checks.compiled_by_class(network, ["optimizer"]) is None
    model.compile("adam", "mae")
    assert checks.compiled_by_class(Network.of(model), []) is None
