"""The rank server without Spark: what it is before a fork, who gets an answer, and when it ends."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading

import psutil
import pytest

from cos_ml.errors import InvalidInputError
from cos_ml.job import rank_server
from cos_ml.job.rank_server import idle_timeout, start_forked
from cos_ml.rank import server as server_module
from cos_ml.rank.server import READY, SECRET, SOCKET, pack
from tests.support.processes import running, server_processes
from tests.support.sessions import ROOT

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="there are rank servers on Linux only"),
]

# An executor, whose worker starts a rank, prints what it is, and waits.
EXECUTOR = """
import os, subprocess, sys
WORKER = '''
import os, sys, tempfile
from cos_ml.job import rank_server
rank = rank_server.start_forked(dict(os.environ), [], tempfile.TemporaryFile(), 60.0)
rank.started(60.0)
print(os.getpid(), rank.pid, rank.server, flush=True)
sys.stdin.read()
'''
subprocess.run([sys.executable, "-c", WORKER])
sys.stdin.read()
"""


def gone(process, seconds=20.0):
    return not psutil.wait_procs([psutil.Process(process)] if psutil.pid_exists(process) else [], seconds)[1]


def until(condition):
    """Wait for it; a failure would never end."""
    ended = threading.Event()
    while not condition():
        ended.wait(0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of an executor, whose path is longer than that of a socket may be."""
    folder = tmp_path_factory.mktemp("executor") / ("long" * 40)
    folder.mkdir()
    before = os.environ.get("SPARK_LOCAL_DIRS")
    os.environ["SPARK_LOCAL_DIRS"] = str(folder)
    yield folder
    for process in server_processes(folder):
        process.kill()
    os.environ.pop("SPARK_LOCAL_DIRS") if before is None else os.environ.update(SPARK_LOCAL_DIRS=before)


@pytest.fixture
def start(place):
    """A function that starts a rank from the server of this process; the rank is killed in the end."""
    with contextlib.ExitStack() as stack:

        def started(descriptors=(), idle=60.0, **variables):
            log = stack.enter_context(tempfile.TemporaryFile())
            rank = start_forked(dict(os.environ) | variables, list(descriptors), log, idle)
            assert rank is not None
            stack.callback(rank.close)
            stack.callback(rank.kill_group)
            assert rank.started(60.0)
            return rank, log

        yield started


@pytest.fixture
def server(start, place):
    """The server's process, with a rank."""
    rank, _ = start()
    return psutil.Process(rank.server)


def connect(place):
    (folder,) = (one.parent for one in place.glob(f"*/{SOCKET}"))
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    with rank_server._short(folder) as short:
        connection.connect(f"{short}/{SOCKET}")
    return connection, folder


def test_before_a_fork_it_has_one_thread_and_no_device(server):
    assert server.num_threads() == 1
    names = [os.readlink(f"/proc/{server.pid}/fd/{name}") for name in os.listdir(f"/proc/{server.pid}/fd")]
    assert not [name for name in names if name.startswith(("/dev/nvidia", "/dev/dri", "/dev/kfd"))]
    assert not [one.path for one in server.memory_maps() if one.path.startswith("/dev/nvidia")]
    assert any("_pywrap_tensorflow" in one.path or "tensorflow" in one.path for one in server.memory_maps())


def test_its_folder_is_its_user_s_alone(server, place):
    (folder,) = place.glob("cos_ml-server-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / SECRET).stat().st_mode) == 0o600
    assert (folder / SECRET).read_text() not in " ".join(server.cmdline()) + str(server.environ())


def test_a_rank_is_a_process_like_a_new_one(start, server):
    """Session, environment, descriptors, log, and the time of its death are its own."""
    rank, log = start(CUDA_VISIBLE_DEVICES="3", HOROVOD_RANK="1")
    assert rank.server == server.pid
    until(lambda: os.getsid(rank.pid) == rank.pid)
    process = psutil.Process(rank.pid)
    until(lambda: os.listdir(f"/proc/{rank.pid}/fd") == ["0", "1", "2"])
    assert os.readlink(f"/proc/{rank.pid}/fd/1") == os.readlink(f"/proc/self/fd/{log.fileno()}")
    rank.stdin.write(b"no start message\n")
    rank.stdin.flush()
    assert rank.wait(30) == 1
    assert b"JSONDecodeError" in os.pread(log.fileno(), 10_000, 0)
    assert gone(process.pid)


def test_descriptors_keep_their_numbers_though_there_are_hundreds(start):
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(300)]
        files = files[::-1]  # in no order
        rank, _ = start([file.fileno() for file in files])
        until(lambda: len(os.listdir(f"/proc/{rank.pid}/fd")) == 303)
        for file in files:
            assert os.readlink(f"/proc/{rank.pid}/fd/{file.fileno()}") == os.readlink(f"/proc/self/fd/{file.fileno()}")


def test_two_tasks_that_start_together_get_one_server(start, server):
    ranks = [start()[0] for _ in range(3)]
    assert {rank.server for rank in ranks} == {server.pid}


def test_how_a_rank_was_killed_is_its_exit_status(start):
    rank, _ = start()
    os.kill(rank.pid, signal.SIGTERM)
    assert rank.wait(30) == -signal.SIGTERM
    assert rank.poll() == -signal.SIGTERM


def test_a_rank_dies_when_its_task_closes_the_connection(start):
    rank, _ = start()
    os.kill(rank.pid, signal.SIGSTOP)  # and can do nothing itself
    rank._connection.close()
    assert gone(rank.pid)


@pytest.mark.parametrize("request_", ["nothing", "wrong secret", "no JSON", "too large", "part"])
def test_strangers_get_no_rank_and_disturb_nobody(start, place, request_):
    start()
    connection, folder = connect(place)
    with connection:
        message = {"environment": {}, "descriptors": [], "extra": []}
        packed = pack((folder / SECRET).read_bytes(), message)
        sent = {
            "nothing": b"", "wrong secret": pack(b"another", message), "no JSON": b"GET / HTTP/1.1\r\n" * 100,
            "too large": b"\xff" * 100, "part": packed[:40],
        }[request_]  # fmt: skip
        connection.sendall(sent)
        if request_ not in ("nothing", "part"):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""
        rank, _ = start()
        assert running(rank.pid)


def test_killed_workers_end_their_ranks_and_killed_executors_their_server(tmp_path):
    """Also one that is stopped, and can do nothing itself."""
    command = [sys.executable, "-c", EXECUTOR]
    environment = os.environ | {"SPARK_LOCAL_DIRS": str(tmp_path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as executor:
        worker, rank, server = map(int, executor.stdout.readline().split())
        (folder,) = tmp_path.iterdir()
        os.kill(worker, signal.SIGKILL)
        assert gone(rank)
        assert running(server)
        assert (folder / READY).read_text() == str(server)
        os.kill(server, signal.SIGSTOP)
        executor.kill()
    assert gone(server)
    until(lambda: not folder.exists())


@pytest.mark.parametrize("ends", ["server", "executor"])
def test_its_watcher_waits_for_it(monkeypatch, ends):
    monkeypatch.setattr(server_module, "GRACE", 0.01)
    with subprocess.Popen(["sleep", "60"]) as server, subprocess.Popen(["sleep", "60"]) as executor:
        pidfds = [os.pidfd_open(process.pid) for process in (server, executor)]
        server.send_signal(signal.SIGSTOP)
        (server if ends == "server" else executor).kill()
        server_module.watch(pidfds[0], pidfds[1:])
        assert server.wait() == -signal.SIGKILL
        assert ends == "executor" or executor.poll() is None
        executor.kill()
        for pidfd in pidfds:
            os.close(pidfd)


@pytest.mark.parametrize("reason", ["idle", "folder", "executor"])
def test_it_ends(tmp_path, monkeypatch, reason):
    """Nothing is asked for; its folder is removed, as Spark removes those of an application; its executor has ended."""
    monkeypatch.setattr(server_module, "LOOK", 0.01)
    (tmp_path / SECRET).write_text("secret")
    (tmp_path / SOCKET).touch()
    ended = subprocess.Popen(["true"])
    with socket.socket(socket.AF_UNIX) as listener:
        watched = [os.pidfd_open(ended.pid)] if reason == "executor" else []
        served = server_module.Server(str(tmp_path), listener, watched, 0.05 if reason == "idle" else 1e6)
        if reason == "folder":
            (tmp_path / SOCKET).unlink()
        served.serve()
    ended.wait()


def test_a_stopped_server_starts_no_rank_and_is_replaced(start, place, monkeypatch):
    first, _ = start()
    monkeypatch.setattr(rank_server, "ANSWER_TIME", 0.1)
    psutil.Process(first.server).suspend()
    with tempfile.TemporaryFile() as log:
        assert start_forked(dict(os.environ), [], log, 60.0) is None
    assert gone(first.server)
    assert gone(first.pid)
    assert first.wait(30) == -signal.SIGKILL  # as one that is out of memory
    monkeypatch.undo()
    second, _ = start()
    assert second.server != first.server
    os.kill(second.server, signal.SIGKILL)
    assert second.wait(30) == -signal.SIGKILL
    assert gone(second.pid)
    until(lambda: not list(place.iterdir()))


def test_another_environment_is_another_server(start, server, place):
    rank, _ = start(TF_ENABLE_ONEDNN_OPTS="0")
    assert rank.server != server.pid


def test_those_that_were_started_first_are_ended(tmp_path, monkeypatch):
    folders = [tmp_path / f"cos_ml-server-{name}" for name in "cab"]
    monkeypatch.setattr(rank_server, "_listens", lambda folder: True)
    for at, folder in enumerate(folders):
        folder.mkdir()
        os.utime(folder, (at, at))
    rank_server._limit_servers(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted(folders[-(rank_server.KEPT - 1) :])  # and the one that comes


def test_folders_whose_processes_were_all_killed_are_removed(tmp_path):
    (tmp_path / "cos_ml-server-dead").mkdir()
    rank_server._limit_servers(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_only_slow_keeps_its_ranks(tmp_path):
    """It gets no more requests, and ends with its last rank."""
    folder = tmp_path / "cos_ml-server-slow"
    folder.mkdir()
    with subprocess.Popen(["sh", "-c", "sleep 60; :", str(folder)]) as server:
        (folder / READY).write_text(str(server.pid))
        rank_server._end_server(folder)
        assert server.poll() is None
        assert not folder.exists()
        folder.mkdir()
        (folder / READY).write_text(str(server.pid))
        os.kill(server.pid, signal.SIGSTOP)
        until(lambda: psutil.Process(server.pid).status() == psutil.STATUS_STOPPED)
        rank_server._end_server(folder)
        assert server.wait() == -signal.SIGKILL


@pytest.mark.parametrize("changed", ["executor", "interpreter", "folder", "TF_SETTING", "PYTHONPATH"])
def test_executors_interpreters_and_environments_have_servers_of_their_own(monkeypatch, tmp_path, changed):
    key = rank_server._key({})
    assert key == rank_server._key({"CUDA_VISIBLE_DEVICES": "1", "HOROVOD_RANK": "1", "TMPDIR": "/tmp/rank"})
    environment = {}
    if changed == "executor":
        monkeypatch.setattr(os, "getppid", os.getpid)
    elif changed == "interpreter":  # PYSPARK_PYTHON
        monkeypatch.setattr(sys, "executable", "/another/python")
    elif changed == "folder":
        monkeypatch.chdir(tmp_path)
    else:
        environment[changed] = "1"
    assert rank_server._key(environment) != key


def test_a_server_of_another_user_is_not_asked(monkeypatch, tmp_path):
    folder = tmp_path / "cos_ml-server-key-x"
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / SOCKET))
        listener.listen()
        found = rank_server._connect(str(tmp_path), "cos_ml-server-key-")
        assert found is not None
        found[0].close()
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
        assert rank_server._connect(str(tmp_path), "cos_ml-server-key-") is None


def test_without_a_server_a_rank_starts_as_a_process(monkeypatch):
    monkeypatch.setattr(rank_server, "_server", None)
    assert start_forked({}, [], None, 0.0) is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert start_forked({}, [], None, 60.0) is None


def test_a_place_that_others_may_write_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "cos_ml-server-key-x").mkdir(mode=0o777)
    (tmp_path / "cos_ml-server-key-x").chmod(0o777)
    assert rank_server._connect(str(tmp_path), "cos_ml-server-key-") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, 600), ("600s", 600), ("10min", 600), ("2h", 7200), ("0", 0), ("90", 90), ("1500ms", 1.5)],
)
def test_its_idle_time_is_a_setting(text, seconds):
    assert idle_timeout({} if text is None else {rank_server.IDLE_TIMEOUT: text}) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "10 weeks", "1.5s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidInputError, match=r"spark\.cosml\.rankServer\.idleTimeout"):
        idle_timeout({rank_server.IDLE_TIMEOUT: text})


def test_where_the_imports_fail_a_rank_says_why(place, tmp_path):
    """As a new process, which is what it then is."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ImportError('TensorFlow is blocked by the test')")
    start_message = {"function": "cos_ml.rank.train:train"}
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as results, tempfile.TemporaryFile() as events:
        environment = dict(os.environ) | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        rank = start_forked(environment, [results.fileno(), events.fileno()], log, 60.0)
        start_message |= {"results": results.fileno(), "events": events.fileno()}
        rank.stdin.write(json.dumps(start_message).encode() + b"\n")
        rank.stdin.flush()
        assert rank.wait(60) == 0
        rank.close()
        results.seek(0)
        assert b"TensorFlow is blocked by the test" in results.read()
