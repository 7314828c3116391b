"""Words and beam search, without Spark."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras
from cos_ml.scoring.beam_search import beam_search, log_probabilities
from cos_ml.text import SPECIAL, SequenceDecoder, Vocabulary, VocabularyModel, _ids

keras = import_keras()

PAD, UNKNOWN, START, END = range(4)
WORDS = 6


def language(seed, rows=3):
    """The log-probabilities of the next word, which depend on the row and on all words so far."""
    tables = np.random.default_rng(seed).normal(size=(rows, 97, WORDS)) * 2

    def next_words(of, prefixes):
        keys = (prefixes * 7 ** np.arange(1, prefixes.shape[1] + 1)).sum(axis=1) % 97
        found = log_probabilities(tables[of, keys])
        found[:, [PAD, START]] = -np.inf
        return found

    return next_words


def probability(next_words, row, words):
    """The log-probability of a whole sequence, word by word."""
    total, so_far = 0.0, [START]
    for word in words:
        total += next_words(np.array([row]), np.array([so_far]))[0, word]
        so_far.append(word)
    return total


def all_sequences(steps):
    """Every sequence of so many words, or of fewer and the end."""
    words = [UNKNOWN, 4, 5]
    for length in range(steps + 1):
        for head in itertools.product(words, repeat=length):
            if length < steps:
                yield (*head, END)
            else:
                yield head


@pytest.mark.once
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_most_probable_of_all_sequences(seed):
    next_words, steps = language(seed), 4
    ids, totals = beam_search(next_words, 3, 200, steps, START, END)
    for row in range(3):
        best = max(all_sequences(steps), key=lambda words: probability(next_words, row, words))
        assert ids[row].tolist() == [*best, *[PAD] * (steps - len(best))]
        np.testing.assert_allclose(totals[row], probability(next_words, row, best), rtol=1e-12)


def reference(next_words, row, width, steps):
    """Beam search in plain Python, which never ends early."""
    beams = [(0.0, [START])]
    for _ in range(steps):
        candidates = []
        for total, words in beams:
            if words[-1] == END:
                candidates.append((total, words))
                continue
            found = next_words(np.array([row]), np.array([words]))[0]
            candidates += [(total + found[word], [*words, word]) for word in (UNKNOWN, END, 4, 5)]
        beams = sorted(candidates, key=lambda one: -one[0])[:width]
    return beams[0]


@pytest.mark.once
@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_beam_search_is_that_of_plain_python(width):
    for seed in range(8):
        next_words, steps = language(seed), 6
        ids, totals = beam_search(next_words, 3, width, steps, START, END)
        for row in range(3):
            total, words = reference(next_words, row, width, steps)
            assert [word for word in ids[row].tolist() if word] == words[1:]
            np.testing.assert_allclose(totals[row], total, rtol=1e-12)


@pytest.mark.once
def test_only_texts_that_go_on_are_computed():
    """Greedy search asks for no row whose text has ended, and not again once all have."""
    asked = []

    def next_words(of, prefixes):
        asked.append(of.tolist())
        found = np.full((len(of), WORDS), -9.0)
        found[np.arange(len(of)), np.where(prefixes.shape[1] > of, END, 4)] = -0.1
        return found

    ids, _ = beam_search(next_words, 3, 1, 10, START, END)
    assert asked == [[0, 1, 2], [1, 2], [2]]
    assert ids[:, :4].tolist() == [[END, 0, 0, 0], [4, END, 0, 0], [4, 4, END, 0]]
    assert beam_search(next_words, 0, 2, 3, START, END)[0].shape == (0, 3)


@pytest.mark.once
def test_numbers_that_are_nan_are_no_words():
    ids, totals = beam_search(lambda of, _: np.full((len(of), WORDS), np.nan), 2, 2, 3, START, END)
    assert ids.shape == (2, 3)
    assert (totals == -np.inf).all()


@pytest.mark.once
def test_probabilities_and_logits():
    logits = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32) * 5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(log_probabilities(logits), log_probabilities(probabilities), rtol=1e-4, atol=1e-5)
    assert np.isfinite(log_probabilities(np.array([[1.0, 0.0]]))).all()
    with_nan = np.vstack([probabilities, np.full((1, 7), np.nan)])
    np.testing.assert_array_equal(log_probabilities(with_nan)[:4], log_probabilities(probabilities))
    assert log_probabilities(np.zeros((0, 7))).shape == (0, 7)


@pytest.mark.once
@pytest.mark.parametrize(
    ("stage", "name", "value", "expected"),
    [
        (Vocabulary, "maxWords", 0, ">= 1"),
        (Vocabulary, "minCount", 0, ">= 1"),
        (Vocabulary, "markEnds", "yes", "True or False"),
        (VocabularyModel, "vocabulary", ["a", "b"], r"begins with \['', '\[UNK\]', '\[START\]', '\[END\]'\]"),
        (VocabularyModel, "vocabulary", [*SPECIAL, "a", "a"], "distinct"),
        (SequenceDecoder, "beamWidth", 0, ">= 1"),
        (SequenceDecoder, "maxLength", 0, ">= 1"),
        (SequenceDecoder, "model", "words", "model"),
    ],
)
def test_invalid_values_name_the_param(stage, name, value, expected):
    with pytest.raises(InvalidInputError, match=expected) as caught:
        stage(**{name: value})
    assert name in str(caught.value)


@pytest.mark.once
def test_a_vocabulary_gives_its_words_to_the_decoder():
    vocabulary = VocabularyModel(vocabulary=[*SPECIAL, "a", "b"])
    assert SequenceDecoder(vocabulary=vocabulary).getVocabulary() == [*SPECIAL, "a", "b"]
    assert VocabularyModel(vocabulary=vocabulary).getVocabulary() == vocabulary.getVocabulary()


@pytest.mark.once
def test_the_words_input_is_the_one_of_an_embedding():
    layers = keras.layers
    image, words, more = keras.Input((4,), name="image"), keras.Input((None,), name="so_far"), keras.Input((3,))
    known = layers.Concatenate()([image, more])
    states = layers.GRU(7)(layers.Embedding(9, 5)(words), initial_state=known)
    network = Network.of(keras.Model([image, words, more], layers.Dense(9)(states)))
    assert SequenceDecoder()._words_input(network) == 1
    assert SequenceDecoder(wordsInput="so_far")._words_input(network) == 1
    with pytest.raises(InvalidInputError, match=r"wordsInput.*'none'.*so_far"):
        SequenceDecoder(wordsInput="none")._words_input(network)
    alone = Network.of(keras.Sequential([keras.Input((4,)), layers.Dense(9)]))
    with pytest.raises(InvalidInputError, match="wordsInput"):
        SequenceDecoder()._words_input(alone)


# ── words as ids ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.list_(pa.large_string())])
def test_ids_of_words(kind):
    """Padding is no word; what is unknown, and null, has the id of unknown words."""
    words = pa.array([["a", "z", None], None, [], ["", "b"], None], kind)
    parts = [(words,), (words.slice(3),), (pa.nulls(2),), (words.slice(2, 1),)]
    found = [ids.to_pylist() for ids in _ids([*SPECIAL, "a", "b"], iter(parts))]
    assert found == [[[4, 1, 1], None, [], [1, 5], None], [[1, 5], None], [None, None], [[]]]
