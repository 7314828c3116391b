"""Train a network that describes pictures in words, on two ranks, and let it describe pictures that it has not seen.

python examples/captions/train.py [PICTURES [EPOCHS]]    # by default 24,000 pictures to train on
"""

import os
from pathlib import Path
import sys
import tempfile

import cos_ml
from cos_ml import DeepNetEstimator, display
from cos_ml.text import SequenceDecoder, Vocabulary
import keras
from keras import layers
from pictures import SIDE, compose, split_digits
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

BATCH = 32  # rows per rank and step
RANKS = 2
PAGE = Path(tempfile.gettempdir(), "cos_ml-captions.html")


def start_spark() -> SparkSession:
    """Start Spark on two cores of this machine, one per rank."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # executors need the Python that has cos_ml
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(cos_ml.__file__).with_name("conf")))  # log errors only
    return SparkSession.builder.master(f"local[{RANKS}]").config("spark.sql.shuffle.partitions", RANKS).getOrCreate()


def captioner(words: int, steps: int) -> keras.Model:
    """Build a network that predicts each word of a caption from a picture and the words before it."""
    keras.utils.set_random_seed(1)
    picture = keras.Input((SIDE, SIDE, 1), dtype="uint8", name="picture")
    seen = layers.Rescaling(1 / 255)(picture)
    for filters in (32, 64):
        seen = layers.Conv2D(filters, 3, padding="same", activation="relu")(seen)
        seen = layers.MaxPooling2D()(seen)
    seen = layers.Dropout(0.25)(layers.Flatten()(seen))
    state = [layers.Dense(128, activation="tanh")(seen) for _ in range(2)]
    so_far = keras.Input((None,), dtype="int32", name="words")
    embedded = layers.Embedding(words, 32, mask_zero=True)(so_far)  # id 0 pads short captions
    states = layers.LSTM(128, return_sequences=True)(embedded, initial_state=state)
    model = keras.Model([picture, so_far], layers.Dense(words, activation="softmax")(states))
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    return model


def main(pictures: int, epochs: int) -> None:
    """Compose pictures, train on them, and describe others."""
    spark = start_spark()
    parts = zip(split_digits(), (pictures, 1000), range(2), strict=True)
    frames = [compose(*digits, count, seed) for digits, count, seed in parts]
    train, held_out = (spark.createDataFrame(list(rows), "picture binary, caption string") for rows in frames)

    # Each word is predicted from the words before it: "words" begins with [START], "next_word" ends with [END].
    vocabulary = Vocabulary(inputCol="caption", outputCol="words", targetCol="next_word", markEnds=True).fit(train)
    network = DeepNetEstimator(
        model=captioner(len(vocabulary.getVocabulary()), epochs * -(-pictures // (BATCH * RANKS))),
        inputCols=["picture", "words"],
        labelCol="next_word",
        batchSize=BATCH,
        epochs=epochs,
        numTrainWorkers=RANKS,
        seed=1,
    )
    trained = network.fit(vocabulary.transform(train))
    results = trained.evaluate(vocabulary.transform(held_out))
    print(f"token accuracy on held-out pictures: {results['accuracy']:.4f}")

    decoder = SequenceDecoder(
        model=trained, vocabulary=vocabulary, inputCols=["picture"], outputCol="written", beamWidth=3
    )
    written = decoder.transform(held_out).cache()
    print_captions(written)
    table = display.show(written.select("picture", "caption", "written"), 30, label="caption", predictions=["written"])
    PAGE.write_text(f'<meta charset="utf-8">{table._repr_html_()}', encoding="utf-8")
    print(f"pictures and captions: {PAGE}")
    spark.stop()


def print_captions(written: DataFrame) -> None:
    """Print how many captions are right to the last word, and some of them."""
    right = F.col("written") == F.col("caption")
    print(f"captions without a mistake: {written.filter(right).count() / written.count():.4f}")
    chances = F.exp("logProbability").cast("decimal(4,3)").alias("probability")
    for rows, title in ((written.filter(right), "right"), (written.filter(~right), "wrong")):
        print(f"some that are {title}:")
        rows.select("caption", "written", chances).show(8, truncate=False)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24_000, int(sys.argv[2]) if len(sys.argv) > 2 else 9)
