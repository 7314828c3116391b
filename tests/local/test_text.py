"""Vocabulary and SequenceDecoder on a Spark session."""

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel

from cos_ml import DeepNetModel
from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras
from cos_ml.text import SPECIAL, SequenceDecoder, Vocabulary, VocabularyModel
from tests.unit.test_text import END, PAD, START, reference

keras = import_keras()
layers = keras.layers

TEXTS = ["the cat and the dog", "the  bird\tand a Cat ", "", None, "the dog"]
SEED = 9
WORDS = [*SPECIAL, "dog", "the"]


@pytest.fixture(scope="module")
def texts(spark):
    return spark.createDataFrame(list(enumerate(TEXTS)), "id int, text string").repartition(2)


def collected(df, *columns):
    return [tuple(row) for row in df.orderBy("id").select(*columns).collect()]


@pytest.mark.once
def test_words_are_numbered_by_how_often_they_occur(texts):
    model = Vocabulary().fit(texts)
    assert model.getVocabulary() == [*SPECIAL, "the", "and", "dog", "Cat", "a", "bird", "cat"]
    assert collected(model.transform(texts), "words") == [
        ([4, 10, 5, 4, 6],), ([4, 9, 5, 8, 7],), ([],), (None,), ([4, 6],),
    ]  # fmt: skip
    assert Vocabulary(minCount=2).fit(texts).getVocabulary() == [*SPECIAL, "the", "and", "dog"]
    assert Vocabulary(maxWords=2).fit(texts).getVocabulary() == [*SPECIAL, "the", "and"]
    rare = Vocabulary(maxWords=1).fit(texts).transform(texts)
    assert collected(rare, "words")[0] == ([4, 1, 1, 4, 1],)


@pytest.mark.once
def test_teacher_forcing_has_the_words_one_step_apart(texts, tmp_path):
    stage = Vocabulary(markEnds=True, targetCol="next", outputCol="so far", maxWords=3)
    stage.write().overwrite().save(str(tmp_path / "stage"))
    model = Vocabulary.load(str(tmp_path / "stage")).fit(texts)
    assert model.uid == stage.uid
    model.write().overwrite().save(str(tmp_path / "model"))
    loaded = VocabularyModel.load(str(tmp_path / "model"))
    assert loaded.getVocabulary() == model.getVocabulary()
    out = loaded.transform(texts)
    assert out.schema["so far"].dataType.simpleString() == out.schema["next"].dataType.simpleString() == "array<int>"
    assert collected(out, "`so far`", "next") == [
        ([2, 4, 1, 5, 4, 6], [4, 1, 5, 4, 6, 3]),
        ([2, 4, 1, 5, 1, 1], [4, 1, 5, 1, 1, 3]),
        ([2], [3]),
        (None, None),
        ([2, 4, 6], [4, 6, 3]),
    ]
    plain = VocabularyModel(vocabulary=model, targetCol="next").transform(texts)
    assert collected(plain, "words", "next")[2:] == [([], []), (None, None), ([4], [6])]


def test_arrays_of_words(spark):
    df = spark.createDataFrame([(0, ["b", "", "a b", None, "b"]), (1, None)], "id int, text array<string>")
    model = Vocabulary().fit(df)
    assert model.getVocabulary() == [*SPECIAL, "b", "a b"]
    assert collected(model.transform(df), "words") == [([4, 1, 5, 1, 4],), (None,)]


@pytest.mark.once
@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (VocabularyModel(vocabulary=WORDS, inputCol="id"), "'id' is of type int: expected a string"),
        (
            VocabularyModel(vocabulary=WORDS, outputCol="ID"),
            "'ID' is in the DataFrame already.*outputCol",
        ),
        (VocabularyModel(vocabulary=WORDS, targetCol="Words"), "added twice"),
        (VocabularyModel(), "vocabulary is not set"),
        (SequenceDecoder(), "model is not set"),
    ],
)
def test_what_can_not_be_transformed_is_named(texts, stage, message):
    with pytest.raises(InvalidInputError, match=message):
        stage.transform(texts)


# ── writing texts ─────────────────────────────────────────────────────────────────────────────────────────────────────


def captioner(length=None, activation=None):
    """A network that writes words of WORDS about three numbers, always with the same random weights."""
    picture, words = keras.Input((3,), name="picture"), keras.Input((length,), name="so_far", dtype="int32")
    state = layers.Dense(8, activation="tanh", name="encoding")(picture)
    embedded = layers.Embedding(6, 5, mask_zero=True)(words)
    steps = layers.GRU(8, return_sequences=True)(embedded, initial_state=state)
    model = keras.Model([words, picture], layers.Dense(6, activation=activation)(steps))
    random = np.random.default_rng(SEED)
    for weight in model.trainable_variables:
        weight.assign(random.uniform(-2, 2, weight.shape))
    model.layers[-1].bias.assign([0, 0, 0, -1, 0, 0])  # few texts end at once
    return model


def next_words(model, pictures, length=None):
    """What ``reference`` asks of a network that computes logits."""

    def ask(of, so_far):
        step = so_far.shape[1]
        padded = np.pad(so_far, ((0, 0), (0, length - step))) if length else so_far
        logits = np.asarray(model([padded.astype("int32"), pictures[of]], training=False), np.float64)[:, step - 1]
        found = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found[:, [PAD, START]] = -np.inf
        return found

    return ask


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def rows(spark, pictures):
    data = [(index, row.tolist()) for index, row in enumerate(pictures)]
    return spark.createDataFrame(data, "id int, picture array<float>").repartition(2)


@pytest.mark.once
@pytest.mark.parametrize(
    ("width", "length", "batch"),
    [pytest.param(1, None, 128, marks=pytest.mark.more), pytest.param(3, None, 4, marks=pytest.mark.more), (3, 7, 128)],
)
def test_texts_are_those_of_beam_search_in_plain_python(rows, pictures, width, length, batch):
    model = captioner(length)
    stage = SequenceDecoder(model=model, vocabulary=WORDS, inputCols=["picture"], maxLength=5, beamWidth=width)
    out = stage.setPredictBatchSize(batch).transform(rows)
    assert out.columns == ["id", "picture", "text", "logProbability"]
    ask = next_words(model, pictures, length)
    lengths = set()
    for row, (text, score) in enumerate(collected(out, "text", "logProbability")):
        total, ids = reference(ask, row, width, 5)
        assert text == " ".join(WORDS[one] for one in ids[1:] if one != END)
        assert score == pytest.approx(total, abs=1e-5)
        lengths.add(len(ids))
    assert len(lengths) > 1


@pytest.mark.once
def test_probabilities_give_the_texts_of_their_logits(rows):
    stage = SequenceDecoder(model=captioner(), vocabulary=WORDS, inputCols=["picture"], maxLength=5, beamWidth=2)
    expected = collected(stage.transform(rows), "text", "logProbability")
    found = collected(stage.setModel(captioner(activation="softmax")).transform(rows), "text", "logProbability")
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([one for _, one in found], [one for _, one in expected], rtol=1e-4)


@pytest.mark.once
def test_a_pipeline_with_a_decoder_is_saved_and_loaded(rows, tmp_path):
    stage = SequenceDecoder(
        model=DeepNetModel(model=captioner()), vocabulary=VocabularyModel(vocabulary=WORDS), inputCols=["picture"],
        outputCol="caption", logProbabilityCol="", beamWidth=2, maxLength=4, wordsInput="so_far",
    )  # fmt: skip
    pipeline = Pipeline(stages=[stage]).fit(rows)
    expected = collected(pipeline.transform(rows), "*")
    pipeline.write().overwrite().save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline"))
    assert loaded.transform(rows).columns == ["id", "picture", "caption"]
    assert collected(loaded.transform(rows), "*") == expected
    again = loaded.stages[0]
    assert (again.getVocabulary(), again.getWordsInput(), again.uid) == (WORDS, "so_far", stage.uid)


@pytest.mark.more
@pytest.mark.once
def test_an_encoder_of_its_own_is_computed_once(rows):
    model = captioner()
    stage = SequenceDecoder(model=model, vocabulary=WORDS, inputCols=["picture"], maxLength=4, beamWidth=2)
    expected = collected(stage.transform(rows), "text", "logProbability")
    (words, picture), encoding = model.inputs, model.get_layer("encoding").output
    encoder = DeepNetModel(model=keras.Model(picture, encoding), inputCols=["picture"], predictionCol="encoding")
    stage.setModel(keras.Model([encoding, words], model.output)).setInputCols(["encoding"])
    found = collected(stage.transform(encoder.transform(rows)), "text", "logProbability")
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([one for _, one in found], [one for _, one in expected], rtol=1e-4)


def test_bad_rows(spark):
    df = spark.createDataFrame(
        [(0, [1.0, 2.0, 3.0]), (1, None), (2, [1.0, float("nan"), 0.0])], "id int, x array<float>"
    )
    stage = SequenceDecoder(model=captioner(), vocabulary=WORDS, inputCols=["x"], maxLength=3)
    with pytest.raises(Exception, match="'x', row"):
        stage.transform(df).collect()
    kept = collected(stage.setHandleInvalid("keep").transform(df), "text", "logProbability")
    assert kept[1:] == [(None, None)] * 2
    assert collected(stage.setHandleInvalid("skip").transform(df), "text", "logProbability") == kept[:1]
    assert stage.transform(df.limit(0)).collect() == []


@pytest.mark.once
def test_networks_that_can_not_write_are_named(rows):
    stage = SequenceDecoder(model=captioner(), vocabulary=[*WORDS, "bird"], inputCols=["picture"])
    with pytest.raises(InvalidInputError, match="expected an output of 7 numbers"):
        stage.transform(rows)
    with pytest.raises(InvalidInputError, match=r"maxLength.*7 words"):
        SequenceDecoder(model=captioner(7), vocabulary=WORDS, inputCols=["picture"]).transform(rows)
