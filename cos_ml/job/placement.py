"""Where ranks run, and the addresses at which they find each other (barrier task side)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from cos_ml.errors import RankError
from cos_ml.interfaces import local_addresses

__all__ = ["RankInfo", "assign_ranks", "own_address"]


@dataclass(frozen=True)
class RankInfo:
    """A rank and its neighbours, in the words of MPI and Horovod.

    Attributes:
        rank, size: among all ranks.
        local_rank, local_size: among the ranks of this host.
        cross_rank, cross_size: among the ranks of the same local rank, one a host.
        host: as Spark names it.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    host: str


def assign_ranks(hosts: Sequence[str]) -> list[RankInfo]:
    """The place of each barrier task.

    Ranks of one host are neighbours, whatever the order of the partition ids: hosts come in the order in which they
    first appear, and tasks of a host in the order of their partition ids. Several executors on a host count as one.

    Args:
        hosts: the host of each task, by partition id.

    Returns:
        list[Place]: by partition id.
    """
    by_host: dict[str, list[int]] = {}
    for task, host in enumerate(hosts):
        by_host.setdefault(host, []).append(task)
    rank_infos: dict[int, RankInfo] = {}
    for host, tasks in by_host.items():
        for local_rank, task in enumerate(tasks):
            column = [other for other, its_tasks in by_host.items() if len(its_tasks) > local_rank]
            rank_infos[task] = RankInfo(
                rank=len(rank_infos), size=len(hosts), local_rank=local_rank, local_size=len(tasks),
                cross_rank=column.index(host), cross_size=len(column), host=host,
            )  # fmt: skip
    return [rank_infos[task] for task in range(len(hosts))]


def own_address(hosts: Sequence[str], task: int, interface: str | None = None) -> str:
    """The address at which the others reach the rank of ``task``: the loopback where all ranks are one host's.

    Args:
        hosts: the host of each task, by partition id.
        task: which one this is.
        interface: the network interface to use; None for that of the address under which Spark knows the host.

    Raises:
        RankError: this host has no such interface, or knows itself and the others as the loopback only.
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
    # Debian gives a host's own name the address 127.0.1.1: take the one from which the others are reached.
    for other in map(socket.gethostbyname, set(hosts) - {hosts[task]}):
        if not other.startswith("127."):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
                unconnected.connect((other, 9))  # sends nothing
                return unconnected.getsockname()[0]
    raise RankError(
        f"On {hosts[task]} the names of the hosts {sorted(set(hosts))} lead to the loopback, where ranks of others are "
        'not found. Name their network interface: horovodOptions={"networkInterface": "eth0"}; or set SPARK_LOCAL_IP.'
    )
