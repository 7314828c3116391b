"""Train a network that tells from a sentence which library it is about, on two ranks, beside a LogisticRegression.

python examples/text_classification/train.py [--rows N] [--preset FOLDER] [PATH]    # saves the fitted Pipeline to PATH

The sentences are from docstrings, up to N of each library (see docstrings.py). With --preset, a classifier of keras-hub
is trained further that was saved to a folder, such as a BERT (`save_to_preset`): docs/text.md tells what that needs.
"""

import argparse

from cos_ml import DeepNetEstimator
from cos_ml.text import Vocabulary
from docstrings import DEFAULT_PATH, LIBRARIES, RANKS, load_texts, start_spark
import keras
from keras import layers
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import IDF, HashingTF, RegexTokenizer

WORDS = 20_000  # that the vocabulary has at most, without the four special ones


def small_network() -> keras.Model:
    """Build a network that looks for patterns of three words, and keeps how well each fits anywhere in the sentence."""
    keras.utils.set_random_seed(1)
    words = keras.Input((None,), dtype="int32", name="words")
    found = layers.Conv1D(128, 3, padding="same", activation="relu")(layers.Embedding(WORDS + 4, 64)(words))
    found = layers.Dropout(0.5)(layers.GlobalMaxPooling1D()(found))
    return keras.Model(words, layers.Dense(len(LIBRARIES), activation="softmax")(found))


def pretrained_network(folder: str) -> keras.Model:
    """Build a network of a preset's tokenizer and its classifier, whose last layer is new."""
    import keras_hub

    keras.utils.set_random_seed(1)
    classifier = keras_hub.models.TextClassifier.from_preset(folder, num_classes=len(LIBRARIES), activation="softmax")
    text = keras.Input((), dtype="string", name="text")
    return keras.Model(text, classifier(classifier.preprocessor(text)))


def main(path: str, rows: int, preset: str | None) -> None:
    """Fit both Pipelines, print their accuracies on the held-out sentences, and save that of the network."""
    spark = start_spark()
    train, held_out = load_texts(spark, rows)

    split = RegexTokenizer(inputCol="text", outputCol="split", pattern=r"\W+")
    network = DeepNetEstimator(
        featuresCol="text" if preset else "words",
        labelCol="label",
        labels=LIBRARIES,
        predictedLabelCol="library",
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        batchSize=32,
        epochs=3,
        numTrainWorkers=RANKS,
        seed=1,
    )
    if preset:
        stages = [network.setModel(pretrained_network(preset)).setLearningRate(5e-5)]
    else:
        vocabulary = Vocabulary(inputCol="split", maxWords=WORDS)
        stages = [split, vocabulary, network.setModel(small_network()).setLearningRate(2e-3)]
    baseline = [
        split,
        HashingTF(inputCol="split", outputCol="counts"),
        IDF(inputCol="counts", outputCol="features"),
        LogisticRegression(regParam=0.01),
    ]
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    print(f"sentences to train on: {train.count()}, held out: {held_out.count()}")
    for name, chosen in (("LogisticRegression", baseline), ("network", stages)):
        model = Pipeline(stages=chosen).fit(train)
        print(f"{name + ':':20}{evaluator.evaluate(model.transform(held_out)):.4f} accuracy on held-out sentences")
    model.write().overwrite().save(path)
    print(f"saved to {path}")
    spark.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default=DEFAULT_PATH)
    parser.add_argument("--rows", type=int, default=8000, metavar="N")
    parser.add_argument("--preset", metavar="FOLDER")
    arguments = parser.parse_args()
    main(arguments.path, arguments.rows, arguments.preset)
