import contextlib
import http.client
import importlib
import itertools
import socket
import sys

import pytest
from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
from horovod.runner.http import http_server
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.errors import RankError, SetupError
from cos_ml.interfaces import is_loopback
from cos_ml.job import placement, rendezvous_server
from cos_ml.job.fit import check_horovod
from cos_ml.job.horovod_env import rank_environment
from cos_ml.job.placement import RankInfo, assign_ranks, local_addresses, own_address
from cos_ml.job.rendezvous_server import Rendezvous

pytestmark = pytest.mark.once


def positions(rank_infos):
    """(rank, local rank, local size, cross rank, cross size) by partition id."""
    return [(one.rank, one.local_rank, one.local_size, one.cross_rank, one.cross_size) for one in rank_infos]


def test_one_rank():
    assert assign_ranks(["a"]) == [
        RankInfo(rank=0, size=1, local_rank=0, local_size=1, cross_rank=0, cross_size=1, host="a"),
    ]


def test_one_host():
    assert positions(assign_ranks(["a", "a", "a"])) == [(0, 0, 3, 0, 1), (1, 1, 3, 0, 1), (2, 2, 3, 0, 1)]


def test_two_hosts_of_two():
    assert positions(assign_ranks(["a", "a", "b", "b"])) == [
        (0, 0, 2, 0, 2),
        (1, 1, 2, 0, 2),
        (2, 0, 2, 1, 2),
        (3, 1, 2, 1, 2),
    ]


def test_uneven_hosts():
    # Only host a has local ranks 1 and 2: those stand alone across hosts.
    assert positions(assign_ranks(["a", "a", "a", "b"])) == [
        (0, 0, 3, 0, 2),
        (1, 1, 3, 0, 1),
        (2, 2, 3, 0, 1),
        (3, 0, 1, 1, 2),
    ]
    assert positions(assign_ranks(["b", "a", "a", "a"])) == [
        (0, 0, 1, 0, 2),
        (1, 0, 3, 1, 2),
        (2, 1, 3, 0, 1),
        (3, 2, 3, 0, 1),
    ]


def test_several_executors_of_one_host_count_as_one():
    # Spark names tasks by host and port; executors differ in their ports only, and come in any order of partitions.
    assert positions(assign_ranks(["a", "b", "a"])) == [(0, 0, 2, 0, 2), (2, 0, 1, 1, 2), (1, 1, 2, 0, 1)]


def test_interleaved_partitions():
    rank_infos = assign_ranks(["a", "b", "a", "b"])
    assert positions(rank_infos) == [(0, 0, 2, 0, 2), (2, 0, 2, 1, 2), (1, 1, 2, 0, 2), (3, 1, 2, 1, 2)]
    assert [one.host for one in rank_infos] == ["a", "b", "a", "b"]
    assert {one.size for one in rank_infos} == {4}


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_ranks_are_assigned_as_horovod_does(hosts):
    rank_infos = assign_ranks(hosts)
    by_rank = sorted(rank_infos, key=lambda one: one.rank)
    assert [one.rank for one in by_rank] == list(range(len(hosts)))
    assert [one.host for one in rank_infos] == hosts
    for one, other in itertools.pairwise(by_rank):  # neighbours share a host
        assert (one.host == other.host) == (other.local_rank == one.local_rank + 1)
        assert one.host == other.host or other.local_rank == 0
    for one in rank_infos:
        assert one.local_size == hosts.count(one.host)
        assert one.cross_size == sum(hosts.count(host) > one.local_rank for host in set(hosts))

    slots = ",".join(f"{host}:{hosts.count(host)}" for host in dict.fromkeys(hosts))
    theirs = get_host_assignments(parse_hosts(slots), len(hosts))
    assert [
        (s.hostname, s.rank, s.size, s.local_rank, s.local_size, s.cross_rank, s.cross_size) for s in theirs
    ] == [
        (h.host, h.rank, h.size, h.local_rank, h.local_size, h.cross_rank, h.cross_size) for h in by_rank
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """A request for a value that is missing gets its response at once."""
    monkeypatch.setattr(rendezvous_server, "WAIT", 0.0)


@pytest.fixture
def rendezvous():
    with contextlib.closing(Rendezvous("127.0.0.1")) as server:
        yield server


def ask(server, method, path, body=None, secret=None, length=None):
    path = f"/{server.secret if secret is None else secret}:{server.port}{path}"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, body, {} if length is None else {"Content-Length": length})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_an_allowed_address_is_answered(rendezvous):
    rendezvous.serve(assign_ranks(["a", "a"]), ["127.0.0.1"])
    assert ask(rendezvous, "PUT", "/scope/key", b"value")[0] == 200
    assert ask(rendezvous, "GET", "/scope/key") == (200, b"value")


def test_a_rank_that_comes_first_waits_for_the_other(rendezvous, monkeypatch):
    monkeypatch.setattr(rendezvous_server, "WAIT", 60.0)
    rendezvous.serve(assign_ranks(["a", "a"]), ["127.0.0.1"])
    with socket.create_connection(("127.0.0.1", rendezvous.port), 10) as early:
        early.sendall(f"GET /{rendezvous.secret}:{rendezvous.port}/scope/key HTTP/1.0\r\n\r\n".encode())
        ask(rendezvous, "PUT", "/scope/key", b"value")
        answer = b"".join(iter(lambda: early.recv(1024), b""))
    assert b" 200 " in answer
    assert answer.endswith(b"value")


def test_requests_that_wait_end_with_the_server(rendezvous, monkeypatch):
    monkeypatch.setattr(rendezvous_server, "WAIT", 60.0)
    rendezvous.serve(assign_ranks(["a", "a"]), ["127.0.0.1"])
    with socket.create_connection(("127.0.0.1", rendezvous.port), 10) as early:
        early.sendall(f"GET /{rendezvous.secret}:{rendezvous.port}/scope/key HTTP/1.0\r\n\r\n".encode())
        ask(rendezvous, "PUT", "/scope/other", b"value")
        rendezvous.close()
        with contextlib.suppress(ConnectionError):
            assert b" 200 " not in early.recv(1024)


def test_another_address_is_refused(rendezvous):
    rendezvous.serve(assign_ranks(["a", "a"]), ["127.0.0.2"])
    with pytest.raises(OSError):  # noqa: PT011 - closed or reset, as the kernel has it
        ask(rendezvous, "GET", "/scope/key")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "POST"])
def test_a_request_without_the_secret_gets_no_response(rendezvous, method):
    rendezvous.serve(assign_ranks(["a", "a"]), ["127.0.0.1"])
    for secret in ("", "0" * 32, rendezvous.secret[:-1], "../" + rendezvous.secret):
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            ask(rendezvous, method, "/scope/key", b"value", secret=secret)
    assert ask(rendezvous, "GET", "/scope/key")[0] == 404


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_no_files_are_served(rendezvous, method):
    """Horovod's server descends from one that answers HEAD for files of its folder."""
    rendezvous.serve(assign_ranks(["a", "a"]), ["127.0.0.1"])
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(rendezvous, method, "/setup.cfg")


@pytest.mark.parametrize("length", [str(2 << 20), "-1", "many"])
def test_a_value_that_is_too_large_is_not_read(rendezvous, length):
    rendezvous.serve(assign_ranks(["a", "a"]), ["127.0.0.1"])
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(rendezvous, "PUT", "/scope/key", b"value", length=length)


def test_keys_are_bounded(rendezvous):
    rendezvous.serve(assign_ranks(["a", "a"]), ["127.0.0.1"])
    for key in range(40):
        ask(rendezvous, "PUT", f"/scope/{key}", b"value")
    assert ask(rendezvous, "GET", "/scope/31")[0] == 200
    assert ask(rendezvous, "GET", "/scope/32")[0] == 404


@given(st.binary(max_size=300))
def test_any_garbage_leaves_the_server_working(garbage):
    with contextlib.closing(Rendezvous("127.0.0.1")) as server:
        server.serve(assign_ranks(["a", "a"]), ["127.0.0.1"])
        ask(server, "PUT", "/scope/key", b"value")
        start = f"GET /{server.secret}:{server.port}/".encode()
        end = b" HTTP/1.0\r\n\r\n"
        for line in (garbage, b"GET /" + garbage + end, start + garbage, start + garbage + end):
            with socket.create_connection(("127.0.0.1", server.port), 10) as caller:
                caller.sendall(line)
                caller.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while answered := caller.recv(1 << 16):
                        assert b"value" not in answered or line.startswith(start)
        assert ask(server, "GET", "/scope/key") == (200, b"value")


def test_requests_that_come_before_it_serves_wait(rendezvous):
    with socket.create_connection(("127.0.0.1", rendezvous.port), 10) as early:
        early.sendall(f"GET /{rendezvous.secret}:{rendezvous.port}/scope/key HTTP/1.0\r\n\r\n".encode())
        rendezvous.serve(assign_ranks(["a", "a"]), ["127.0.0.1"])
        assert b" 404 " in early.recv(1024)


def test_the_port_is_free_after_close(rendezvous):
    rendezvous.serve(assign_ranks(["a"]), ["127.0.0.1"])
    ask(rendezvous, "GET", "/scope/key")
    rendezvous.close()
    rendezvous.close()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", rendezvous.port))
        other.listen()


def test_closed_without_serving():
    server = Rendezvous("127.0.0.1")
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 10)


@pytest.mark.parametrize("missing", ["RendezvousHandler", "RendezvousHTTPServer", "_get_value", "_put_value", "init"])
def test_a_horovod_that_has_changed_is_named(monkeypatch, missing):
    """What cos_ml uses of Horovod's inside is not there."""
    for owner in (http_server, http_server.RendezvousHTTPServer, http_server.KVStoreHandler):
        if missing in vars(owner):
            monkeypatch.delattr(owner, missing)
    monkeypatch.delitem(sys.modules, "cos_ml.job.rendezvous_server")
    monkeypatch.delattr("cos_ml.job.rendezvous_server")
    with pytest.raises(SetupError, match=r"another rendezvous server than Horovod 0\.28\.1.*cos-ml install-horovod"):
        importlib.import_module("cos_ml.job.rendezvous_server")
    with pytest.raises(SetupError, match=r"Horovod 0\.28\.1"):
        check_horovod(object())


def test_ranks_of_one_host_use_the_loopback():
    assert own_address(["a", "a"], 1) == "127.0.0.1"
    assert "127.0.0.1" in local_addresses()


def test_an_interface_by_name():
    hosts = ["a", "b"]
    assert own_address(hosts, 1, local_addresses()["127.0.0.1"]) == "127.0.0.1"
    with pytest.raises(RankError, match=r"The host b has no network interface 'ib7'.*It has "):
        own_address(hosts, 1, "ib7")


def test_host_names_that_resolve_to_the_loopback(monkeypatch):
    names = {
        "a": ["127.0.1.1"],
        "b": ["127.0.0.2"],
        "c": ["10.0.0.7"],
        "d": [],
        "e": ["::1", "fd00::5"],
        "f": ["10.9.9.9"],
    }
    monkeypatch.setattr(placement, "resolve", names.__getitem__)
    own = next((address for address in local_addresses() if not is_loopback(address)), None)
    monkeypatch.setattr(placement, "local_addresses", lambda: {"127.0.0.1": "lo", "10.0.0.7": "a", "fd00::5": "b"})
    assert own_address(["a", "f"], 1) is None  # where others reach it, but no address of its own
    assert own_address(["a", "b"], 0) is None  # the tasks find out by allGather
    assert own_address(["d", "b"], 0) is None  # a name that even its own host does not know
    assert own_address(["a", "c"], 1) == "10.0.0.7"
    assert own_address(["a", "e"], 1) == "fd00::5"
    if own is not None:  # the one from which it reaches another host
        names["c"] = [own]
        assert own_address(["a", "c"], 0) == own


def test_the_environment_of_a_rank():
    hosts = ["a", "a", "a"]
    environment = rank_environment(assign_ranks(hosts)[2], "127.0.0.1", "127.0.0.1", 4711, "5ec2e7")
    assert environment.pop("HOROVOD_GLOO_IFACE") == local_addresses()["127.0.0.1"]
    assert environment == {
        "HOROVOD_RANK": "2",
        "HOROVOD_SIZE": "3",
        "HOROVOD_LOCAL_RANK": "2",
        "HOROVOD_LOCAL_SIZE": "3",
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
        "HOROVOD_HOSTNAME": "a",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1:4711/5ec2e7",  # Horovod appends :4711/scope/key
        "HOROVOD_GLOO_RENDEZVOUS_PORT": "4711",
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "120",
        "COS_ML_GLOO_ADDRESS": "127.0.0.1",
    }


def test_ranks_of_several_hosts_listen_in_a_range():
    ports, infos = range(40000, 40100), assign_ranks(["a", "b"])
    found = rank_environment(infos[0], "fd00::2", "127.0.0.1", 4711, "5ec2e7", ports)
    assert (found["COS_ML_GLOO_ADDRESS"], found["COS_ML_PORT_RANGE"]) == ("fd00::2", "40000-40099")
    assert "COS_ML_PORT_RANGE" not in rank_environment(infos[0], "127.0.0.1", "127.0.0.1", 4711, "5ec2e7", ports)
