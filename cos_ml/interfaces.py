"""The network interfaces of this host (barrier task and rank side)."""

from __future__ import annotations

import socket

__all__ = ["INTERFACE", "local_addresses"]

INTERFACE = "HOROVOD_GLOO_IFACE"  # environment variable that selects Horovod's network interface


def local_addresses() -> dict[str, str]:
    """The IPv4 addresses of this host, each with the name of its network interface."""
    import psutil

    interfaces = psutil.net_if_addrs().items()
    return {entry.address: name for name, entries in interfaces for entry in entries if entry.family == socket.AF_INET}
