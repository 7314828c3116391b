"""Words of text: Vocabulary, VocabularyModel and SequenceDecoder (driver side)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark import keyword_only
from pyspark.ml import Estimator, Model, Transformer
from pyspark.ml.param.shared import HasHandleInvalid, HasInputCol, HasInputCols, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import broadcasts
from cos_ml.accessors import DecoderAccessors, VocabularyAccessors, VocabularyModelAccessors
from cos_ml.converters import boolean, class_labels, integer, names, non_empty_string, one_of, string
from cos_ml.data.columns import as_list_array
from cos_ml.data.expressions import expression
from cos_ml.data.frames import check_not_streaming
from cos_ml.data.names import fold, is_case_sensitive, quoted, resolve, taken
from cos_ml.data.ragged import Ragged, offsets_of
from cos_ml.errors import InvalidInputError
from cos_ml.network import checks
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras
from cos_ml.network.signature import input_columns
from cos_ml.params import DeclaredParam, ModelParams, StageParams
from cos_ml.persistence import NetworkStage
from cos_ml.scoring import beam_search
from cos_ml.scoring.predict import Scorer
from cos_ml.scoring.udf_arguments import arrow_udf, with_udf

__all__ = ["SequenceDecoder", "Vocabulary", "VocabularyModel"]

import_keras()  # quietly, before the program imports it

UNKNOWN, START, END = "[UNK]", "[START]", "[END]"
SPECIAL = ["", UNKNOWN, START, END]  # the first ids: "" is padding, as in Keras's TextVectorization
UNKNOWN_ID, START_ID, END_ID = 1, 2, 3


def _vocabulary(value: Any) -> list[str]:
    """The words of a VocabularyModel, or a list of words that begins with the special ones."""
    words = class_labels(value.getVocabulary() if isinstance(value, VocabularyModel) else value)
    if words[: len(SPECIAL)] != SPECIAL:
        raise ValueError(f"expected a list of words that begins with {SPECIAL}")
    return words


class _VocabularyParams(StageParams, HasInputCol, HasOutputCol):
    """The Params that Vocabulary and VocabularyModel share."""

    inputCol = DeclaredParam(
        string, "input column: a string, which is split at white space, or an array of strings", "text"
    )
    outputCol = DeclaredParam(string, "output column: an array of the words' ids; null for null", "words")
    targetCol = DeclaredParam(
        string,
        "column for teacher forcing: outputCol then has all ids but the last, targetCol all but the first. Unset: none",
    )
    markEnds = DeclaredParam(boolean, f"whether {START} is put before the words, and {END} behind them", False)


class Vocabulary(
    Estimator["VocabularyModel"], VocabularyAccessors, _VocabularyParams, DefaultParamsReadable["Vocabulary"],
    DefaultParamsWritable,
):  # fmt: skip
    """An Estimator that numbers the words of a column by how often they occur; words that occur equally
    often are in alphabetical order.

    The ids 0 to 3 are padding (""), [UNK] for words that the vocabulary lacks, [START] and [END]. Id 0 is what
    ``Embedding(mask_zero=True)`` masks, and what DeepNetEstimator pads rows of different lengths with. For lower case,
    or words without punctuation, put Spark's Tokenizer or RegexTokenizer before it.

    Args: every Param by keyword, as described by ``explainParams()``.

    Raises:
        InvalidInputError: a Param is invalid.
    """

    maxWords = DeclaredParam(
        integer(1), "maximum number of words, not counting the four special ones (>= 1). Unset: no limit"
    )
    minCount = DeclaredParam(integer(1), "number of times that a word must occur to get an id (>= 1)", 1)

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "text",
        outputCol: str = "words",
        targetCol: str | None = None,
        markEnds: bool = False,
        maxWords: int | None = None,
        minCount: int = 1,
    ) -> None:
        super().__init__()
        self._set(**vars(self).pop("_input_kwargs"))

    def _fit(self, dataset: DataFrame) -> VocabularyModel:
        check_not_streaming(dataset)
        word = dataset.select(F.explode(_words(dataset, self.getInputCol())).alias("word"))
        counts = word.filter(F.col("word").isNotNull() & ~F.col("word").isin(SPECIAL)).groupBy("word").count()
        counts = counts.filter(F.col("count") >= self.getMinCount()).orderBy(F.desc("count"), "word")
        if limit := self.value_or_none(self.maxWords):
            counts = counts.limit(limit)
        found = [row["word"] for row in counts.select("word").collect()]
        model = VocabularyModel()._resetUid(self.uid)
        return self._copyValues(model)._set(vocabulary=[*SPECIAL, *found])  # type: ignore[no-any-return]


class VocabularyModel(
    Model, VocabularyModelAccessors, _VocabularyParams, DefaultParamsReadable["VocabularyModel"], DefaultParamsWritable
):  # fmt: skip
    """A Transformer that turns the words of a column into the ids of a vocabulary.

    Fitted by Vocabulary, or made from a list of words. ``keras.layers.StringLookup(vocabulary=model.getVocabulary(),
    mask_token="")`` gives the same ids within a network.

    Args: every Param by keyword, as described by ``explainParams()``; vocabulary is required to transform.

    Raises:
        InvalidInputError: a Param is invalid.
    """

    vocabulary: DeclaredParam[list[str]] = DeclaredParam(
        _vocabulary,
        f"the words in the order of their ids, of which {SPECIAL} are the first, or a VocabularyModel that has them",
        accepts="Any",
    )

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "text",
        outputCol: str = "words",
        targetCol: str | None = None,
        markEnds: bool = False,
        vocabulary: Any = None,
    ) -> None:
        super().__init__()
        self._set(**vars(self).pop("_input_kwargs"))

    def _transform(self, dataset: DataFrame) -> DataFrame:
        if not self.isSet(self.vocabulary):
            raise InvalidInputError("Param vocabulary is not set: pass a list of words, or fit a Vocabulary.")
        output, target = self.getOutputCol(), self.value_or_none(self.targetCol)
        _check_new(dataset, {"outputCol": output} | ({"targetCol": target} if target else {}))
        type_, look_up = T.ArrayType(T.IntegerType()), partial(_ids, self.getVocabulary())
        values = {"words": _words(dataset, self.getInputCol())}
        out = with_udf(dataset, values, output, arrow_udf(dataset.sparkSession, type_, look_up))
        ids = F.col(quoted(output))
        if self.getMarkEnds():
            ids = F.concat(F.array(F.lit(START_ID)), ids, F.array(F.lit(END_ID)))
        if target:
            out = out.withColumn(target, F.slice(ids, 2, F.greatest(F.size(ids) - 1, F.lit(0))))
            ids = F.slice(ids, 1, F.greatest(F.size(ids) - 1, F.lit(0)))
        return out.withColumn(output, ids) if target or self.getMarkEnds() else out


def _words(dataset: DataFrame, name: str) -> SparkColumn:
    """The words of a column, as an array of strings."""
    found = resolve(dataset, name)
    if isinstance(found.data_type, T.StringType):
        return F.filter(F.split(found.values, r"\s+"), lambda word: word != "")
    if isinstance(found.data_type, T.ArrayType) and isinstance(found.data_type.elementType, T.StringType):
        return found.values
    raise InvalidInputError(
        f"Column {name!r} is of type {found.data_type.simpleString()}: expected a string or an array of strings."
    )


def _check_new(dataset: DataFrame, names: dict[str, str]) -> None:
    """Raises InvalidInputError for output columns, by Param, that Spark could not tell from other columns."""
    exact = is_case_sensitive(dataset)
    keys = [fold(name, exact) for name in names.values()]
    for param, name in names.items():
        if taken(dataset, name):
            raise InvalidInputError(f"Output column {name!r} is in the DataFrame already: drop it, or set {param}.")
        if keys.count(fold(name, exact)) > 1:
            raise InvalidInputError(f"Output column {name!r} would be added twice: set {param} to another name.")


def _ids(vocabulary: list[str], batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
    """The ids of the words of each row; null for null (scoring task side)."""
    known = pa.array([word or None for word in vocabulary], pa.string())
    for (rows,) in batches:
        words = rows.cast(pa.list_(pa.string()))  # a batch of nulls has no type
        ids = pc.index_in(words.flatten(), known, skip_nulls=True).fill_null(UNKNOWN_ID).to_numpy()
        sizes = pc.list_value_length(words).fill_null(0).to_numpy()
        yield as_list_array(Ragged(ids, offsets_of(sizes), (None,)), words.is_null().to_numpy(zero_copy_only=False))


class SequenceDecoder(
    Transformer, DecoderAccessors, NetworkStage, StageParams, HasInputCols, HasOutputCol, HasHandleInvalid
):  # fmt: skip
    """A Transformer that lets a trained network write a text for each row, word by word, by greedy or beam search.

    The network has an input that takes the ids of the words so far, [START] first, and for each step of it (or for the
    last one alone) an output of probabilities or logits of the next word: what teacher forcing trains on the columns
    of ``Vocabulary(markEnds=True, targetCol=...)``. Each step runs the whole network; docs/text.md shows how
    to compute a large encoder only once.

    Args: every Param by keyword, as described by ``explainParams()``; model and vocabulary are required to transform.

    Raises:
        InvalidInputError: a Param is invalid.
    """

    model: DeclaredParam[Any] = DeclaredParam(
        ModelParams.model.convert, "the network: a built keras.Model, the path of a .keras file, or a DeepNetModel",
        accepts="Any",
    )  # fmt: skip
    vocabulary: DeclaredParam[list[str]] = DeclaredParam(
        VocabularyModel.vocabulary.convert, VocabularyModel.vocabulary.doc, accepts="Any"
    )
    inputCols = DeclaredParam(
        names, "input columns, one per input of the network except that of the words, as in DeepNetModel", ["features"]
    )
    wordsInput = DeclaredParam(
        non_empty_string,
        "name of the network's input that takes the words so far. Unset: the only one that goes into an Embedding",
    )
    outputCol = DeclaredParam(string, "output column of the texts: words with spaces between them", "text")
    logProbabilityCol = DeclaredParam(
        string, "output column of the natural logarithms of the texts' probabilities; '' omits it", "logProbability"
    )
    beamWidth = DeclaredParam(
        integer(1), "number of texts that beam search keeps after each word (>= 1); 1 is greedy search", 1
    )
    maxLength = DeclaredParam(integer(1), f"maximum number of words of a text, {END} included (>= 1)", 20)
    handleInvalid = DeclaredParam(
        one_of("error", "skip", "keep"),
        "what to do with bad rows, as in DeepNetModel: 'error', 'skip' (drop them) or 'keep' (null)",
        "error",
    )
    predictBatchSize = DeclaredParam(
        integer(1), "rows per batch (>= 1); a forward pass has up to beamWidth times as many", 128
    )
    handleMismatch = DeclaredParam(
        one_of("warn", "error", "ignore"),
        "what to do when the outputs of a loaded network differ from those recorded when it was saved: 'warn', 'error' "
        "or 'ignore' (no check)",
        "warn",
    )

    @keyword_only
    def __init__(
        self,
        *,
        model: Any = None,
        vocabulary: Any = None,
        inputCols: list[str] | None = None,
        wordsInput: str | None = None,
        outputCol: str = "text",
        logProbabilityCol: str = "logProbability",
        beamWidth: int = 1,
        maxLength: int = 20,
        handleInvalid: str = "error",
        predictBatchSize: int = 128,
        handleMismatch: str = "warn",
    ) -> None:
        super().__init__()
        self._set(**vars(self).pop("_input_kwargs"))

    getModel = ModelParams.getModel

    def _network(self) -> Network:
        for param in (self.model, self.vocabulary):
            if not self.isSet(param):
                raise InvalidInputError(f"Param {param.name} is not set: pass it to SequenceDecoder.")
        return self.getOrDefault(self.model)  # type: ignore[no-any-return]

    def _transform(self, dataset: DataFrame) -> DataFrame:
        network = self._network()
        writer = self._writer(dataset, network)
        columns = {"outputCol": self.getOutputCol()}
        if self.getLogProbabilityCol():
            columns["logProbabilityCol"] = self.getLogProbabilityCol()
        _check_new(dataset, columns)
        values = {column.field: expression(dataset, column) for column in writer.scorer.inputs}
        written = f"{self.uid}_written"
        write = arrow_udf(dataset.sparkSession, "text string, score double", partial(beam_search.write, writer))
        out = with_udf(dataset, values, written, write)
        if self.getHandleInvalid() == "skip":
            out = out.filter(F.col(written)["text"].isNotNull())
        for field, name in zip(beam_search.FIELDS, columns.values(), strict=False):
            out = out.withColumn(name, F.col(written)[field])
        return out.drop(written)

    def _writer(self, dataset: DataFrame, network: Network) -> beam_search.Writer:
        """What the scoring tasks need, after checking the network, the vocabulary and the columns."""
        checks.check_call(network, "transform")
        vocabulary = self.getVocabulary()
        words = self._words_input(network)
        others = tuple(tensor for index, tensor in enumerate(network.inputs) if index != words)
        output, length = network.outputs[0], network.inputs[words].shape[0]
        if len(output.shape) not in (1, 2) or (output.units or 0) < len(vocabulary):
            raise InvalidInputError(
                f"Param model: expected an output of {len(vocabulary)} numbers for each step, one for each word of the "
                f"vocabulary, but output {output.name!r} has the shape {output.shape}."
            )
        if length is not None and self.getMaxLength() > length:
            raise InvalidInputError(
                f"Param maxLength: the network's input {network.inputs[words].name!r} has {length} words, received "
                f"{self.getMaxLength()}. Set maxLength to {length} or less."
            )
        scorer = Scorer(
            archive=broadcasts.shared(dataset.sparkSession, network),
            digest=network.digest,
            modules=network.modules,
            inputs=input_columns(replace(network, inputs=others), self.getInputCols()),
            layers=(),
            kinds=(),
            wanted=(),
            batch_size=self.getPredictBatchSize(),
            handle_invalid="error" if self.getHandleInvalid() == "error" else "keep",
        )
        ids = (START_ID, END_ID, self.getBeamWidth(), self.getMaxLength())
        return beam_search.Writer(scorer, words, length, tuple(vocabulary), *ids)

    def _words_input(self, network: Network) -> int:
        """The index of the input that takes words."""
        inputs, name = network.inputs, self.value_or_none(self.wordsInput)
        found = [index for index, one in enumerate(inputs) if (one.name == name if name else one.below is not None)]
        if len(found) == 1 and len(inputs[found[0]].shape) == 1 and len(inputs) > 1:
            return found[0]
        received = [(one.name, one.shape) for one in inputs]
        raise InvalidInputError(
            f"Param wordsInput: expected the name of the input of word ids, of shape (None,), in a network that has "
            f"another input too; received {name!r} for a network with the inputs {received}."
        )
