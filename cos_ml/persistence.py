"""Saved stages: Spark ML's metadata, and the network beside it (driver side).

docs/saved-models.md describes the format. Everything goes through Spark, so that a path is whatever Spark can open.
Nothing is pickled.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter

from cos_ml import spark_internals
from cos_ml.data import blobs
from cos_ml.errors import CosMLError, SavedModelError
from cos_ml.network import untrusted
from cos_ml.network.archive import Network, load_model
from cos_ml.network.forward import pack_inputs
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.versions import recorded_versions

__all__ = ["NetworkStage", "check_golden", "golden_rows"]

FORMAT = 1
GOLDEN_ROWS = 3
TOLERANCE = 1e-3  # of a golden output, relative to the largest: far above rounding, far below another computation

Stage = TypeVar("Stage", bound="NetworkStage")


class NetworkStage(MLReadable[Any], MLWritable):
    """A stage that is saved as its Params, its network and, of a trained one, what it was compiled with.

    Attributes:
        compiled: arguments of ``keras.Model.compile`` that it was trained with, in Keras's serialised form; else None.
    """

    compiled: dict[str, Any] | None = None

    def write(self) -> MLWriter:
        """A writer that saves this stage through Spark's own file systems."""
        return StageWriter(self)

    @classmethod
    def read(cls: type[Stage]) -> MLReader[Stage]:
        """A reader of saved stages."""
        return StageReader(cls)

    def _stored_network(self) -> Network | None:
        raise NotImplementedError


class StageWriter(MLWriter):
    """Writes a stage: Spark ML's metadata, and the network as Parquet rows of 8 MiB."""

    def __init__(self, instance: Any) -> None:
        super().__init__()
        self.instance = instance

    def _handleOverwrite(self, path: str) -> None:
        if spark_internals.is_connect(self.sparkSession):
            spark_internals.remove_saved(path)  # Spark's own stages do it this way; its MLWriter does not
        else:
            super()._handleOverwrite(path)

    def saveImpl(self, path: str) -> None:
        """Raises SavedModelError where something is at ``path`` already, and overwrite was not asked for."""
        instance = self.instance
        network: Network | None = instance._stored_network()
        plain = {
            param.name: instance.getOrDefault(param)
            for param in instance.params
            if instance.isSet(param) and param.name != "model"
        }
        extra = {
            "format": FORMAT,
            "versions": recorded_versions(),
            "network": json.loads(network.facts()) | {"sha256": network.digest} if network else None,
            "compiled": instance.compiled,
        }
        try:
            DefaultParamsWriter.saveMetadata(instance, path, self.sparkSession, extra, plain)
        except Exception as error:
            if "already exists" in str(error).lower() or "PATH_ALREADY_EXISTS" in str(error):
                raise SavedModelError(
                    f"There is something at {path} already. To replace it: stage.write().overwrite().save({path!r})"
                ) from None
            raise
        if network is None:
            return
        items = {"network": network.archive}
        if golden := golden_rows(network):
            items["golden"] = golden
        # A few pieces at a time: a driver's JVM of ordinary size can't hold a network of several hundred MB.
        for batches in blobs.grouped(blobs.record_batches(items)):
            part = self.sparkSession.createDataFrame(pa.Table.from_batches(batches)).coalesce(1)
            part.write.mode("append").parquet(f"{path.rstrip('/')}/data")


class StageReader(MLReader[Stage], Generic[Stage]):
    """Reads what StageWriter wrote."""

    def __init__(self, cls: type[Stage]) -> None:
        super().__init__()
        self.cls = cls

    def load_model(self, path: str) -> Stage:
        """The stage saved at ``path``.

        Raises:
            SavedModelError: it is of another class or format, or damaged; or, with ``handleMismatch="error"``, it
                computes something else here than where it was saved.
        """
        try:
            return self._load(path)
        except CosMLError:
            raise
        except Exception as error:  # Spark's, Python's and NumPy's: whatever damage makes them raise
            what = str(error).strip().split("\n")[0]
            if "PATH_NOT_FOUND" in what or "Input path does not exist" in what:
                raise SavedModelError(f"There is no saved {self.cls.__name__} at {path}.") from error
            raise SavedModelError(f"What is saved at {path} is damaged: {type(error).__name__}: {what}") from error

    def _load(self, path: str) -> Stage:
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        wanted = f"{self.cls.__module__}.{self.cls.__name__}"
        if metadata.get("class") != wanted:
            raise SavedModelError(f"{path} holds a {metadata.get('class')}, and no {wanted}.")
        if metadata.get("format") != FORMAT:
            raise SavedModelError(
                f"{path} has format {metadata.get('format')}, and this cos_ml reads format {FORMAT}: load it with "
                "the version that wrote it."
            )
        stage: Any = self.cls()._resetUid(metadata["uid"])  # type: ignore[attr-defined]
        untrusted.check_config(metadata["paramMap"])
        DefaultParamsReader.getAndSetParams(stage, metadata)
        if metadata["network"] is None:
            return stage
        rows = self.sparkSession.read.parquet(f"{path.rstrip('/')}/data").toLocalIterator()
        items = blobs.join((row["name"], row["part"], bytes(row["data"])) for row in rows)
        facts = dict(metadata["network"])
        digest = facts.pop("sha256")
        network = Network.from_facts(json.dumps(facts), items["network"])
        if network.digest != digest:
            raise SavedModelError(f"The network at {path} is damaged: its SHA-256 is not the one in the metadata.")
        untrusted.check_archive(network.archive)
        untrusted.check_config(metadata["compiled"])
        _check_imported({*network.modules, *untrusted.modules_of(network.archive)})
        stage._set(model=network)
        stage.compiled = metadata["compiled"]
        if stage.getHandleMismatch() != "ignore" and "golden" in items:
            check_golden(network, items["golden"], metadata["versions"], stage.getHandleMismatch() == "error")
        return stage


def golden_rows(network: Network) -> bytes:
    """A few made-up inputs and what the network makes of them, as the bytes of an .npz file.

    Returns:
        bytes: arrays ``x0``, ``x1``, ... (inputs) and ``y0``, ... (outputs), of 3 rows each; empty for a network that
        takes no made-up rows, as one whose open sides have to be of a certain length.
    """
    random = np.random.default_rng(0)
    inputs = [_made_up(random, (GOLDEN_ROWS, *(8 if side is None else side for side in one.shape)), one.dtype)
              for one in network.inputs]  # fmt: skip
    try:
        outputs = _compute(network, inputs)
    except Exception:  # whatever a layer says about rows that are none of its kind
        return b""
    file = io.BytesIO()
    arrays = {f"x{index}": array for index, array in enumerate(inputs)}
    np.savez_compressed(file, **arrays, **{f"y{index}": array for index, array in enumerate(outputs)})  # type: ignore[arg-type]
    return file.getvalue()


def check_golden(network: Network, golden: bytes, saved_by: dict[str, str], fail: bool) -> None:
    """Compute the golden rows again, and warn where they come out differently.

    Args:
        network: the network as loaded here.
        golden: what ``golden_rows`` returned where it was saved.
        saved_by: the versions there.
        fail: raise instead of warning.

    Raises:
        SavedModelError: they come out differently, and ``fail``.
    """
    untrusted.check_zip(golden, "golden rows")
    with np.load(io.BytesIO(golden), allow_pickle=False) as kept:
        inputs = [kept[f"x{index}"] for index in range(len(network.inputs))]
        expected = [kept[f"y{index}"] for index in range(len(network.outputs))]
    worst = max(
        (_difference(one, other) for one, other in zip(expected, _compute(network, inputs), strict=True)), default=0.0
    )
    if worst <= TOLERANCE:
        return
    here = recorded_versions()
    differing = ", ".join(f"{name} {saved_by.get(name)} there, {here[name]} here" for name in here
                          if saved_by.get(name) != here[name])  # fmt: skip
    message = (
        f"This network computes something else here than where it was saved: its golden rows differ by {worst:.2g} of "
        f"the largest output ({differing or 'the same versions, so it is the machine'}). Score with the versions that "
        'saved it, or set handleMismatch="ignore" if this is near enough.'
    )
    if fail:
        raise SavedModelError(message)
    warnings.warn(message, stacklevel=5)


def _made_up(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "string":
        return random.choice(np.array([b"one", b"two", b"three"]), shape)
    if dtype.startswith(("int", "uint", "bool")):
        return random.integers(0, 2, shape).astype(dtype)
    return random.uniform(0, 1, shape).astype(np.float32)


def _compute(network: Network, inputs: list[np.ndarray]) -> list[np.ndarray]:
    tf = import_tensorflow()

    model = load_model(network.archive, network.modules)
    tensors = [tf.constant(array) for array in inputs]
    return [output.numpy() for output in tf.nest.flatten(model(pack_inputs(model, tensors), training=False))]


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, in parts of the largest expected value; infinite where shape or NaN differ."""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    if expected.shape != found.shape or not (np.isnan(expected) == np.isnan(found)).all():
        return float("inf")
    scale = np.nanmax(np.abs(expected), initial=0.0)
    return float(np.nanmax(np.abs(expected - found), initial=0.0) / (scale or 1.0))


def _check_imported(modules: Iterable[str]) -> None:
    """A saved file names no module to import by itself: what it needs, this program has imported."""
    missing = sorted(module for module in modules if module not in sys.modules)
    if missing:
        raise SavedModelError(f"The network has custom layers: import {', '.join(missing)} before it is loaded.")
