"""Whether ranks fit into executors' containers, by Spark's settings alone."""

import pytest

from cos_ml.errors import InvalidInputError
from cos_ml.job import containers

MIB = 1 << 20
YARN = {"spark.master": "yarn"}
KUBERNETES = {"spark.master": "k8s://https://host:6443"}


def settings(base=YARN, **values):
    return base | {f"spark.executor.{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("conf", "mebibytes"),
    [
        (YARN, 384),
        (settings(memory="4g"), 409.6),
        (settings(memory="2048"), 384),
        (settings(memory="10GB", memoryOverheadFactor="0.4"), 4096),
        (settings(minMemoryOverhead="1g"), 1024),
        (settings(memoryOverhead="1500"), 1500),
        (settings(memoryOverhead="2g", memory="64g"), 2048),
        (settings(memoryOverhead="512 MiB", **{"pyspark.memory": "3g"}), 3584),
        (KUBERNETES, 384),
        (KUBERNETES | {"spark.kubernetes.memoryOverheadFactor": "0.4", "spark.executor.memory": "4g"}, 1638.4),
        (YARN | {"spark.kubernetes.memoryOverheadFactor": "0.4", "spark.executor.memory": "4g"}, 409.6),
        (settings(KUBERNETES, **{"pyspark.memory": "3g"}), 384),
        (settings(KUBERNETES, **{"pyspark.memory": "3g"}) | {"spark.kubernetes.resource.type": "python"}, 3456),
    ],
)
def test_what_a_container_has_beside_the_heap(conf, mebibytes):
    assert containers.container(conf).size == pytest.approx(mebibytes * MIB)


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,1024]", "spark://host:7077", ""])
def test_other_masters_have_no_containers(master):
    conf = settings({"spark.master": master}, memory="1g")
    assert containers.container(conf) is None
    assert containers.problems(conf, 100e9, 2, True) == []


def test_two_ranks_in_a_container_of_sparks_defaults():
    (text,) = containers.problems(YARN, 500e6, 2, True)
    assert "ranks (2) need about 1.8 GB outside of the JVM (0.5 GB each, 0.2 GB for its Python worker" in text
    assert "has 0.4 GB for it (spark.executor.memoryOverhead is not set, so the larger of 10% of spark.exec" in text
    assert "YARN kills containers that use more. Set spark.executor.memoryOverhead=1792m" in text
    assert containers.problems(settings(memoryOverhead="1536m"), 500e6, 2, True) != []
    assert containers.problems(settings(memoryOverhead="1792m"), 500e6, 2, True) == []


def test_a_rank_server_counts():
    assert containers.problems(settings(KUBERNETES, memoryOverhead="1300m"), 450e6, 2, False) == []
    (text,) = containers.problems(settings(KUBERNETES, memoryOverhead="1300m"), 450e6, 2, True)
    assert "0.4 GB for the rank server" in text
    assert "Kubernetes kills" in text


@pytest.mark.parametrize("base", [YARN, {"spark.master": "spark://host:7077"}])
def test_a_limit_of_address_space_is_too_narrow_for_tensorflow(base):
    conf = settings(base, memoryOverhead="4g", cores="2", **{"pyspark.memory": "4g"})
    (text,) = containers.problems(conf, 450e6, 2, True)
    assert text.startswith("spark.executor.pyspark.memory=4g limits the address space of every Python worker")
    assert "to 2.1 GB (spark.executor.cores=2 share it)" in text
    assert containers.problems(conf | {"spark.executor.pyspark.memory": "64g"}, 450e6, 2, True) == []


def test_ranks_of_one_container():
    facts = [{"host": "a", "container": "1"}, {"host": "a", "container": "2"}, {"host": "a", "container": "2"}]
    assert containers.ranks_together(YARN, 3, facts) == 2
    assert containers.ranks_together(YARN, 5) == 3  # Spark's default is two executors
    assert containers.ranks_together(settings(instances="8"), 5) == 1


@pytest.mark.parametrize("text", ["much", "1.5g", "-1", "2x"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InvalidInputError, match=r"spark\.executor\.memoryOverhead is .* must be a size"):
        containers.container(settings(memoryOverhead=text))
