"""Networks of keras-hub as docs/text.md tells to train them: tiny, with random weights, from a folder."""

import io
import os
import subprocess
import sys

import keras_hub
import numpy as np
import pytest
import sentencepiece
from pyspark.ml import Pipeline

from cos_ml.errors import InvalidInputError
from cos_ml.estimator import DeepNetEstimator
from cos_ml.model import DeepNetModel
from cos_ml.network.archive import Network, load_model
from cos_ml.network.keras_import import import_keras
from tests.integrations.presets import WORDS, save_classifier
from tests.support.sessions import FORKED, ROOT

keras = import_keras()

TEXTS = ["the good fox", "The bad foxs", "quick good", "bad unknown brown"] * 8
LABELS = np.array([1, 0, 1, 0] * 8)
EPOCHS = 3
LOSS = "sparse_categorical_crossentropy"


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("preset"))


def from_folder(preset):
    """The classifier, and the network of strings that begins with its preprocessor."""
    classifier = keras_hub.models.TextClassifier.from_preset(preset)
    text = keras.Input((), dtype="string", name="text")
    return classifier, keras.Model(text, classifier(classifier.preprocessor(text)))


@pytest.fixture(scope="module")
def rows(spark):
    return spark.createDataFrame(list(zip(TEXTS, LABELS.tolist(), strict=True)), "text string, label int").repartition(
        2
    )


def estimator(net, **params):
    """One that takes all rows in each step, so that their order does not matter."""
    return DeepNetEstimator(
        model=net, loss=LOSS, optimizer="adam", learningRate=0.01, batchSize=len(TEXTS), epochs=EPOCHS,
        numTrainWorkers=2, progress=False, **params,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(preset):
    """The weights that plain Keras trains."""
    _, net = from_folder(preset)
    net.compile(keras.optimizers.Adam(0.01), LOSS)
    net.fit(np.array(TEXTS, object), LABELS, len(TEXTS), EPOCHS, shuffle=False, verbose=0)
    return net.get_weights()


@pytest.fixture(scope="module")
def model(preset, rows):
    return estimator(from_folder(preset)[1], featuresCol="text").fit(rows)


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_network_of_strings_is_trained_as_by_keras(model, expected):
    assert_close(model.toKeras().get_weights(), expected)


def test_a_stage_of_the_tokenizer_is_the_same(preset, rows, expected):
    classifier, _ = from_folder(preset)
    text = keras.Input((), dtype="string", name="text")
    tokens = keras.Model(text, classifier.preprocessor(text))
    tokenizer = DeepNetModel(model=tokens, featuresCol="text", predictionCol="ids", vectorType="array")
    columns = ["ids", "ids_segment_ids", "ids_token_ids"]
    fitted = Pipeline(stages=[tokenizer, estimator(classifier, inputCols=columns)]).fit(rows)
    assert_close(fitted.stages[-1].toKeras().get_weights(), expected)


PROGRAM = """
import sys
from pyspark.sql import SparkSession
from cos_ml import DeepNetModel
from cos_ml.errors import SavedModelError

spark = SparkSession.builder.master("local[1]").getOrCreate()
try:
    DeepNetModel.load(sys.argv[1])
except SavedModelError as error:
    print(error)
import keras_hub
texts = spark.createDataFrame([(one,) for one in sys.argv[2:]], "text string")
for row in DeepNetModel.load(sys.argv[1]).transform(texts).collect():
    print(*row.probability)
"""


def test_a_fresh_process_computes_the_same_once_it_has_imported_keras_hub(spark, model, tmp_path):
    model.save(str(tmp_path / "model"))
    texts = [
        row.probability
        for row in model.transform(spark.createDataFrame([(one,) for one in TEXTS[:4]], "text string")).collect()
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), *TEXTS[:4]], capture_output=True, text=True,
        env=os.environ | FORKED | {"PYTHONPATH": str(ROOT)}, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    refused, *found = done.stdout.strip().splitlines()
    assert "keras_hub" in refused
    np.testing.assert_allclose([list(map(float, line.split())) for line in found], texts, rtol=1e-5)


def test_a_task_takes_the_ids_of_its_tokens_alone(preset, rows):
    classifier, _ = from_folder(preset)
    with pytest.raises(InvalidInputError, match="padding_mask"):
        estimator(classifier, featuresCol="text").fit(rows)


def byte_pairs():
    vocabulary = {
        token: index for index, token in enumerate(["<|endoftext|>", "f", "o", "x", "Ġ", "fo", "fox", "Ġfox"])
    }
    return keras_hub.tokenizers.BytePairTokenizer(
        vocabulary=vocabulary, merges=["f o", "fo x", "Ġ fox"], sequence_length=6
    )


def sentence_pieces():
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4), model_writer=proto, vocab_size=30, model_type="unigram", pad_id=0, unk_id=1,
        bos_id=2, eos_id=3, hard_vocab_limit=False, minloglevel=3,
    )  # fmt: skip
    return keras_hub.tokenizers.SentencePieceTokenizer(proto=proto.getvalue(), sequence_length=6)


def word_pieces():
    return keras_hub.tokenizers.WordPieceTokenizer(vocabulary=WORDS, lowercase=True, sequence_length=6)


@pytest.mark.parametrize("make", [byte_pairs, sentence_pieces, word_pieces])
def test_tokenizers_of_all_kinds_are_loaded_again(make):
    tokenizer = make()
    text = keras.Input((), dtype="string")
    net = keras.Model(text, tokenizer(text))
    network = Network.of(net)
    found = load_model(network.archive, network.modules)(np.array(["fox the fox", ""], object))
    assert np.array_equal(found, net(np.array(["fox the fox", ""], object)))
    assert "get_config" not in vars(tokenizer)  # as before it was saved
