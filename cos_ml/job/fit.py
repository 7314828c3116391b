"""A fit from DataFrame to trained networks: the feed, the barrier job, and what it returns (driver side)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from cos_ml import gpus, spark_internals
from cos_ml.data.file_tasks import call_at_files
from cos_ml.data.names import resolve
from cos_ml.data.parquet import Shards, Stored
from cos_ml.data.parquet_cache import parquet_cache
from cos_ml.data.parquet_plan import check_petastorm, plan
from cos_ml.data.table_formats import check_no_table
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.job import barrier, containers, preflight, rank_server
from cos_ml.job.halving import with_own_checkpoints
from cos_ml.job.messages import Job, Outcome
from cos_ml.job.progress import Address, ProgressServer
from cos_ml.job.relay import relayed
from cos_ml.job.settings import port_range
from cos_ml.network.archive import Network
from cos_ml.paths import qualified
from cos_ml.processor import instruction_set
from cos_ml.rank.checkpoint_store import acquire
from cos_ml.spec import TrainSpec
from cos_ml.summary import TrainingSummary
from cos_ml.versions import shared_versions

__all__ = ["Candidate", "FitOptions", "Trained", "cache_folder", "check_horovod", "fit"]

FUNCTION = "cos_ml.rank.train:train"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """One training of a fit: its spec, the network it starts from, its columns, and which layers initialWeights set."""

    spec: TrainSpec
    network: Network
    rows: DataFrame
    initial_weights: dict[str, dict[str, str]] | None = None


@dataclass(frozen=True)
class FitOptions:
    """How rows reach the ranks.

    Attributes:
        ranks: number of ranks.
        use_barrier: whether they are tasks of a barrier stage.
        feed: "arrow", "parquet" or "petastorm".
        cache_dir: the folder to which the feeds by Parquet files write rows.
        keep_cache: whether the rows stay there after the fit.
        copied: whether ranks copy what they read of Parquet files to their local disk.
        progress: whether progress is shown.
    """

    ranks: int
    use_barrier: bool
    feed: str
    cache_dir: str | None
    keep_cache: bool
    copied: bool
    progress: bool


@dataclass(frozen=True)
class Trained:
    """The archive of a trained network, and the summary of its training."""

    archive: bytes
    summary: TrainingSummary


def fit(
    dataset: DataFrame, candidates: Sequence[Candidate], options: FitOptions, urls: Sequence[str] | None = None,
    take: Callable[[dict[str, Any]], None] | None = None,
) -> list[Trained]:  # fmt: skip
    """Train candidates that read the same rows in the same way, in one barrier job.

    Args:
        dataset: the rows; with ``urls``, only its schema is used.
        candidates: what to train, one after the other, or in turns with ``halvingFactor``.
        options: how the rows reach the ranks.
        urls: the Parquet dataset to train on; None for the rows of ``dataset``.
        take: takes the events of the ranks, in other threads; None for nobody.

    Returns:
        list[Trained]: by candidate.
    """
    spark, spec = dataset.sparkSession, candidates[0].spec
    if options.ranks > 1:
        check_horovod(spark)
    logger.info("GPUs: %s", gpus.check(spark.conf, spec.use_gpu))
    indices, archives = _archives([candidate.network for candidate in candidates])
    rows = candidates[0].rows
    types = rows.schema.simpleString()
    specs = with_own_checkpoints([_completed(*one, types) for one in zip(candidates, indices, strict=True)])
    idle, ports, shards, folder = rank_server.idle_timeout(spark.conf), port_range(spark.conf), None, ""
    if urls is not None:
        _check_reader(spark, options, urls)
        names = _stored_names(dataset, spec, options.feed)
        shards = _planned(spark, urls, spec, names, options.ranks, reader=options.feed, copied=options.copied)
    elif options.feed != "arrow":
        folder = cache_folder(spark, options)
    for config in filter(None, (one.checkpoint for one in specs)):
        call_at_files(spark, partial(acquire, config))
    versions = shared_versions()
    logger.info("Versions: %s", preflight.format_versions(versions))
    with contextlib.ExitStack() as stack:
        cache = None
        if folder:
            shards, cache = stack.enter_context(_cached(rows, specs, options, folder))
        if shards is None:
            logger.info("Feed: arrow")
        else:
            logger.info("Feed: %s; ranks read %s row groups, no rows move", shards.reader, shards.groups)
            rows = spark.range(options.ranks, numPartitions=options.ranks)  # ranks read files instead
        address = stack.enter_context(_progress_server(spark, take, ports))
        for text in _container_problems(spark, specs, archives, options.ranks, bool(idle)):
            logger.warning(text)
        logger.info("Ranks: %s, %s", options.ranks, "from rank servers" if idle else "each a new process (cold start)")
        job = Job(FUNCTION, specs, archives, shards, address, versions, idle, ports)
        outcome = barrier.run(rows, job, options.ranks, options.use_barrier)
    logger.info("Processor: %s here, %s where ranks ran", instruction_set(), outcome.results[0]["processor"].decode())
    kept = cache if options.keep_cache else None
    return [_trained(outcome, index, candidate, kept) for index, candidate in enumerate(candidates)]


def check_horovod(spark: SparkSession) -> None:
    """Check that Horovod can serve several ranks; a client of Spark Connect does not need it.

    Raises:
        SetupError: it is not installed, or its rendezvous server is another one than that of Horovod 0.28.1.
    """
    if spark_internals.is_connect(spark):
        return
    if importlib.util.find_spec("horovod") is None:
        raise SetupError(
            "Horovod is not installed, but numTrainWorkers is greater than 1. Build it with: cos-ml install-horovod "
            "(here and in the executors' environment). A single rank, numTrainWorkers=1, does not need it."
        )
    importlib.import_module("cos_ml.job.rendezvous_server")  # raises where Horovod has changed


def _container_problems(
    spark: SparkSession, specs: Sequence[TrainSpec], archives: Sequence[bytes], ranks: int, server: bool
) -> list[str]:
    """Why the cluster manager may kill executors during the fit: warnings, because needs are estimates."""
    need = preflight.estimate(specs[0], max(map(len, archives)))["memory"]
    if specs[0].halving_factor is not None:
        need += preflight.PAUSED * sum(len(archives[spec.network]) for spec in specs[1:])
    return containers.problems(spark.conf, need, containers.ranks_together(spark.conf, ranks), server)


def _stored_names(dataset: DataFrame, spec: TrainSpec, feed: str) -> dict[str, Stored]:
    """What the columns are in the files of a Parquet dataset, by field.

    Raises:
        InvalidInputError: petastorm can't read a column that is part of one in the files, or made of several.
    """
    names: dict[str, Stored] = {}
    for column in spec.stored:
        found = [resolve(dataset, name) for name in column.parts or (column.name,)]
        first, whole = found[0], not column.parts and not found[0].part and len(found[0].path) == 1
        if not whole and feed == "petastorm":
            stored = f"its {first.part}" if first.part else "the column"
            raise InvalidInputError(
                f"petastorm reads whole columns, so it can't {'join' if column.parts else 'read'} {column.name!r}: "
                f'use feed="parquet", or store {stored} as needed.'
            )
        names[column.field] = first.path[0] if whole else [[*one.path, *filter(None, [one.part])] for one in found]
    return names


def _archives(networks: Sequence[Network]) -> tuple[list[int], tuple[bytes, ...]]:
    """For each network the index of its archive, and the archives: one for all networks that are the same.

    A grid converts its networks one by one, so archives of the same model differ in the time at which it was saved.
    """
    if len({network.archive for network in networks}) == 1:
        return [0] * len(networks), (networks[0].archive,)
    archives = {network.contents: network.archive for network in networks}
    return [list(archives).index(network.contents) for network in networks], tuple(archives.values())


def cache_folder(spark: SparkSession, options: FitOptions) -> str:
    """The folder to which a feed by Parquet files writes rows, as a URL that means the same everywhere.

    Raises:
        InvalidInputError: cacheDir is not set, is in a table, or is where the feed's reader can't read.
        SetupError: the reader can't be imported.
    """
    if options.cache_dir is None:
        raise InvalidInputError(f'Param cacheDir is not set, but feed="{options.feed}" writes the rows there.')
    folder = qualified(spark, options.cache_dir)
    call_at_files(spark, partial(check_no_table, folder))
    _check_reader(spark, options, [folder])
    return folder


def _check_reader(spark: SparkSession, options: FitOptions, urls: Sequence[str]) -> None:
    """Raises InvalidInputError or SetupError for what petastorm can't do."""
    if options.feed == "petastorm":
        if options.copied:
            raise InvalidInputError('Param cacheRows: petastorm keeps no copies of rows. Use feed="parquet".')
        call_at_files(spark, partial(check_petastorm, urls))


def _completed(candidate: Candidate, index: int, types: str) -> TrainSpec:
    """A candidate's spec with the index of its network in the job, and the folder of its checkpoints.

    Candidates of a grid have folders of their own. The index distinguishes networks of a grid that differ only in their
    weights. Weights themselves do not identify a training: a program that is started again begins with other random
    ones, and must resume.
    """
    spec, config = candidate.spec, candidate.spec.checkpoint
    if config is not None:
        identity = config.fit | {"columns": [[column.name, column.field] for column in spec.stored], "types": types}
        config = replace(config, fit=identity)
        if spec.name:
            digest = hashlib.sha256(json.dumps([identity, index], sort_keys=True).encode()).hexdigest()[:16]
            config = replace(config, url=f"{config.url}/candidate-{digest}")
    return replace(spec, network=index, checkpoint=config)


@contextlib.contextmanager
def _cached(
    rows: DataFrame, specs: Sequence[TrainSpec], options: FitOptions, folder: str
) -> Iterator[tuple[Shards, str]]:
    """The rows as a Parquet dataset in ``folder``, for the length of a ``with`` block: its shards, and its URL."""
    spec, configs = specs[0], [one.checkpoint for one in specs if one.checkpoint]
    # Within an epoch a training resumes only with its rows in the same order.
    ordered = any(config.steps is not None for config in configs)
    names = {column.field: column.field for column in spec.stored} | ({"v": "v"} if spec.validation_fraction else {})
    with parquet_cache(rows, spec, folder, options.keep_cache, ordered if configs else None) as (url, digest):
        arguments = url, spec, names, options.ranks, digest, ordered, options.feed, options.copied
        yield _planned(rows.sparkSession, *arguments), url


def _planned(spark: SparkSession, *arguments: Any, **options: Any) -> Shards:
    """``plan`` with these arguments, where executors reach the files."""
    return Shards(**call_at_files(spark, lambda: asdict(plan(*arguments, **options))))


@contextlib.contextmanager
def _progress_server(
    spark: SparkSession, take: Callable[[dict[str, Any]], None] | None, ports: range | None
) -> Iterator[Address | None]:
    """Where ranks report progress; None where nobody takes it, or the driver's address is unknown."""
    host = (spark.conf.get("spark.driver.host", None) or "").strip("[]")  # in which Spark writes addresses of IPv6
    if take is None or not host:
        yield None
        return
    if spark_internals.is_connect(spark):  # whose client executors may not reach
        with relayed(spark, host, take, ports) as address:
            yield address
        return
    try:
        server = ProgressServer(host, take, ports)
    except OSError:
        yield None  # progress is never a reason to fail
        return
    with contextlib.closing(server):
        yield server.address


def _server_memory(outcome: Outcome) -> dict[str, int]:
    """The bytes of memory that rank servers hold, by host."""
    servers: dict[str, dict[str, int]] = {}  # each rank of a server reports it
    for result in outcome.results:
        if "server" in result:
            servers.setdefault(result["host"].decode(), {}).update(json.loads(result["server"]))
    return {host: sum(held.values()) for host, held in servers.items() if held}


def _trained(outcome: Outcome, index: int, candidate: Candidate, cache: str | None) -> Trained:
    """The results of the ranks for one candidate."""
    reports: list[dict[str, Any]] = [json.loads(result[f"{index}/summary"]) for result in outcome.results]
    first = reports[0]
    notes, spec = outcome.notes, candidate.spec
    if spec.validation_fraction and not first["validation_rows"]:
        notes = [*notes, f"validationFraction={spec.validation_fraction} selected none of the {first['rows']:,} rows."]
    summary = TrainingSummary(
        history=first["history"], rows=first["rows"], validationRows=first["validation_rows"], steps=first["steps"],
        ranks=[report["rank_info"] for report in reports], seconds=[report["seconds"] for report in reports],
        epochSeconds=first["epoch_seconds"], resumedAt=tuple(first["resumed"]), totalSteps=first["total_steps"],
        logs=[result["log"].decode(errors="replace") for result in outcome.results],
        failures=outcome.failures, notes=notes, cacheUrl=cache,
        initialWeights=candidate.initial_weights, rankServers=_server_memory(outcome), droppedAt=first["dropped"],
    )  # fmt: skip
    if summary.droppedAt:
        logger.info("Dropped after rung %s, %s epochs: %s", summary.droppedAt, summary.totalIterations, spec.name)
    hosts = {rank["host"] for rank in summary.ranks}
    logger.info("Trained on %s ranks; hosts: %s", len(summary.ranks), ", ".join(sorted(hosts)))
    if first["checkpoint"]:
        epoch, step = summary.resumedAt
        found = f"resumed after epoch {epoch}, step {step}" if epoch or step else "none found"
        logger.info("Checkpoint: %s", found)
    return Trained(outcome.results[0][f"{index}/network"], summary)
