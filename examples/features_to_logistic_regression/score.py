"""Load the Pipeline that train.py saved, in a new process, and score the held-out rows again.

python examples/features_to_logistic_regression/score.py [PATH]    # where train.py saved it
"""

import sys

from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql.functions import array_max

from digits import DEFAULT_PATH, load_rows, print_accuracies, start_spark


def main(path: str) -> None:
    """Load the Pipeline, score the held-out rows, and show ten of them."""
    spark = start_spark()
    _, held_out = load_rows(spark)

    scored = PipelineModel.load(path).transform(held_out)

    print_accuracies(scored)
    confidence = array_max(vector_to_array("lr_probability")).cast("decimal(4,3)").alias("lr_confidence")
    scored.select("label", "prediction", "lr_prediction", confidence).limit(10).show()
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_PATH)
