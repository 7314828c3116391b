"""Two ranks on hosts with awkward networks: real addresses, interfaces and firewalls, without Spark."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from tests.networks.namespaces import IPV4, IPV6, allow_ports, hosts, within
from tests.support.sessions import ROOT

FIRST, SECOND = "10.77.75.2", "10.77.75.3"
PORTS = "40000-40007"


class Failed(Exception):
    """What a task has written that has failed."""


def finished(task: subprocess.Popen[str]) -> dict[str, Any]:
    """What a task has found."""
    printed, errors = task.communicate()
    if task.returncode:
        raise Failed(f"{task.returncode}: {errors}")
    return json.loads(printed.splitlines()[-1])


def run(names: Sequence[str], folder: Path, known_as: Sequence[str] = (), **case: Any) -> list[dict[str, Any]]:
    """Run a task on each host, by the names that Spark has for them; returns what each has found, by partition.

    The others end with the first that fails, as those of a barrier stage do.
    """
    secret, tasks = secrets.token_hex(16), []
    for partition, name in enumerate(names):
        own = {"hosts": known_as or names, "partition": partition, "folder": str(folder), "secret": secret}
        command = [sys.executable, "-m", "tests.networks.task", json.dumps(own | case)]
        tasks.append(subprocess.Popen(within(name, command), cwd=ROOT, stdout=-1, stderr=-1, text=True))
    with ThreadPoolExecutor(len(tasks)) as pool:
        results = [pool.submit(finished, task) for task in tasks]
        ended = wait(results, 300, FIRST_EXCEPTION).done
        for task in tasks:
            task.kill()
    for result in ended:
        result.result()
    found = [result.result() for result in results]
    assert {one["sum"] for one in found} == {sum(range(1, len(names) + 1))}
    return found


def test_addresses_of_ipv6_alone(tmp_path):
    with hosts(IPV6) as names:
        found = run(names, tmp_path, known_as=["fd77:75::2", "fd77:75::3"])
    assert [one["address"] for one in found] == ["fd77:75::2", "fd77:75::3"]


def test_ranks_listen_at_the_address_by_which_spark_knows_their_host(tmp_path):
    """Gloo alone would take the first address of the interface, which is that of IPv4."""
    with hosts(IPV4, IPV6) as names:
        found = run(names, tmp_path, known_as=["fd77:75::2", "fd77:75::3"], ports=PORTS)
        assert [one["address"] for one in found] == ["fd77:75::2", "fd77:75::3"]
        assert [{address for address, _ in one["listened"]} for one in found] == [{"fd77:75::2"}, {"fd77:75::3"}]


def test_names_that_no_host_knows_and_an_interface_that_leads_nowhere(tmp_path):
    """The tasks find out which of the addresses of task 0 they reach, and rank 0 listens there."""
    with hosts(IPV4, unrouted=True) as names:
        found = run([names[0], *names], tmp_path)
        assert [one["address"] for one in found] == [FIRST, FIRST, SECOND]
        found = run(names, tmp_path / "named", known_as=[FIRST, SECOND], interface="eth1")
        assert [one["address"] for one in found] == [FIRST, SECOND]
        with pytest.raises(Failed) as error:
            run(names, tmp_path / "wrong", interface="eth0", patience=3.0)
    message = str(error.value)
    assert "can't reach that of rank 0 on cosmlnet-2 at 192.168.77.2, port" in message
    assert "on a host with eth0 192.168.77.3, eth1 10.77.75.3" in message
    assert 'horovodOptions={"networkInterface": "eth1"}' in message


@pytest.mark.parametrize("network", [IPV4, IPV6])
def test_a_firewall_that_lets_a_range_of_ports_through(tmp_path, network):
    with hosts(network) as names:
        known_as = [network.format(number).partition("/")[0] for number in (2, 3)]
        for name in names:
            allow_ports(name, PORTS)
        found = run(names, tmp_path, known_as, ports=PORTS)
        assert [one["address"] for one in found] == known_as
        listened = {port for one in found for _, port in one["listened"]}
        assert min(listened) >= 40000
        assert max(listened) < 40008
        with pytest.raises(Failed, match=r"reach(ed)? that of rank 0 on .*spark\.cosml\.portRange=40000-40099"):
            run(names, tmp_path / "any", known_as, patience=3.0)


def test_ranks_that_a_firewall_keeps_apart_abort(tmp_path):
    """The tasks meet on ports that are open, and the ranks listen on others."""
    with hosts(IPV4) as names:
        for name in names:
            allow_ports(name, PORTS)
        with pytest.raises(Failed, match=f"(?s)^{-signal.SIGABRT}: .*Connect timeout"):
            run(names, tmp_path, [FIRST, SECOND], ports=PORTS, ranks_on="41000-41007")
