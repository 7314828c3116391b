"""The network interfaces of this host, and addresses of IPv4 and IPv6 (driver, barrier task and rank side)."""

from __future__ import annotations

import ipaddress
import socket

__all__ = [
    "ADDRESS",
    "INTERFACE",
    "REMEDY",
    "by_interface",
    "family_of",
    "is_loopback",
    "local_addresses",
    "plain",
    "resolve",
]

INTERFACE = "HOROVOD_GLOO_IFACE"  # environment variable that selects Horovod's network interface
ADDRESS = "COS_ML_GLOO_ADDRESS"  # at which a rank listens; see CHANGES in cos_ml/horovod_build/build.py
REMEDY = (
    "Ranks must be able to connect to each other. If a firewall lets only some ports through, name them: "
    "spark.cosml.portRange=40000-40099. If only one network connects the hosts, name its interface: "
    'horovodOptions={"networkInterface": "eth1"}.'
)
FAMILIES = (socket.AF_INET, socket.AF_INET6)  # preferred first, as Gloo prefers them


def local_addresses() -> dict[str, str]:
    """The addresses of this host, IPv4 first, each with the name of its network interface; without link-local IPv6."""
    import psutil

    found = [(entry, name) for name, entries in psutil.net_if_addrs().items() for entry in entries]
    return {
        entry.address: name
        for family in FAMILIES
        for entry, name in found
        if entry.family == family and "%" not in entry.address
    }


def by_interface(addresses: dict[str, str]) -> str:
    """The addresses of a host as a person reads them."""
    return ", ".join(f"{name} {address}" for address, name in addresses.items() if not is_loopback(address)) or "none"


def resolve(host: str) -> list[str]:
    """The addresses of a host by its name, as ``local_addresses`` has them; none where it is not known here."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = [str(place[0]) for wanted in FAMILIES for family, *_, place in found if family == wanted]
    return [address for address in addresses if "%" not in address]


def family_of(address: str) -> socket.AddressFamily:
    """The family of sockets for an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def is_loopback(address: str) -> bool:
    """Whether an address is reached on its own host alone."""
    return ipaddress.ip_address(address).is_loopback


def plain(address: str) -> str:
    """An address as others know it: a socket for both families writes those of IPv4 as ::ffff:10.0.0.1."""
    return address.removeprefix("::ffff:")
