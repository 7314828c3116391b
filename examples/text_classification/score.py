"""Load the Pipeline that train.py saved, in a new process, and tell which libraries sentences are about.

python examples/text_classification/score.py [--path PATH] [SENTENCE ...]    # where train.py saved it
"""

import argparse
from importlib.util import find_spec

from docstrings import DEFAULT_PATH, start_spark
from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql.functions import array_max

SENTENCES = [
    "Return the element-wise remainder of division of two arrays.",
    "Drop the rows of the table in which any of the columns is missing.",
    "Applies dropout to the input while the layer is called in training mode.",
    "Registers the table as a temporary view of this session's catalog.",
]


def main(path: str, sentences: list[str]) -> None:
    """Load the Pipeline, and show the library of each sentence with its probability."""
    if find_spec("keras_hub"):  # a Pipeline of train.py --preset has its layers: loading a file imports no module
        from cos_ml import DeepNetModel  # noqa: F401 - before keras_hub: this hides TensorFlow's start-up messages
        import keras_hub  # noqa: F401
    spark = start_spark()
    texts = spark.createDataFrame([(one,) for one in sentences], "text string")
    scored = PipelineModel.load(path).transform(texts)
    probability = array_max(vector_to_array("probability")).cast("decimal(4,3)").alias("probability")
    scored.select("text", "library", probability).show(truncate=False)
    spark.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default=DEFAULT_PATH)
    parser.add_argument("sentences", nargs="*", default=SENTENCES, metavar="SENTENCE")
    arguments = parser.parse_args()
    main(arguments.path, arguments.sentences)
