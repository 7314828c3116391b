"""Hosts with awkward networks on one machine: network namespaces on one bridge, where this process may make them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

BRIDGE = "cosmlnet"
IPV4, IPV6 = "10.77.75.{}/24", "fd77:75::{}/64"  # the driver is number 1, the hosts are 2 and 3
UNROUTED = "192.168.77.{}/24"  # of an interface that leads nowhere


def command(text: str) -> None:
    """Run a program; raises CalledProcessError with a note of what it has written."""
    try:
        subprocess.run(text.split(), check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise


@contextlib.contextmanager
def hosts(*networks: str, unrouted: bool = False) -> Iterator[list[str]]:
    """Two hosts with addresses of these networks, each a network namespace, by name, for the length of a block."""
    names = [f"{BRIDGE}-{number}" for number in (2, 3)]
    with contextlib.ExitStack() as stack:
        _remove(names)
        stack.callback(_remove, names)
        command(f"ip link add {BRIDGE} type bridge")
        for network in networks:
            command(f"ip addr add {network.format(1)} dev {BRIDGE} {_at_once(network)}")
        command(f"ip link set {BRIDGE} up")
        for number, name in enumerate(names, 2):
            command(f"ip netns add {name}")
            command(f"ip -n {name} link set lo up")
            if unrouted:  # the first one, so that it is what a careless choice would find
                command(f"ip -n {name} link add eth0 type veth peer name away")
                _set_up(name, "eth0", [UNROUTED], number)
            inside = "eth1" if unrouted else "eth0"
            command(f"ip link add {BRIDGE}{number} type veth peer name {inside} netns {name}")
            command(f"ip link set {BRIDGE}{number} master {BRIDGE} up")
            _set_up(name, inside, networks, number)
        yield names


def _set_up(name: str, interface: str, networks: Sequence[str], number: int) -> None:
    for network in networks:
        command(f"ip -n {name} addr add {network.format(number)} dev {interface} {_at_once(network)}")
    command(f"ip -n {name} link set {interface} up")


def _at_once(network: str) -> str:
    return "nodad" if ":" in network else ""  # an address of IPv6 is tried out for a second first, otherwise


def _remove(names: Sequence[str]) -> None:
    """The namespaces, also of a run that was killed, and the processes in them."""
    for name in names:
        within = subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=False).stdout.split()
        for process in map(int, within):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        # The link first: that of a namespace would go some time after it.
        subprocess.run(["ip", "link", "del", name.replace("-", "")], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)


def within(name: str, command: Sequence[str]) -> list[str]:
    """A command that runs on a host, whose own name nobody knows: not even the host itself."""
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
    return ["ip", "netns", "exec", name, *named, *command]


def allow_ports(name: str, *ports: str) -> None:
    """A firewall on a host: others can connect to these ports alone."""
    rules = f"""
    table inet filter {{
      chain input {{
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        meta l4proto ipv6-icmp accept
        tcp dport {{ {", ".join(ports)} }} accept
      }}
    }}"""
    subprocess.run(["ip", "netns", "exec", name, "nft", "-f", "-"], input=rules.encode(), check=True)


def missing() -> str:
    """What these tests need and this machine does not have, in a line; "" for nothing."""
    programs = [name for name in ("ip", "nft", "unshare") if shutil.which(name) is None]
    if programs:
        return f"make test-networks needs {', '.join(programs)} (Debian: apt-get install iproute2 nftables)"
    try:
        with hosts(IPV4):
            return ""
    except subprocess.CalledProcessError as error:
        return f"make test-networks needs root, to make network namespaces: {error.stderr.strip()}"


if __name__ == "__main__":
    sys.exit(missing() or 0)
