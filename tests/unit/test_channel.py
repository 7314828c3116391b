"""How barrier tasks meet and exchange what each has: threads are the tasks."""

import contextlib
import http.client
import json
import socket
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from cos_ml.data.columns import Column
from cos_ml.errors import RankError
from cos_ml.job import channel, link, peers, placement
from cos_ml.job.channel import Client, FallBack, Server, listen
from cos_ml.job.messages import Job
from cos_ml.job.peers import Handshake
from cos_ml.job.placement import address_of_first, assign_ranks, own_address
from cos_ml.job.rendezvous_server import Rendezvous
from cos_ml.spec import TrainSpec

pytestmark = pytest.mark.once

OWN, SECRET = "127.0.0.1", "5ec2e7"
SPEC = TrainSpec(inputs=(Column("x", "x0", (1,)),), labels=(Column("y", "y0"),))


@pytest.fixture
def opened():
    """Closes what a test has opened."""
    with contextlib.ExitStack() as stack:
        yield lambda one: stack.enter_context(contextlib.closing(one))


@pytest.fixture
def together():
    """A function that runs what each task does, all at the same time."""
    with ThreadPoolExecutor(16) as pool:
        yield lambda *functions: [done.result(30) for done in [pool.submit(one) for one in functions]]


def server(opened, size=2, task=100, secret=SECRET):
    return opened(listen(OWN, secret, ["a"] * size, task))


def client(opened, partition=1, size=2, task=101, secret=SECRET, address=OWN):
    return opened(Client(address, secret, size, partition, task))


def met(one, facts):
    """What a task learns, or how that failed."""
    try:
        return one.handshake(facts)
    except (FallBack, RankError) as error:
        return error


def test_all_tasks_learn_what_each_has(opened, together):
    tasks = [server(opened, 3), client(opened, 1, 3), client(opened, 2, 3, 102)]
    facts = [b"a", b"b", b"c"]
    assert (
        together(*[lambda one=one, own=own: one.handshake(own) for one, own in zip(tasks, facts, strict=True)])
        == [facts] * 3
    )
    for name, size, key, expected in (
        ("ready", None, "", {"0", "1", "2"}),
        ("scope", 2, "rank_1", {"rank_0", "rank_1"}),
    ):
        entries = [{"0": b"", "rank_0": b""}, {"1": b"", "rank_1": b""}, {"2": b""}]
        futures = [one.exchange(name, own, key, size) for one, own in zip(tasks, entries, strict=True)]
        assert [set(future.result(10)) for future in futures] == [expected] * 3
    wanted = tasks[1].exchange("another", {}, "7", 0)  # how many there will be is not known
    tasks[2].exchange("another", {"7": b"seven"}, "7", 0)
    assert wanted.result(10) == {"7": b"seven"}


def test_the_ports_follow_from_the_secret():
    assert link.ports(SECRET) == link.ports(SECRET)
    assert not set(link.ports(SECRET)) & set(link.ports("another"))
    assert all(1024 < port < 61000 for port in link.ports(SECRET))


def test_who_does_not_know_the_secret_gets_no_place_and_no_answer(opened, together):
    first = server(opened)
    with pytest.raises(ConnectionError):
        link.connect(OWN, first.port, "guessed", 10)
    with socket.create_connection((OWN, first.port), 10) as caller:
        caller.sendall(bytes(link.NONCE + link.PROOF))
        answer = b"".join(iter(lambda: caller.recv(1024), b""))
    assert len(answer) == link.NONCE + link.PROOF  # a random number, and a proof that can't be used elsewhere
    second = client(opened)
    assert together(lambda: first.handshake(b"a"), lambda: second.handshake(b"b")) == [[b"a", b"b"]] * 2


def test_garbage_leaves_the_server_working(opened, together):
    first = server(opened)
    for garbage in (b"", b"GET / HTTP/1.0\r\n\r\n", bytes(1000), b"\xff" * 100000):
        with contextlib.suppress(OSError), socket.create_connection((OWN, first.port), 10) as caller:
            caller.sendall(garbage)
            caller.shutdown(socket.SHUT_WR)
            caller.recv(1024)
    second = client(opened)
    assert together(lambda: first.handshake(b"a"), lambda: second.handshake(b"b")) == [[b"a", b"b"]] * 2


class Stranger:
    """Listens on the first port, without the secret; passes everything on to another port, if one is given."""

    def __init__(self, port, target=None):
        self.heard, self.target = [], target
        self.socket = socket.create_server((OWN, port))
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self):
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.socket.accept()
                with caller, contextlib.ExitStack() as stack:
                    caller.settimeout(10)
                    with contextlib.suppress(OSError):
                        other = self.target and stack.enter_context(socket.create_connection((OWN, self.target), 10))
                        self.heard.append(caller.recv(1024))
                        if other:
                            other.sendall(self.heard[-1])
                        caller.sendall(other.recv(1024) if other else bytes(link.NONCE + link.PROOF))
                        self.heard.append(caller.recv(1024))

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


@pytest.mark.parametrize("passes_on", [False, True])
def test_a_stranger_who_listens_on_the_port_learns_nothing(opened, together, passes_on):
    ports = link.ports(SECRET)
    stranger = opened(Stranger(ports[0], ports[1] if passes_on else None))
    first = server(opened)
    assert first.port == ports[1]
    second = client(opened)
    assert together(lambda: first.handshake(b"a"), lambda: second.handshake(b"b")) == [[b"a", b"b"]] * 2
    heard = b"".join(stranger.heard)
    assert heard
    assert len(heard) % link.NONCE == 0  # random numbers
    assert b"b" not in stranger.heard


def pair():
    """Both ends of a link, and the socket of the second."""
    with socket.create_server((OWN, 0)) as listener, ThreadPoolExecutor(1) as pool:
        one = pool.submit(link.connect, OWN, listener.getsockname()[1], SECRET, 10)
        accepted, _ = listener.accept()
        return link.accept(accepted, SECRET), one.result(10), accepted


def test_a_message_that_is_changed_repeated_or_sent_back_is_refused():
    class Tap:
        """Keeps what is sent."""

        sent = b""

        def sendall(self, data):
            self.sent += data

    for good, disturb in ((0, lambda sent: sent[:-1] + bytes([sent[-1] ^ 1])), (1, lambda sent: sent + sent)):
        receiver, sender, _ = pair()
        with contextlib.closing(receiver), contextlib.closing(sender):
            tap, sender._connection = sender._connection, Tap()
            sender.send(link.pack({"name": b"value"}))
            tap.sendall(disturb(sender._connection.sent))
            sender._connection = tap
            assert [receiver.receive() for _ in range(good)] == [{"name": b"value"}] * good
            with pytest.raises(ConnectionError, match="did not send"):
                receiver.receive()
    receiver, sender, accepted = pair()
    with contextlib.closing(receiver), contextlib.closing(sender):
        tap, sender._connection = sender._connection, Tap()
        sender.send(link.pack({"name": b"value"}))
        accepted.sendall(sender._connection.sent)
        sender._connection = tap
        with pytest.raises(ConnectionError, match="did not send"):
            sender.receive()


def test_what_was_recorded_is_no_proof_when_it_is_sent_again(opened, together, monkeypatch):
    """All that a task has sent to meet the others, as somebody on the network has seen it."""
    sent, connect = [], socket.create_connection

    class Recorded(socket.socket):
        def sendall(self, data):
            sent.append(bytes(data))
            super().sendall(data)

    first = server(opened)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_connection", lambda *to: Recorded(fileno=connect(*to).detach()))
        second = client(opened)
        assert together(lambda: first.handshake(b"a"), lambda: second.handshake(b"b")) == [[b"a", b"b"]] * 2
    nonce, proof, message, *_ = sent
    assert (len(nonce), len(proof)) == (link.NONCE, link.PROOF)
    with connect((OWN, first.port), 10) as stranger:
        stranger.settimeout(10)
        stranger.sendall(nonce + proof + message)
        with contextlib.suppress(ConnectionResetError):
            assert len(b"".join(iter(lambda: stranger.recv(1024), b""))) == link.NONCE + link.PROOF  # and no answer
    futures = [one.exchange("ready", {str(number): b"1"}) for number, one in enumerate((first, second))]
    assert [set(future.result(10)) for future in futures] == [{"0", "1"}] * 2


def test_a_message_that_is_too_large_is_not_read():
    receiver, sender, _ = pair()
    with contextlib.closing(receiver), contextlib.closing(sender):
        sender._connection.sendall((1 << 40).to_bytes(8, "big") + bytes(link.PROOF))
        with pytest.raises(ConnectionError, match="bytes"):
            receiver.receive()


def test_only_hosts_of_the_job_may_connect(opened, monkeypatch):
    monkeypatch.setattr(channel, "local_addresses", lambda: {"10.0.0.1": "eth0"})
    monkeypatch.setattr(channel, "resolve", {"a": ["10.0.0.1"], "b": ["10.0.0.2", "fd00::2"], "unknown": []}.get)
    first = opened(Server((OWN, 0), SECRET, ["a", "b", "unknown"], 100))
    asked = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::2", "fd00::3", "::ffff:10.0.0.2"]
    found = [first.verify_request(None, (address, 1)) for address in asked]
    assert found == [True, True, False, True, False, True]
    with pytest.raises(OSError):  # noqa: PT011 - closed or reset, as the kernel has it
        link.connect(OWN, first.port, SECRET, 10)


def test_where_one_task_does_not_come_all_use_all_gather(opened, together, monkeypatch):
    monkeypatch.setattr(channel, "PATIENCE", 0.0)
    first, early = server(opened, 3), client(opened, 1, 3)
    with early.changed:
        assert early.changed.wait_for(lambda: not early.searching, 10)
    assert [type(one) for one in together(lambda: met(first, b"a"), lambda: met(early, b"b"))] == [FallBack] * 2
    late = client(opened, 2, 3, 102)
    assert isinstance(met(late, b"c"), FallBack)  # and so does who comes after that
    early.open("a", [OWN], first.port)
    late.open("a", [OWN], first.port)
    futures = [one.exchange("ready", {str(number): b"1"}) for number, one in enumerate((first, early, late))]
    assert [set(future.result(10)) for future in futures] == [{"0", "1", "2"}] * 3


def test_a_task_that_can_not_connect_uses_all_gather_and_then_the_address_that_it_brings(opened, monkeypatch):
    monkeypatch.setattr(channel, "SEARCH_TIME", 0.0)
    first, second = server(opened), client(opened)
    assert isinstance(met(second, b"b"), FallBack)
    second.open("a", [OWN], first.port)
    futures = [one.exchange("ready", {str(number): b"1"}) for number, one in enumerate((first, second))]
    assert [set(future.result(10)) for future in futures] == [{"0", "1"}] * 2


def test_a_task_that_can_not_reach_task_0_at_all_fails(opened, monkeypatch):
    monkeypatch.setattr(channel, "RECONNECT_TIME", 0.0)
    second = client(opened, address=None)
    assert isinstance(met(second, b"b"), FallBack)
    with pytest.raises(
        RankError,
        match=r"of partition 1, on a host with .* can't reach that of rank 0 on a at 127\.0\.0\.1, port 9\. ",
    ):
        second.open("a", [OWN], 9)


@pytest.mark.parametrize("ended", [0, 1])
def test_the_others_see_at_once_that_a_task_has_ended(opened, together, ended):
    tasks = [server(opened, 3), client(opened, 1, 3), client(opened, 2, 3, 102)]
    together(*[lambda one=one: one.handshake(b"facts") for one in tasks])
    waits = [one.exchange("ready", {str(number): b"1"}) for number, one in enumerate(tasks) if number != ended]
    tasks[ended].close()
    for future in waits:
        with pytest.raises(RankError, match=f"The connection to the task of partition {ended}.* was lost"):
            future.result(10)


def test_a_later_attempt_takes_the_place_of_an_earlier_one(opened, together):
    """Its task 0 may still be there, and have been found by the tasks of the later one."""
    earlier, second = server(opened), client(opened, task=103)
    with second.changed:
        assert second.changed.wait_for(lambda: not second.searching, 10)
    later = server(opened, task=102)
    assert later.port == link.ports(SECRET)[1]
    answers = together(lambda: met(earlier, b"old"), lambda: met(later, b"a"), lambda: met(second, b"b"))
    assert answers[1:] == [[b"a", b"b"]] * 2
    assert isinstance(answers[0], RankError)
    assert "A later attempt of this stage has begun" in str(answers[0])


def test_a_task_of_an_earlier_attempt_gives_its_place_to_that_of_the_later_one(opened, together):
    first = server(opened, 2, 102)
    old = client(opened, task=101)
    with old.changed:
        assert old.changed.wait_for(lambda: not old.searching, 10)
    new = client(opened, task=103)
    assert together(lambda: met(first, b"a"), lambda: met(new, b"b")) == [[b"a", b"b"]] * 2


def ask(rendezvous, method, scope, key, body=None):
    connection = http.client.HTTPConnection(OWN, rendezvous.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, f"/{rendezvous.secret}:{rendezvous.port}/{scope}/{key}", body)
        response = connection.getresponse()
        return response.read() if response.status == 200 else None


def join(rendezvous, info):
    """Ask as Gloo does: whose host is whose, then the addresses of all; twice three times."""
    for scope, rank, size in (
        ("global", info.rank, info.size),
        (f"local_{info.host}", info.local_rank, info.local_size),
        (f"cross_{info.local_rank}", info.cross_rank, info.cross_size),
    ):
        for name in (scope, f"{scope}_process_set_hash_1f"):
            ask(rendezvous, "PUT", name, f"rank_{rank}", b"host")
            for other in range(rank):
                assert ask(rendezvous, "GET", name, f"rank_{other}") == b"host"
            ask(rendezvous, "PUT", name, rank, b"address of %d" % rank)
            for other in set(range(size)) - {rank}:
                assert ask(rendezvous, "GET", name, other) == b"address of %d" % other


@pytest.mark.parametrize("hosts", ["aaaa", "aabb", "abba"])
def test_each_rank_asks_its_own_task_and_task_0_gets_few_requests(opened, together, monkeypatch, hosts):
    taken = []
    take = Server.take
    monkeypatch.setattr(Server, "take", lambda *arguments: (taken.append(arguments[1]), take(*arguments))[1])
    infos = assign_ranks(list(hosts))
    tasks = [server(opened, 4), *(client(opened, number, 4, 100 + number) for number in (1, 2, 3))]
    together(*[lambda one=one: one.handshake(b"facts") for one in tasks])
    servers = [opened(Rendezvous(OWN, one.exchange)) for one in tasks]
    for one in servers:
        one.serve(infos, [OWN])
    together(*[lambda one=one, info=info: join(one, info) for one, info in zip(servers, infos, strict=True)])
    assert max(taken.count(partition) for partition in (1, 2, 3)) <= 13


def test_a_rank_whose_task_has_lost_the_others_is_refused(opened):
    first, second = server(opened), client(opened)
    with second.changed:
        assert second.changed.wait_for(lambda: not second.searching, 10)
    own = opened(Rendezvous(OWN, second.exchange))
    own.serve(assign_ranks(["a", "a"]), [OWN])
    first.close()
    assert ask(own, "GET", "global", "0") is None
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(own, "GET", "global", "0")


def test_tasks_on_the_host_of_task_0_are_reached_where_it_is(opened, together, monkeypatch):
    """The address by which they have found it may be one that leads nowhere from other hosts."""
    monkeypatch.setattr(channel, "is_loopback", lambda address: False)
    tasks = [server(opened, 3), client(opened, 1, 3), client(opened, 2, 3, 102)]
    together(*[lambda one=one: one.handshake(b"") for one in tasks])
    assert together(*[one.own_address for one in tasks]) == [OWN] * 3  # all are on one host, whatever its names
    tasks = [server(opened, 3, secret="other"), *(client(opened, at, 3, 100 + at, "other") for at in (1, 2))]
    together(*[lambda one=one: one.handshake(b"") for one in tasks])
    tasks[0].links[2][1].local = "10.0.0.1"  # where a task of another host has reached it
    assert together(tasks[0].own_address, tasks[1].own_address) == ["10.0.0.1"] * 2


def test_the_address_of_the_first_task(monkeypatch):
    names = {"a": ["10.0.0.1"], "b": ["10.0.0.2"], "c": ["127.0.1.1"], "d": [], "e": ["fd00::5"]}
    monkeypatch.setattr(placement, "resolve", names.__getitem__)
    assert address_of_first(["c", "c"], 1) == OWN
    assert address_of_first(["a", "b"], 1) == "10.0.0.1"
    assert address_of_first(["e", "b"], 1) == "fd00::5"
    assert address_of_first(["d", "b"], 1) is None  # a name that is not known here
    assert address_of_first(["a", "b", "a"], 2) == own_address(["a", "b", "a"], 0)
    assert address_of_first(["c", "a"], 1) is None  # its name leads nowhere here
    assert address_of_first(["a", "b"], 1, "eth7") is None  # that is known on the other host


@pytest.mark.parametrize("direct", [True, False])
def test_tasks_that_meet_know_each_other_and_are_ready_together(opened, together, monkeypatch, direct):
    """Directly, or by allGather."""
    barrier, messages = threading.Barrier(2), {}

    def all_gather(partition, message):
        assert not direct
        messages[partition] = message
        barrier.wait(30)
        return [messages[0], messages[1]]

    def task(partition):
        context = types.SimpleNamespace(
            partitionId=lambda: partition, taskAttemptId=lambda: 100 + partition,
            allGather=lambda message: all_gather(partition, message),
        )  # fmt: skip
        handshake = opened(Handshake(context, job, hosts, assign_ranks(hosts)))
        info = opened(handshake.wait(spool, False))
        return info, info.all_ready(partition, True), info.all_ready("again", True)

    if not direct:
        monkeypatch.setattr(peers, "address_of_first", lambda *_: None)
    spool = types.SimpleNamespace(rows={"train": 3}, digest={}, skipped=0, shapes={}, dtypes={})
    job, hosts = Job("", (SPEC,), ()), ["a", "a"]
    one, other = together(lambda: task(0), lambda: task(1))
    assert one[0].tasks == other[0].tasks
    assert [found["partition"] for found in one[0].tasks] == [0, 1]
    assert job.secret not in json.dumps(one[0].tasks)
    assert one[0].secret != other[0].secret
    assert one[1] is other[1] is True


def test_tasks_learn_where_those_of_other_hosts_listen(opened, together):
    first, second = server(opened), client(opened)
    infos = [
        peers.PeerInfo([], {}, None, "", first, "a", ("10.0.0.1", 5)),
        peers.PeerInfo([], {}, None, "", second, "b", ("10.0.0.2", 6)),
    ]
    with second.changed:
        assert second.changed.wait_for(lambda: not second.searching, 10)
    assert together(lambda: infos[0].all_ready(0, True), lambda: infos[1].all_ready(1, False)) == [False, False]
    assert [info.places for info in infos] == [{"b": ("10.0.0.2", 6)}, {"a": ("10.0.0.1", 5)}]


def test_a_rank_that_has_failed_says_so_even_if_the_others_have_gone(opened):
    first, second = server(opened), client(opened)
    with second.changed:
        assert second.changed.wait_for(lambda: not second.searching, 10)
    first.close()
    info = peers.PeerInfo([], {}, None, "", second)
    assert not info.all_ready(1, False)
    with pytest.raises(RankError, match="was lost"):
        info.all_ready(1, True)
