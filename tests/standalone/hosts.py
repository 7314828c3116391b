"""Hosts of a Spark cluster on one machine: network namespaces with addresses of their own, on one bridge."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

LONGEST = 300  # seconds until a program is ready
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@contextlib.contextmanager
def hosts(
    count: int, name: str = "cosml", network: str = "10.77.61"
) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """The driver's address, and of each host its address and what to begin a command with, to run it there.

    Where this process may make no network namespaces, all are the loopback. Tests that may run at the same time have
    names and networks of their own.
    """
    with contextlib.ExitStack() as stack:
        try:
            _remove_leftovers(count, name)
            found = list(_namespaces(count, name, network, stack))
        except FileNotFoundError:  # no command "ip"
            yield "127.0.0.1", [("127.0.0.1", [])] * count
            return
        except subprocess.CalledProcessError as error:
            if b"not permitted" not in error.stderr:
                raise
            yield "127.0.0.1", [("127.0.0.1", [])] * count
            return
        yield f"{network}.1", found


def _namespaces(count: int, name: str, network: str, stack: contextlib.ExitStack) -> Iterator[tuple[str, list[str]]]:
    bridge = f"{name}0"
    _ip(f"link add {bridge} type bridge")
    stack.callback(_ip, f"link del {bridge}")
    _ip(f"addr add {network}.1/24 dev {bridge}")
    _ip(f"link set {bridge} up")
    for number in range(count):
        host, address = f"{name}-{number}", f"{network}.{number + 2}"
        _ip(f"netns add {host}")
        stack.callback(_ip, f"netns del {host}")
        _ip(f"link add {name}-out{number} type veth peer name eth0 netns {host}")
        _ip(f"link set {name}-out{number} master {bridge} up")
        for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _ip(f"-n {host} {command}")
        yield address, ["ip", "netns", "exec", host]


def _remove_leftovers(count: int, name: str) -> None:
    """Of a run that was killed."""
    for number in range(count):
        host = f"{name}-{number}"
        within = subprocess.run(["ip", "netns", "pids", host], capture_output=True, check=False).stdout.split()
        for process in map(int, within):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for command in (f"netns del {host}", f"link del {name}-out{number}"):
            subprocess.run(["ip", *command.split()], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", f"{name}0"], capture_output=True, check=False)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@contextlib.contextmanager
def running(command: list[str], log: str, ready: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs for the length of a ``with`` block, from when its log says ``ready``; options of Popen."""
    with (
        open(log, "wb") as file,
        subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ, **{"preexec_fn": die_with_parent} | options
        ) as process,
    ):
        try:
            pause = threading.Event()
            waits = 0
            while ready not in open(log).read():
                assert process.poll() is None, open(log).read()[-2000:]
                assert waits < LONGEST / 0.05, open(log).read()[-2000:]
                pause.wait(0.05)
                waits += 1
            yield process
        finally:
            process.kill()  # also where a test did so already


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
