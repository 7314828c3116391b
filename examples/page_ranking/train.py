"""Ranks the pages of a search by what people clicked, with a network that reads the words as they are.

    python examples/page_ranking/train.py [sessions]

A row is a search: the query, and for each of the ten pages that were shown its title, its site, its place and
whether it was clicked. The loss compares the pages of a search with each other, so a step on several ranks is exact.
"""

from collections.abc import Iterable, Iterator
import os
from pathlib import Path
import sys
from typing import Any

import cos_ml
from cos_ml import DeepNetEstimator
import keras
import numpy as np
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import HashingTF, OneHotEncoder, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

PAGES, TITLE, TOP = 10, 4, 5  # pages of a search, words of a title, pages that NDCG looks at
TOPICS = {
    "cooking": "bread soup oven recipe dough pasta sauce baking flour cheese salad roast pepper grill butter",
    "travel": "flight hotel beach island passport luggage train harbour museum hostel visa airport coast cruise map",
    "football": "goal league keeper penalty striker coach stadium transfer derby offside midfield cup referee score",
    "gardens": "rose soil pruning seeds tulip compost lawn hedge greenhouse tomato watering spade orchard moss fern",
    "music": "guitar chord concert piano album lyrics drummer opera vinyl melody rhythm festival choir violin tuning",
    "money": "mortgage savings pension tax budget interest loan shares invoice bank credit insurance broker rent fund",
}
CLICKED = (0.04, 0.15, 0.5, 0.8)  # how often a page is clicked by who looks at it, by its grade


def searches(count: int, seed: int = 0) -> Iterator[tuple[Any, ...]]:
    """Searches as a click model draws them: (query, titles, urls, clicks, grades).

    A page about the query is worth 2, a good site 1 more. The old engine shows good pages first, more or less; people
    look at lower places less often, and click what they look at by its grade.
    """
    random = np.random.default_rng(seed)
    words = [text.split() for text in TOPICS.values()]
    quality = random.random(40) < 0.4  # of sites
    for _ in range(count):
        topic = random.integers(len(words))
        topics = np.where(random.random(PAGES) < 0.35, topic, random.integers(len(words), size=PAGES))
        sites = random.integers(len(quality), size=PAGES)
        grades = 2 * (topics == topic) + quality[sites]
        shown = np.argsort(random.normal(0, 1.5, PAGES) - grades)
        topics, sites, grades = topics[shown], sites[shown], grades[shown]
        clicks = random.random(PAGES) < np.take(CLICKED, grades) / (1 + 0.4 * np.arange(PAGES))
        titles = [" ".join(random.choice(words[one], TITLE, replace=False)) for one in topics]
        urls = [f"https://site{site}.example/{title.split()[0]}" for site, title in zip(sites, titles, strict=True)]
        yield " ".join(random.choice(words[topic], 2, replace=False)), titles, urls, clicks.tolist(), grades.tolist()


def columns(df: DataFrame) -> DataFrame:
    """The columns that the network reads, made of strings by Spark: all words of a search, sites, places."""
    clicks = F.transform("clicks", lambda click: click.cast("float"))
    total = F.aggregate(clicks, F.lit(0.0).cast("float"), lambda sum_, click: sum_ + click)
    return df.select(
        "id",
        "grades",
        "clicks",
        F.split("query", " ").alias("query"),
        F.flatten(F.transform("titles", lambda title: F.split(title, " "))).alias("title"),
        F.transform("urls", lambda url: F.split(url, "/")[2]).alias("site"),
        F.array(*map(F.lit, range(PAGES))).alias("place"),
        F.transform(clicks, lambda click: F.try_divide(click, total)).alias("share"),
        total.alias("total"),
    )


def vocabulary(df: DataFrame, *names: str) -> list[str]:
    """The words of columns of arrays, the most frequent first."""
    words = df.select(F.explode(F.concat(*names)).alias("word")).groupBy("word").count()
    return [row["word"] for row in words.orderBy(F.desc("count"), "word").collect()]


def ranker(words: list[str], sites: list[str], size: int = 16) -> keras.Model:
    """The score of each page: how well query and title fit, the site, and the place, which explains clicks away."""
    query, title, site = (
        keras.Input(shape, dtype="string", name=name)
        for name, shape in (("query", (2,)), ("title", (PAGES, TITLE)), ("site", (PAGES,)))
    )
    place = keras.Input((PAGES,), dtype="int32", name="place")
    lookup = keras.layers.StringLookup(vocabulary=words, name="words")
    embedding = keras.layers.Embedding(len(words) + 1, size, name="embedding")
    asked = keras.ops.mean(embedding(lookup(query)), axis=1)
    told = keras.ops.mean(embedding(lookup(title)), axis=2)
    fit = keras.layers.Dot(axes=(2, 1), name="fit")([told, asked])
    known = keras.layers.StringLookup(vocabulary=sites, name="sites")(site)
    trust = keras.layers.Embedding(len(sites) + 1, 1, name="trust")(known)
    seen = keras.layers.Embedding(PAGES, 1, name="seen")(place)
    score = keras.layers.Add(name="score")([fit, *(keras.layers.Reshape((PAGES,))(one) for one in (trust, seen))])
    return keras.Model([query, title, site, place], score)


def ndcg(rows: Iterable[tuple[Any, Any]]) -> float:
    """The mean NDCG of searches, given as (scores, grades)."""
    discount = 1 / np.log2(np.arange(2, TOP + 2))
    found = []
    for scores, grades in rows:
        gains = 2.0 ** np.array(grades) - 1
        best = np.sort(gains)[::-1][:TOP] @ discount
        if best:
            found.append(gains[np.argsort(-np.array(scores), kind="stable")][:TOP] @ discount / best)
    return float(np.mean(found))


def by_clicks(train: DataFrame, test: DataFrame) -> list[tuple[Any, Any]]:
    """LogisticRegression on the same columns, a row for each page: the scores of the pages of each search."""

    def pages(df: DataFrame) -> DataFrame:
        zipped = F.arrays_zip("site", "place", F.col("clicks").alias("click"), "grades")
        return df.select("id", "query", "title", F.posexplode(zipped).alias("page", "of")).select(
            "id",
            "page",
            F.col("of.place").alias("place"),
            F.col("of.grades").alias("grade"),
            F.col("of.click").cast("int").alias("label"),
            F.concat(
                F.transform("query", lambda word: F.concat(F.lit("query "), word)),
                F.slice("title", F.col("page") * TITLE + 1, TITLE),
                F.array("of.site"),
            ).alias("terms"),
        )

    stages = [
        HashingTF(inputCol="terms", outputCol="hashed", numFeatures=1 << 12),
        OneHotEncoder(inputCol="place", outputCol="shown", dropLast=False),
        VectorAssembler(inputCols=["hashed", "shown"], outputCol="features"),
        LogisticRegression(maxIter=20, regParam=1e-3),
    ]
    scored = Pipeline(stages=stages).fit(pages(train)).transform(pages(test))
    score = vector_to_array("rawPrediction")[1].alias("score")
    rows = scored.groupBy("id").agg(F.sort_array(F.collect_list(F.struct("page", score, "grade"))).alias("pages"))
    return [([page.score for page in row.pages], [page.grade for page in row.pages]) for row in rows.collect()]


def main(count: int = 8_000) -> None:
    """Train on four fifths of the searches, and rank the pages of the others."""
    os.environ.setdefault("PYSPARK_SUBMIT_ARGS", "--master local[2] pyspark-shell")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # executors need the Python that has cos_ml
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(cos_ml.__file__).with_name("conf")))  # log errors only
    spark = SparkSession.builder.getOrCreate()
    keras.utils.set_random_seed(0)
    rows = [(index, *row) for index, row in enumerate(searches(count))]
    schema = "id int, query string, titles array<string>, urls array<string>, clicks array<boolean>, grades array<int>"
    data = columns(spark.createDataFrame(rows, schema)).cache()
    train, test = data.where("id % 5 > 0 and total > 0"), data.where("id % 5 = 0")
    estimator = DeepNetEstimator(
        model=ranker(vocabulary(train, "query", "title"), vocabulary(train, "site")),
        inputCols=["query", "title", "site", "place"],
        labelCol="share",
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),  # a softmax over the pages of a search
        optimizer=keras.optimizers.Adam(0.01),
        batchSize=64,
        epochs=6,
        validationFraction=0.1,
        numTrainWorkers=2,
    )
    model = estimator.fit(train)
    print(model.summary)
    first = test.withColumn("place", F.transform("place", lambda _: F.lit(0)))  # as if each page were the first
    scored = model.transform(first).select(vector_to_array("rawPrediction").alias("scores"), "grades").collect()
    table = {
        "as shown": [(range(0, -PAGES, -1), row.grades) for row in test.select("grades").collect()],
        "LogisticRegression": by_clicks(train, first),
        "network": [(row.scores, row.grades) for row in scored],
    }
    print(f"NDCG@{TOP} of {test.count():,} searches that no model has seen")
    for name, ranked in table.items():
        print(f"{name:<20}{ndcg(ranked):.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
