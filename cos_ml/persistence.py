"""Saving and loading stages: Spark ML's metadata with the network beside it (driver side).

docs/saved-models.md describes the format. All files are read and written by Spark, so a path may have any scheme that
Spark supports. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import warnings
from collections.abc import Iterable
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyspark.ml.param import Params
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsReader, DefaultParamsWritable, DefaultParamsWriter

from cos_ml import spark_internals
from cos_ml.data import blobs
from cos_ml.errors import CosMLError, SavedModelError
from cos_ml.network import untrusted
from cos_ml.network.archive import Network, load_model
from cos_ml.network.forward import pack_inputs
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.paths import as_string, exists, for_spark, readable
from cos_ml.versions import recorded_versions

__all__ = ["NetworkStage", "check_golden", "golden_rows"]

FORMAT = 1
GOLDEN_ROWS = 3
FOREIGN = "damaged, or of another stage: its SHA-256 is not the one in the metadata"
TOLERANCE = 1e-3  # relative to the largest output: rounding stays far below it, a different computation far above

Stage = TypeVar("Stage", bound="NetworkStage")


class NetworkStage(Params, DefaultParamsReadable[Any], DefaultParamsWritable):
    """A stage that is saved as its Params, its network and, if it was trained, its compile arguments.

    Attributes:
        compiled: arguments of ``keras.Model.compile`` from training, in Keras's serialized form; None if untrained.
    """

    compiled: dict[str, Any] | None = None

    def write(self) -> StageWriter:
        """Returns a writer for this stage."""
        return StageWriter(self)

    @classmethod
    def read(cls: type[Stage]) -> StageReader[Stage]:
        """Returns a reader of saved stages of this class."""
        return StageReader(cls)

    @classmethod
    def load(cls: type[Stage], path: str | PathLike[str]) -> Stage:
        """Load the stage of this class that was saved at ``path``; see StageReader."""
        return cls.read().load(path)

    def _network(self) -> Network:
        """The network of this stage, whose Param model is set."""
        raise NotImplementedError

    def _inner(self) -> dict[str, Any] | None:
        """What to save of the stage that is this one's Param model, beside its network; None if it is no stage."""
        inner = self.getOrDefault("model") if self.isSet("model") else None
        if not isinstance(inner, NetworkStage):
            return None
        return {"uid": inner.uid, "compiled": inner.compiled, "params": _chosen(inner)}

    def _set_inner(self, saved: dict[str, Any] | None) -> None:
        """Gives the stage that is this one's Param model what ``_inner`` has saved."""
        if saved:
            inner = self.getOrDefault("model")._resetUid(saved["uid"])
            inner.compiled = saved["compiled"]
            inner._set(**saved["params"])


class StageWriter(DefaultParamsWriter):
    """Writes a stage: Spark ML's metadata, and the network as Parquet rows of at most 8 MiB."""

    _contents: tuple[dict[str, Any], dict[str, bytes]] | None = None

    def save(self, path: str | PathLike[str]) -> None:
        """Save the stage to ``path``. A save that is refused or fails leaves nothing there.

        Raises:
            SavedModelError: something already exists there, and ``overwrite`` was not called.
        """
        path = for_spark(self.sparkSession, path)
        self._contents = self._prepared()  # what can't be saved is refused before anything is removed or written
        if not self.shouldOverwrite and exists(self.sparkSession, path):
            raise _exists(path)
        try:
            if self.shouldOverwrite and spark_internals.is_connect(self.sparkSession):
                spark_internals.remove_saved(self.sparkSession, path)  # MLWriter.save needs the JVM for it
                self.saveImpl(path)
            else:
                super().save(path)
        except SavedModelError:
            raise
        except BaseException:
            spark_internals.remove_saved(self.sparkSession, path)
            raise

    def saveImpl(self, path: str) -> None:
        """Write the stage to ``path``; raises SavedModelError if something already exists there."""
        extra, items = self._contents or self._prepared()
        try:
            self.saveMetadata(self.instance, path, self.sparkSession, extra, _chosen(self.instance))
        except Exception as error:
            if "already exists" in str(error).lower() or "PATH_ALREADY_EXISTS" in str(error):
                raise _exists(path) from None
            raise
        # A few pieces at a time: a driver JVM of ordinary size cannot hold a network of several hundred MB.
        for batches in blobs.grouped(blobs.record_batches(items)):
            part = self.sparkSession.createDataFrame(pa.Table.from_batches(batches)).coalesce(1)
            part.write.mode("append").parquet(f"{path.rstrip('/')}/data")

    def _prepared(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """What is saved beside the Params: facts for the metadata, and the network's files."""
        instance: Any = self.instance
        network: Network | None = instance._network() if instance.isSet(instance.model) else None
        extra = {
            "format": FORMAT,
            "versions": recorded_versions(),
            "network": json.loads(network.facts()) | {"sha256": network.digest} if network else None,
            "compiled": instance.compiled,
            "inner": instance._inner(),
        }
        items: dict[str, bytes] = {}
        if instance.hasParam("initialWeights") and instance.isSet("initialWeights"):
            weights: Network = instance.getOrDefault("initialWeights")._network()
            extra["initialWeights"] = json.loads(weights.facts()) | {"sha256": weights.digest}
            items["initialWeights"] = weights.archive
        json.dumps([extra, _chosen(instance)])  # raises for a value that is no plain data
        if network is None:
            return extra, items
        golden = golden_rows(network)
        extra["golden"] = hashlib.sha256(golden).hexdigest() if golden else None
        return extra, items | {"network": network.archive} | ({"golden": golden} if golden else {})


def _exists(path: str) -> SavedModelError:
    return SavedModelError(f"{path} already exists. To replace it: stage.write().overwrite().save({path!r})")


class StageReader(DefaultParamsReader[Stage]):
    """Reads what StageWriter wrote."""

    def load(self, path: str | PathLike[str]) -> Stage:
        """Load the stage saved at ``path``.

        Raises:
            SavedModelError: the stage is missing, damaged, or of another class or format; or
                ``handleMismatch="error"`` and its outputs differ from those recorded at save time.
        """
        path = as_string(path)
        try:
            return self._load(path)
        except CosMLError:
            raise
        except Exception as error:  # damaged files raise errors of Spark, Python and NumPy
            reason = str(error).strip().split("\n")[0]
            if "PATH_NOT_FOUND" in reason or "Input path does not exist" in reason:
                raise SavedModelError(f"There is no saved {self.cls.__name__} at {path}.") from error
            raise SavedModelError(f"The saved stage at {path} is damaged: {type(error).__name__}: {reason}") from error

    def _load(self, path: str) -> Stage:
        source = readable(self.sparkSession, path)
        metadata = self.loadMetadata(source, self.sparkSession)
        expected = f"{self.cls.__module__}.{self.cls.__name__}"
        if metadata.get("class") != expected:
            raise SavedModelError(f"{path} contains {metadata.get('class')}, expected {expected}.")
        if metadata.get("format") != FORMAT:
            raise SavedModelError(
                f"{path} has format {metadata.get('format')}, expected format {FORMAT}: load it with the version of "
                "cos_ml that saved it."
            )
        stage: Any = self.cls()._resetUid(metadata["uid"])  # type: ignore[attr-defined]
        untrusted.check_config([metadata["paramMap"], metadata.get("inner")])
        self.getAndSetParams(stage, metadata)
        if metadata["network"] is None and not metadata.get("initialWeights"):
            return stage
        rows = self.sparkSession.read.parquet(f"{source.rstrip('/')}/data").toLocalIterator()
        items = blobs.join((row["name"], row["part"], bytes(row["data"])) for row in rows)
        if weights := metadata.get("initialWeights"):
            stage._set(initialWeights=_checked_network(weights, items["initialWeights"], path))
        if metadata["network"] is None:
            return stage
        network = _checked_network(metadata["network"], items["network"], path)
        recorded = metadata.get("golden")  # early files have none
        if recorded and hashlib.sha256(items.get("golden", b"")).hexdigest() != recorded:
            raise SavedModelError(f"The file of golden rows at {path} is {FOREIGN}.")
        untrusted.check_config(metadata["compiled"])
        stage._set(model=network)
        stage._set_inner(metadata.get("inner"))
        stage.compiled = metadata["compiled"]
        if stage.getHandleMismatch() != "ignore" and "golden" in items:
            check_golden(network, items["golden"], metadata["versions"], stage.getHandleMismatch() == "error")
        else:
            load_model(network.archive, network.modules)  # what Keras refuses is refused here, not by the executors
        return stage


def _checked_network(saved: dict[str, Any], archive: bytes, path: str) -> Network:
    """The network of which the facts and the archive were saved."""
    facts = dict(saved)
    digest = facts.pop("sha256")
    network = Network.from_facts(json.dumps(facts), archive)
    if network.digest != digest:
        raise SavedModelError(f"The network at {path} is {FOREIGN}.")
    untrusted.check_archive(network.archive)
    _check_imported({*network.modules, *untrusted.modules_of(network.archive)})
    return network


def _chosen(stage: Params) -> dict[str, Any]:
    """The values of the Params that are set, by name, without the networks."""
    return {param.name: stage.getOrDefault(param) for param in stage.params
            if stage.isSet(param) and param.name not in ("model", "initialWeights")}  # fmt: skip


def golden_rows(network: Network) -> bytes:
    """Random inputs and the network's outputs for them, as the bytes of an .npz file.

    Returns:
        bytes: arrays ``x0``, ``x1``, ... (inputs) and ``y0``, ``y1``, ... (outputs), of 3 rows each; empty if the
        network rejects random rows, for example because an unknown dimension has to have a certain length, or if layers
        are random at inference.
    """
    random = np.random.default_rng(0)
    shapes = [(GOLDEN_ROWS, *(8 if side is None else side for side in tensor.shape)) for tensor in network.inputs]
    inputs = [_random_rows(random, shape, tensor.dtype) for shape, tensor in zip(shapes, network.inputs, strict=True)]
    try:
        outputs = _compute(network, inputs)
        if not outputs:
            return b""
    except Exception:  # a layer may raise anything for rows that it does not support
        return b""
    arrays = {f"{kind}{index}": array for kind, found in (("x", inputs), ("y", outputs))
              for index, array in enumerate(found)}  # fmt: skip
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def check_golden(network: Network, golden: bytes, saved_by: dict[str, str], strict: bool) -> None:
    """Compare the network's outputs with the ``golden_rows`` recorded at save time, and warn if they differ.

    Raises:
        SavedModelError: they differ and ``strict`` is True; the message names the versions that are not ``saved_by``'s.
            Or ``golden`` is not a valid .npz file.
    """
    untrusted.check_zip(golden, "golden rows")
    with np.load(io.BytesIO(golden), allow_pickle=False) as arrays:
        inputs = [arrays[f"x{index}"] for index in range(len(network.inputs))]
        expected = [arrays[f"y{index}"] for index in range(len(network.outputs))]
    outputs = _compute(network, inputs)
    if not outputs:  # it is random, and was saved by a version that did not ask
        return
    worst = max((_difference(*pair) for pair in zip(expected, outputs, strict=True)), default=0.0)
    if worst <= TOLERANCE:
        return
    current = recorded_versions()
    changed = [f"{name} {saved_by.get(name)} then, {current[name]} now"
               for name in current if saved_by.get(name) != current[name]]  # fmt: skip
    message = (
        f"The network's outputs differ from those recorded at save time, by {worst:.2g} of the largest output "
        f"({', '.join(changed) or 'all versions are the same, so the hardware differs'}). Use the versions that saved "
        'it, or set handleMismatch="ignore" if the difference is acceptable.'
    )
    if strict:
        raise SavedModelError(message)
    warnings.warn(message, stacklevel=5)


def _random_rows(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "string":
        return random.choice(np.array([b"one", b"two", b"three"]), shape)
    if dtype.startswith(("int", "uint", "bool")):
        return random.integers(0, 2, shape).astype(dtype)
    return random.uniform(0, 1, shape).astype(np.float32)


def _compute(network: Network, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of ``network``, in its order; none if they are others in a second pass."""
    tf = import_tensorflow()
    model = load_model(network.archive, network.modules)
    tensors = pack_inputs(model, [tf.constant(array) for array in inputs])
    first, second = ([one.numpy() for one in tf.nest.flatten(model(tensors, training=False))] for _ in range(2))
    return first if all(_difference(*pair) <= TOLERANCE for pair in zip(first, second, strict=True)) else []


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value; infinite if the shapes or NaNs differ."""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    if expected.shape != found.shape or not (np.isnan(expected) == np.isnan(found)).all():
        return float("inf")
    scale = np.nanmax(np.abs(expected), initial=0.0)
    return float(np.nanmax(np.abs(expected - found), initial=0.0) / (scale or 1.0))


def _check_imported(modules: Iterable[str]) -> None:
    """Raise SavedModelError for modules that are not imported: a saved file must not import any but cos_ml's own."""
    missing = sorted(module for module in untrusted.imported_on_demand(modules) if module not in sys.modules)
    if missing:
        raise SavedModelError(f"The network has custom layers: import {', '.join(missing)} before loading it.")
