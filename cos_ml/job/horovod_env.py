"""Horovod's settings as environment variables: the Param horovodOptions, and where ranks are (driver and task side)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cos_ml.errors import InvalidInputError, ParamTypeError
from cos_ml.interfaces import ADDRESS, INTERFACE, is_loopback, local_addresses
from cos_ml.job.placement import RankInfo

__all__ = ["JOIN_TIMEOUT", "converted", "ignored_ports", "rank_environment", "variables"]

PORT_RANGE = "COS_ML_PORT_RANGE"  # see CHANGES in cos_ml/horovod_build/build.py
KERNEL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")  # of sockets that are bound to no port
JOIN_TIMEOUT = "120"  # seconds that a rank waits for the others to join
NAMES = {
    "fusionThreshold": "HOROVOD_FUSION_THRESHOLD", "cycleTime": "HOROVOD_CYCLE_TIME",
    "timeline": "HOROVOD_TIMELINE", "autotune": "HOROVOD_AUTOTUNE", "networkInterface": "HOROVOD_GLOO_IFACE",
}  # fmt: skip
VARIABLE = re.compile(r"(HOROVOD|NCCL)_[A-Z0-9_]+")
# Where the ranks are is not for users to set.
RESERVED = re.compile(r"HOROVOD_((LOCAL_|CROSS_)?(RANK|SIZE)|HOSTNAME|CONTROLLER|CPU_OPERATIONS|GLOO_\w+)")


def converted(value: Any) -> dict[str, Any]:
    """Converter of the Param; raises InvalidInputError for unknown settings and for settings of the wrong type."""
    if not isinstance(value, dict):
        raise ParamTypeError(f"Param horovodOptions: expected a dict, received {value!r}.")
    for name, setting in value.items():
        known = isinstance(name, str) and (name in NAMES or (VARIABLE.fullmatch(name) and not RESERVED.fullmatch(name)))
        if not known:
            raise InvalidInputError(
                f"Param horovodOptions: expected {', '.join(NAMES)}, or a variable HOROVOD_... or NCCL_... other than "
                f"those that say where the ranks are; received {name!r}."
            )
        number = isinstance(setting, (int, float)) and not isinstance(setting, bool)
        if name == "autotune":
            valid, expected = isinstance(setting, bool), "a bool"
        elif name in ("fusionThreshold", "cycleTime"):
            valid, expected = number and setting >= 0, "a number >= 0"
        else:
            text = isinstance(setting, str) and "\0" not in setting
            valid, expected = text or isinstance(setting, (bool, int, float)), "a string or a number"
        if not valid:
            of_type = number if expected == "a number >= 0" else isinstance(setting, str)
            kind = InvalidInputError if of_type and name != "autotune" else ParamTypeError
            raise kind(f"Param horovodOptions: {name}: expected {expected}, received {setting!r}.")
    return dict(value)


def variables(options: dict[str, Any]) -> dict[str, str]:
    """The environment variables that ``options`` set in every rank."""
    found = {NAMES.get(name, name): _text(setting) for name, setting in options.items()}
    if "networkInterface" in options:
        found.setdefault("NCCL_SOCKET_IFNAME", _text(options["networkInterface"]))
    return found


def _text(setting: Any) -> str:
    return str(int(setting)) if isinstance(setting, bool) else str(setting)


def rank_environment(
    rank_info: RankInfo, own: str, server: str, port: int, secret: str, ports: Sequence[int] | None = None
) -> dict[str, str]:
    """The variables with which ``hvd.init()`` finds the other ranks.

    The rank listens at its ``own`` address, on one of ``ports`` if ranks of other hosts connect to it; server, port and
    secret are the rendezvous server's.
    """
    found = {f"HOROVOD_{name.upper()}": str(value) for name, value in asdict(rank_info).items()}
    found["HOROVOD_HOSTNAME"] = found.pop("HOROVOD_HOST")
    found["HOROVOD_CONTROLLER"] = found["HOROVOD_CPU_OPERATIONS"] = "gloo"
    found["HOROVOD_GLOO_RENDEZVOUS_ADDR"] = f"{server}:{port}/{secret}"
    found["HOROVOD_GLOO_RENDEZVOUS_PORT"] = str(port)
    found["HOROVOD_GLOO_TIMEOUT_SECONDS"] = JOIN_TIMEOUT
    interface = local_addresses().get(own)
    found |= {INTERFACE: interface} if interface else {}
    found[ADDRESS] = own
    return found | ({PORT_RANGE: f"{ports[0]}-{ports[-1]}"} if ports and not is_loopback(own) else {})


def ignored_ports(ports: Sequence[int], gpu: bool = False) -> str:
    """Why a rank here would listen on other ports than these, with the remedy; "" if it would not."""
    spec = importlib.util.find_spec("horovod")
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path()
    libraries = [path.read_bytes() for path in folder.glob("tensorflow/mpi_lib*.so")]
    if not all(PORT_RANGE.encode() in library for library in libraries):
        return "this Horovod listens on any port. Build one that does not: cos-ml install-horovod"
    low, high = map(int, KERNEL_PORTS.read_text().split()) if KERNEL_PORTS.exists() else (0, 0)
    inside = ports[0] <= low and high <= ports[-1]
    if gpu and any(b"ncclGetUniqueId" in library for library in libraries) and not inside:
        return (
            f"NCCL listens on any of the kernel's ports, {low}-{high}. Set sysctl net.ipv4.ip_local_port_range="
            f'"{ports[0]} {ports[-1]}" on all hosts (in a pod: securityContext.sysctls).'
        )
    return ""
