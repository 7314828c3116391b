"""Let a network write texts word by word: beam search, and its batches (scoring task side)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cos_ml import python_worker
from cos_ml.data.ragged import cut
from cos_ml.network.structure import input_tensors
from cos_ml.scoring.predict import Scorer, arrays_of, in_use, partition

__all__ = ["FIELDS", "Writer", "beam_search", "log_probabilities", "write"]

FIELDS = ("text", "score")
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Writer:
    """What a scoring task needs in order to write texts, as plain values.

    Attributes:
        scorer: the network, and the columns of its inputs other than the words.
        words: which input takes the words so far.
        length: the length of that input; None if it takes any.
        vocabulary: the words by id; id 0 is padding.
        start, end: the ids that begin and end a text.
        width: number of texts that are kept for each row after each word.
        steps: maximum number of words of a text, its end included.
    """

    scorer: Scorer
    words: int
    length: int | None
    vocabulary: tuple[str, ...]
    start: int
    end: int
    width: int
    steps: int


def write(writer: Writer, batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.StructArray]:
    """The text and its log-probability for each row of Arrow batches, in order; null for invalid rows."""
    scorer, first_row = writer.scorer, 0
    with in_use(scorer) as forward:
        fresh = not forward.shapes
        forward.begin((scorer.seed, partition()))
        for columns in batches:
            rows, texts, scores = len(columns[0]), [], []
            for start in range(0, rows, scorer.batch_size):
                part = [column[start : start + scorer.batch_size] for column in columns]
                arrays, invalid = arrays_of(scorer, part, first_row + start)
                inputs = cut({str(index): array for index, array in enumerate(arrays)}, ~invalid)
                found, totals = _written(writer, forward, list(inputs.values()), int((~invalid).sum()))
                written = iter(zip(found, totals.tolist(), strict=True))
                for bad in invalid:
                    text, score = (None, None) if bad else next(written)
                    texts.append(text)
                    scores.append(score)
            first_row += rows
            if fresh:
                python_worker.freeze()
                fresh = False
            yield pa.StructArray.from_arrays([pa.array(texts, pa.string()), pa.array(scores, pa.float64())], FIELDS)


def _written(writer: Writer, forward: Any, arrays: list[np.ndarray], rows: int) -> tuple[list[str], np.ndarray]:
    """The texts for these rows and their log-probabilities."""

    def next_words(of: np.ndarray, prefixes: np.ndarray) -> np.ndarray:
        step, size = prefixes.shape[1], len(writer.vocabulary)
        if writer.length is not None:
            prefixes = np.pad(prefixes, ((0, 0), (0, writer.length - step)))
        inputs = [array[of] for array in arrays]
        inputs.insert(writer.words, prefixes.astype(dtype))
        output = forward(*inputs)[0].numpy()
        found = log_probabilities(output[:, step - 1] if output.ndim == 3 else output)[:, :size]
        found[:, [0, writer.start]] = -np.inf  # a text has neither padding nor a second beginning
        return found

    dtype = input_tensors(forward.network)[writer.words].dtype
    ids, totals = beam_search(next_words, rows, writer.width, writer.steps, writer.start, writer.end)
    kept = [row[: row.index(writer.end)] if writer.end in row else row for row in ids.tolist()]
    return [" ".join(writer.vocabulary[word] for word in row if word) for row in kept], totals


def log_probabilities(output: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities [rows, words], from probabilities or from logits.

    Probabilities are recognized by their values: no number is negative and each row sums to 1, which does not happen
    to a batch of logits. Rows with NaN decide nothing.
    """
    values = output.astype(np.float64)
    known = values[~np.isnan(values).any(axis=-1)]
    if (known >= 0).all() and np.allclose(known.sum(axis=-1), 1, atol=1e-2):
        return np.log(np.maximum(values, TINY))  # type: ignore[no-any-return]
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


def beam_search(
    next_words: Callable[[np.ndarray, np.ndarray], np.ndarray], rows: int, width: int, steps: int, start: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable sequence of words of each row that beam search finds.

    Args:
        next_words: for the numbers of rows [n] and the ids so far [n, step], the log-probabilities [n, words] of the
            next word; those of id 0 are -inf.
        rows: how many rows there are.
        width: number of sequences that are kept after each step; 1 is greedy search.
        steps: maximum number of words of a sequence, its end included.
        start, end: the ids that begin and end a sequence.

    Returns:
        tuple[np.ndarray, np.ndarray]: ids [rows, steps] without the start, 0 after the end; and the sums of the
        log-probabilities [rows].
    """
    ids = np.zeros((rows, width, steps + 1), np.int64)
    ids[:, :, 0] = start
    totals = np.full((rows, width), -np.inf)
    totals[:, 0] = 0.0
    ended = np.zeros((rows, width), bool)
    for step in range(1, steps + 1):
        active = np.flatnonzero(~ended[:, 0])  # the best sequence has ended: no other can become better
        row, beam = np.nonzero(~ended[active] & np.isfinite(totals[active]))
        if not len(row):
            break
        found = next_words(active[row], ids[active[row], beam, :step])
        candidates = np.full((len(active), width, found.shape[1]), -np.inf)
        candidates[row, beam] = totals[active[row], beam, None] + np.where(np.isnan(found), -np.inf, found)
        candidates[..., 0] = np.where(ended[active], totals[active], -np.inf)  # id 0: a sequence that has ended stays
        best, scores = _largest(candidates.reshape(len(active), -1), width)
        beam, word, place = best // found.shape[1], best % found.shape[1], active[:, None]
        ids[active], ended[active] = ids[place, beam], ended[place, beam] | (word == end)
        ids[active, :, step], totals[active] = word, scores
    return ids[:, 0, 1:], totals[:, 0]


def _largest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The places and the values of the ``count`` largest of each row, the largest first."""
    places = np.sort(np.argpartition(-values, count - 1, axis=1)[:, :count], axis=1)
    found = np.take_along_axis(values, places, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1), np.take_along_axis(found, order, axis=1)
