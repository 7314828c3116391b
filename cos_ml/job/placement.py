"""Where ranks run, and the addresses at which they reach each other (barrier task side)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from cos_ml.errors import RankError
from cos_ml.interfaces import local_addresses

__all__ = ["RankInfo", "address_of_first", "assign_ranks", "own_address"]


@dataclass(frozen=True)
class RankInfo:
    """A rank's position, in the terms of MPI and Horovod.

    Attributes:
        rank, size: the position among all ranks, and their number.
        local_rank, local_size: the same among the ranks of its host.
        cross_rank, cross_size: the same among the ranks with its local rank, one per host.
        host: Spark's name of its host.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    host: str


def assign_ranks(hosts: Sequence[str]) -> list[RankInfo]:
    """Assign a rank to each barrier task.

    Ranks of one host are consecutive, whatever the order of the partition ids: hosts come in the order in which they
    first appear, and tasks of a host in the order of their partition ids. Several executors on a host count as one.
    Both ``hosts`` and what is returned are by partition id.
    """
    by_host: dict[str, list[int]] = {}
    for task, host in enumerate(hosts):
        by_host.setdefault(host, []).append(task)
    rank_infos: dict[int, RankInfo] = {}
    for host, tasks in by_host.items():
        for local_rank, task in enumerate(tasks):
            peers = [other for other, its_tasks in by_host.items() if len(its_tasks) > local_rank]
            rank_infos[task] = RankInfo(
                rank=len(rank_infos), size=len(hosts), local_rank=local_rank, local_size=len(tasks),
                cross_rank=peers.index(host), cross_size=len(peers), host=host,
            )  # fmt: skip
    return [rank_infos[task] for task in range(len(hosts))]


def own_address(hosts: Sequence[str], task: int, interface: str | None = None) -> str:
    """The address at which other ranks reach that of ``task``; a loopback address where all run on one host.

    It is that of ``interface``, or else the one to which Spark's name of the host resolves.

    Raises:
        RankError: this host has no such interface, or all names of hosts resolve to loopback addresses.
    """
    if interface is not None:
        addresses = local_addresses()
        found = next((address for address, name in addresses.items() if name == interface), None)
        if found is None:
            raise RankError(
                f"The host {hosts[task]} has no network interface {interface!r} with an IPv4 address (Param "
                f"horovodOptions, networkInterface). It has {sorted(set(addresses.values()))}."
            )
        return found
    if len(set(hosts)) == 1:
        return "127.0.0.1"
    own = socket.gethostbyname(hosts[task])
    if not own.startswith("127."):
        return own
    # On Debian a host's own name resolves to 127.0.1.1: use the address from which it reaches the others.
    for other in map(socket.gethostbyname, set(hosts) - {hosts[task]}):
        if not other.startswith("127."):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
                unconnected.connect((other, 9))  # sends nothing
                return unconnected.getsockname()[0]
    raise RankError(
        f"On {hosts[task]} the host names {sorted(set(hosts))} resolve to loopback addresses, at which other hosts are "
        'not reachable. Name the network interface, horovodOptions={"networkInterface": "eth0"}, or set SPARK_LOCAL_IP.'
    )


def address_of_first(hosts: Sequence[str], task: int, interface: str | None = None) -> str | None:
    """The address at which ``task`` reaches that of partition 0, or None where the names of hosts do not tell."""
    if len(set(hosts)) == 1:
        return own_address(hosts, task, interface)
    if interface is not None:
        return None  # it is that of another host's interface
    if hosts[task] == hosts[0]:
        return own_address(hosts, 0)
    try:
        found = socket.gethostbyname(hosts[0])
    except OSError:
        return None
    return None if found.startswith("127.") else found
