from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.s3.proxy import Proxy
from tests.s3.servers import s3_server, spark_jars
from tests.support.sessions import forked_ranks, session

BUCKET = "bucket"
KEY = "of-the-tests"  # the server accepts any


@pytest.fixture(scope="package")
def server() -> Iterator[Proxy]:
    """An S3 server with a bucket, behind a proxy; ranks and this process find it by variables, as on a cluster."""
    import s3fs

    with s3_server() as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, KEY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # what is tried again is cos_ml's and s3fs's to try
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield proxy


@pytest.fixture
def s3(server: Proxy) -> Iterator[Proxy]:
    """The proxy, which fails as the test says until its end."""
    server.requests.clear()
    yield server
    server.rules.clear()


@pytest.fixture
def folder(server: Proxy) -> str:
    """A folder of the test's own."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="package")
def spark(server: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session with Hadoop's client of S3, for s3a:// only, as Spark has it."""
    settings = {
        "endpoint": os.environ["AWS_ENDPOINT_URL"], "endpoint.region": "us-east-1", "path.style.access": "true",
        "access.key": KEY, "secret.key": KEY, "connection.ssl.enabled": "false", "attempts.maximum": "2",
        "retry.limit": "2",
    }  # fmt: skip
    named = {f"spark.hadoop.fs.s3a.{name}": value for name, value in settings.items()}
    named["spark.driver.extraClassPath"] = f"{spark_jars()}/*"  # spark.jars would copy them
    for spark in session("local[2]", tmp_path_factory.mktemp("s3"), **named):
        with forked_ranks(spark):
            yield spark
