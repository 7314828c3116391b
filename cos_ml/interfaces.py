"""The network interfaces of this host (barrier task and rank side)."""

from __future__ import annotations

import socket

__all__ = ["INTERFACE", "local_addresses"]

INTERFACE = "HOROVOD_GLOO_IFACE"  # the environment variable that tells Horovod which one to use


def local_addresses() -> dict[str, str]:
    """The IPv4 addresses of this host, each with the name of its network interface."""
    import psutil

    return {
        entry.address: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    }
