"""Where ranks run, and the addresses at which they reach each other (barrier task side)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from cos_ml.errors import RankError
from cos_ml.interfaces import by_interface, family_of, is_loopback, local_addresses, resolve

__all__ = ["LOOPBACK", "RankInfo", "address_of_first", "assign_ranks", "own_address"]

LOOPBACK = "127.0.0.1"


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


def own_address(hosts: Sequence[str], task: int, interface: str | None = None) -> str | None:
    """The address at which other ranks expect that of ``task``; None where the names of hosts do not tell.

    It is that of ``interface``, a loopback address where all run on one host, or else one of this host's to which
    Spark's name of it resolves.

    Raises:
        RankError: this host has no such interface.
    """
    if interface is not None:
        return _address_of(interface, hosts[task])
    if len(set(hosts)) == 1:
        return LOOPBACK
    local = local_addresses()
    if found := _reachable([address for address in resolve(hosts[task]) if address in local]):
        return found
    # On Debian a host's own name resolves to 127.0.1.1: use the address from which it reaches the others.
    others = (_reachable(resolve(host)) for host in dict.fromkeys(hosts) if host != hosts[task])
    for other in filter(None, others):
        with socket.socket(family_of(other), socket.SOCK_DGRAM) as unconnected, contextlib.suppress(OSError):
            unconnected.connect((other, 9))  # sends nothing
            return str(unconnected.getsockname()[0])
    return None


def _address_of(interface: str, host: str) -> str:
    addresses = local_addresses()
    found = next((address for address, name in addresses.items() if name == interface), None)
    if found is None:
        raise RankError(
            f"The host {host} has no network interface {interface!r} with an address (Param horovodOptions, "
            f"networkInterface). It has {by_interface(addresses)}."
        )
    return found


def _reachable(addresses: Sequence[str]) -> str | None:
    return next((address for address in addresses if not is_loopback(address)), None)


def address_of_first(hosts: Sequence[str], task: int, interface: str | None = None) -> str | None:
    """The address at which ``task`` reaches that of partition 0, or None where the names of hosts do not tell."""
    if len(set(hosts)) == 1:
        return own_address(hosts, task, interface)
    if interface is not None:
        return None  # it is that of another host's interface
    if hosts[task] == hosts[0]:
        return own_address(hosts, 0)
    return _reachable(resolve(hosts[0]))
